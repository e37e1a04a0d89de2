"""Phrases that no native technical writer would use do not come back, in code, messages, configs or docs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TEXTS = [
    *sorted(path for kind in ("py", "j2", "css") for path in (ROOT / "fercli").rglob(f"*.{kind}")),
    *sorted((ROOT / "configs").rglob("*.yaml")),
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
]

#: What is found -> what to write.
PHRASES = {
    r"(?<![Tt]here )\bis no (?!longer\b|more\b|other\b|such\b|error\b|better\b)\w+": "is not a ...",
    r"\b(?:is|are) there (?:already|twice)\b": "already exists; duplicate",
    r"\bwhole number\b": "integer",
    r"\bso many(?:-th)?\b": "name the number; every Nth",
    r"\b(?:goes|go|going) on (?:where|from|behind|with)\b": "resumes, continues",
    r"\bsame command goes on\b": "run the same command again to resume",
    r"\bbeyond all\b": "out of range",
    r"\b(?:reckon|mend)(?:s|ed|ing)?\b": "compute; fix",
    r"\btold apart\b": "distinguished, marked",
    r"\b(?:anew|thereof|whoever|hitherto|heed|heeds)\b": "again; plain words",
    r"\bin the main\b": "mostly",
    r"\bstands? in (?:both|two)\b": "is in",
}


@pytest.mark.parametrize("phrase", PHRASES)
def test_no_text_uses(phrase: str) -> None:
    found = []
    for path in TEXTS:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if re.search(phrase, line):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()[:120]}")
    assert found == [], PHRASES[phrase]
