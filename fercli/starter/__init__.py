"""The model that comes with fercli, so that `fercli predict photo.jpg` answers out of the box.

The word ``starter`` names it wherever a run or a model is named; a folder or file of that name is ``./starter``. The
file is a whole model (`fercli.models.model_file`). ``CARD.md`` tells what it is, and bears the file's SHA-256;
``facts.json`` holds the card's figures. ``python tests/make_starter.py RUN`` writes all three (its docstring says how).
Nothing here is heavy: torch is not imported.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from fercli.errors import FercliError

NAME = "starter"
FOLDER = Path(__file__).parent
FILE = FOLDER / "starter.safetensors"
CARD = FOLDER / "CARD.md"
FACTS = FOLDER / "facts.json"

_HASH = re.compile(r"^SHA-256: `?([0-9a-f]{64})`?$", re.MULTILINE)
_FIX = "reinstall fercli: pip install --force-reinstall --no-deps fercli (or from your checkout: pip install .)"


def is_starter(given: str | Path) -> bool:
    """Tell whether the user's word for a model is this one. A Path is always a place: only a string names it."""
    return given == NAME


def starter_file() -> Path:
    """The model's file, as long as it is the one that its card describes.

    Raises:
        FercliError: the file or its card is missing, cannot be read, or is not the one that was packaged.
    """
    told = _HASH.search(starter_card())
    if told is None or starter_hash() != told[1]:
        raise FercliError(f"{FILE} is damaged: it is not the file that {CARD.name} beside it describes", _FIX)
    return FILE


def starter_hash() -> str:
    """SHA-256 of the file as it is; milliseconds. Raises FercliError where it cannot be read."""
    return hashlib.sha256(_read(FILE)).hexdigest()


def starter_card() -> str:
    """The model card, Markdown. Raises FercliError where it cannot be read."""
    return _read(CARD).decode("utf-8", "replace")


def starter_facts() -> dict[str, Any]:
    """The card's figures, as `fercli evaluate` gave them. Raises FercliError where they cannot be read."""
    try:
        return json.loads(_read(FACTS))
    except ValueError:
        raise FercliError(f"{FACTS} is damaged", _FIX) from None


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise FercliError(f"the starter model is not whole: {path} is missing", _FIX) from None
    except OSError as problem:
        raise FercliError(f"{path} cannot be read: {problem.strerror or problem}", _FIX) from None
