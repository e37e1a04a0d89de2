"""Rules of the test suite itself."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.mark.parametrize("file", sorted(HERE.glob("test_*.py")), ids=lambda file: file.stem)
def test_no_test_file_imports_another(file: Path) -> None:
    """Shared helpers live in modules of their own: importing a test file would bind its fixtures and constants here."""
    imported = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        imported |= {name.split(".")[-1] for name in names}
    assert not imported & {path.stem for path in HERE.glob("test_*.py")}
