"""The user's own methods and readers: the run spec names them ``module:Name``.

The module is searched for in the current folder, then on Python's path. It is the user's own code, and it runs when the
spec asks for it. A name in fercli's registries imports nothing from outside. Files that fercli wrote (checkpoints,
models) may have been edited by others, so the code they name runs only if the user has named it too (`trust`).
"""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path
from typing import Any

from fercli.errors import SpecError

_PLACE = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")

#: The names that the user has given in this process.
_trusted: set[str] = set()


def is_place(name: str) -> bool:
    """Whether a name is of the form ``module:Name``."""
    return _PLACE.fullmatch(name) is not None


def trust(*names: str) -> None:
    """Allow files to name these, because the user's spec or command line has. Names of another form are ignored."""
    _trusted.update(filter(is_place, names))


def is_trusted(name: str) -> bool:
    """Whether the user has named ``module:Name`` in this process."""
    return name in _trusted


def import_from(place: str, key: str) -> Any:
    """Import the object that ``module:Name`` names.

    Args:
        place: the name.
        key: the spec's key that holds the name, for messages.

    Raises:
        SpecError: the module or name does not exist, or importing the module fails; one line.
    """
    module, _, attribute = place.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        loaded = importlib.import_module(module)
    except ModuleNotFoundError as problem:
        if problem.name is None or not f"{module}.".startswith(f"{problem.name}."):
            raise SpecError(f"{key}: {place}: its module needs {problem.name}, which is not installed") from None
        raise SpecError(f"{key}: {place}: no module named {module} in {here} or on Python's path") from None
    except Exception as problem:  # the user's code may fail in any way
        raise SpecError(f"{key}: {place}: importing {module} failed: {type(problem).__name__}: {problem}") from problem
    if not hasattr(loaded, attribute):
        raise SpecError(f"{key}: {place}: {module} has no {attribute}")
    return getattr(loaded, attribute)
