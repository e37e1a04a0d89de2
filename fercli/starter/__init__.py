"""The model that comes with fercli, so that `fercli predict photo.jpg` works out of the box.

The word ``starter`` names it wherever a run or a model is given; a folder or file of that name is ``./starter``. The
file is a whole model (`fercli.models.model_file`). ``CARD.md`` describes it and contains the file's SHA-256;
``facts.json`` holds the card's figures. ``python tests/make_starter.py RUN`` writes all three (see its docstring).
Importing this module is cheap: it does not import torch.
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
    """Whether the user's name for a model means this one. Only a string can; a Path is always a file or folder."""
    return given == NAME


def starter_file() -> Path:
    """The path of the model's file, which is checked against its card.

    Raises:
        FercliError: the file or its card is missing, cannot be read, or is not the one that was packaged.
    """
    told = _HASH.search(starter_card())
    if told is None or starter_hash() != told[1]:
        raise FercliError(f"{FILE} is damaged: it is not the file that {CARD.name} next to it describes", _FIX)
    return FILE


def starter_hash() -> str:
    """SHA-256 of the file's present content; takes milliseconds. Raises FercliError if the file cannot be read."""
    return hashlib.sha256(_read(FILE)).hexdigest()


def starter_card() -> str:
    """The model card in Markdown. Raises FercliError if it cannot be read."""
    return _read(CARD).decode("utf-8", "replace")


def starter_facts() -> dict[str, Any]:
    """The card's figures, as `fercli evaluate` computed them. Raises FercliError if they cannot be read."""
    try:
        return json.loads(_read(FACTS))
    except ValueError:
        raise FercliError(f"{FACTS} is damaged", _FIX) from None


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise FercliError(f"the starter model is incomplete: {path} is missing", _FIX) from None
    except OSError as problem:
        raise FercliError(f"{path} cannot be read: {problem.strerror or problem}", _FIX) from None
