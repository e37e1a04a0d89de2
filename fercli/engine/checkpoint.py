"""Checkpoints: written completely or not at all, and read as data, never as code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from fercli.errors import FercliError
from fercli.files import os_error_behind, replacing
from fercli.models.model_file import Foreign, NoCheckpoint, check_checkpoint
from fercli.models.reading import Damaged, read_torch, seal_torch, shown
from fercli.version import __version__

FORMAT = 1


def save(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint atomically: a kill at any moment leaves either the old file or the new one."""
    try:
        with replacing(path) as file:
            torch.save({"format": FORMAT, "fercli": __version__, **state}, file)
            seal_torch(file)
    except (OSError, RuntimeError) as failure:
        problem = os_error_behind(failure)  # torch.save wraps file errors in its own error types
        if problem is None:
            raise
        raise FercliError(
            f"cannot write {path}: {problem.strerror or problem}; the last good checkpoint is kept"
        ) from None


def load(path: Path) -> dict[str, Any]:
    """Read a fercli checkpoint onto the CPU.

    Raises:
        Foreign: it is not a fercli checkpoint.
        FercliError: it does not exist, it is damaged, it was edited into something unusable, or it was written by a
            newer fercli.
    """
    try:
        state = read_torch(path)
        if isinstance(state, dict) and isinstance(state.get("format"), int) and state["format"] > FORMAT:
            wrote = shown(state.get("fercli"))
            raise ValueError(f"was written by fercli {wrote}, newer than this one ({__version__}); update fercli")
        check_checkpoint(state)
    except FileNotFoundError:
        raise FercliError(f"no such checkpoint: {path}") from None
    except OSError as problem:
        raise FercliError(f"{path} cannot be read: {problem.strerror or problem}") from None
    except Damaged as problem:
        raise FercliError(
            f"{path} {problem}", "train that stage again with --restart, or copy the file again"
        ) from None
    except NoCheckpoint as problem:
        raise Foreign(f"{path} {problem}") from None
    except ValueError as problem:
        raise FercliError(f"{path} {problem}") from None
    return state
