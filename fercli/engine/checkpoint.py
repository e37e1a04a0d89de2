"""Checkpoints: written whole or not at all, and read as data, never as code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from fercli import __version__
from fercli.errors import FercliError
from fercli.files import os_error_behind, replacing

FORMAT = 1


def save(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint atomically: a kill at any moment leaves the old one or the new one."""
    try:
        with replacing(path, path.with_name(path.name + ".tmp")) as file:
            torch.save({"format": FORMAT, "fercli": __version__, **state}, file)
    except (OSError, RuntimeError) as failure:
        problem = os_error_behind(failure)  # torch.save wraps what goes wrong with its file in errors of its own
        if problem is None:
            raise
        raise FercliError(
            f"cannot write {path}: {problem.strerror or problem}; the last good checkpoint is kept"
        ) from None


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint of ours onto the CPU.

    Raises:
        FercliError: there is none, it is damaged, or it is not ours.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise FercliError(f"no checkpoint at {path}") from None
    except OSError as problem:
        raise FercliError(f"{path} cannot be read: {problem.strerror or problem}") from None
    except Exception as problem:  # the unpickler meets arbitrary bytes: KeyError, IndexError, AssertionError, ...
        raise FercliError(f"{path} is damaged or not a fercli checkpoint ({type(problem).__name__})") from None
    if not isinstance(state, dict) or "network" not in state or "spec" not in state:
        raise FercliError(f"{path} is not a fercli checkpoint; read other people's weights with model.weights")
    if state.get("format", 0) > FORMAT:
        raise FercliError(f"{path} was written by fercli {state.get('fercli')}, which is newer than this {__version__}")
    return state
