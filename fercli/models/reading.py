"""Checkpoint files as data: tensors and plain values, never code, whoever wrote them.

Files of torch are read with ``torch.load(weights_only=True)``, and a file that needs more than tensors and plain values
is refused; so is an archive that unpacks to more than it weighs. Files of safetensors hold nothing but tensors. Names
inside a file are the writer's too: they are printed by `shown` alone.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fercli.console import brief
from fercli.errors import FercliError

#: The safe format's ending. Files of other names are recognised by their first bytes.
SAFETENSORS = ".safetensors"

#: What is told of a file that safetensors cannot read.
BROKEN = "is truncated or damaged, or no safetensors file; fetch or copy it again"

_FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
_NAMED_AT_MOST = 6
_LONGEST_NAME = 160


def read_document(path: Path) -> Any:
    """Return what a checkpoint file holds, on the CPU: whatever torch saved, or a dict of tensors from safetensors.

    Raises:
        FercliError: the file is missing, a folder, empty, truncated, damaged, made to fill the memory, or asks to run
            code.
    """
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise FercliError(f"weights {path}: {what}; give a checkpoint file (or model.weights: null for none)")
    try:
        size = path.stat().st_size
        if size == 0:
            raise FercliError(f"weights {path}: the file is empty; fetch or copy it again")
        if is_safetensors(path):
            from safetensors.torch import load_file

            return load_file(path)
        if _unpacks_to_more(path, size):
            raise FercliError(f"weights {path}: unpacks to more than the file holds, which torch.save's never do")
        return torch.load(path, map_location="cpu", weights_only=True)
    except FercliError:
        raise
    except OSError as error:
        raise FercliError(f"weights {path}: cannot be read ({error.strerror or error})") from error
    except Exception as error:  # the readers meet arbitrary bytes: KeyError, IndexError, EOFError, ...
        raise FercliError(f"weights {path}: {_why_unreadable(error)}") from error


def is_safetensors(path: Path) -> bool:
    """Tell by its name, or by its first bytes, whether a file is to be read as safetensors. Raises OSError."""
    return path.suffix == SAFETENSORS or _looks_like_safetensors(path, path.stat().st_size)


def is_plain(value: Any) -> bool:
    """Tell a strided tensor that holds its numbers from all else a file may hold (sparse, quantised, ...)."""
    return (
        isinstance(value, Tensor)
        and value.layout == torch.strided
        and value.device.type == "cpu"
        and (value.dtype in _FLOATS or value.dtype == torch.int64)
    )


def some(names: Iterable[Any]) -> str:
    """Return the first six names and how many more there are, in one line."""
    names = list(names)
    more = len(names) - _NAMED_AT_MOST
    return ", ".join(map(shown, names[:_NAMED_AT_MOST])) + (f" and {more} more" if more > 0 else "")


def all_shown(names: Iterable[Any]) -> bool:
    """Tell whether `some` names them all."""
    return len(list(names)) <= _NAMED_AT_MOST


def shown(name: Any) -> str:
    """Return a name found in a file as a short text without line breaks or codes that a terminal would obey."""
    # No repr of anything else: a few bytes of nested tuples can ask for gigabytes of text.
    text = name if isinstance(name, str) else f"<{type(name).__name__}>"
    return brief(text.encode("utf-8", "backslashreplace").decode(), _LONGEST_NAME)


def _looks_like_safetensors(path: Path, size: int) -> bool:
    """Such a file begins with the length of its header in eight bytes, and the header is JSON."""
    with path.open("rb") as file:
        head = file.read(9)
    return head[8:] == b"{" and 2 <= int.from_bytes(head[:8], "little") <= size - 8


def _unpacks_to_more(path: Path, size: int) -> bool:
    """Torch stores its entries as they are, so that an archive is always larger than what is in it."""
    if not zipfile.is_zipfile(path):
        return False  # the format before torch 1.6, or no checkpoint at all
    with zipfile.ZipFile(path) as archive:
        return sum(entry.file_size for entry in archive.infolist()) > size


def _why_unreadable(error: Exception) -> str:
    text = str(error)
    wanted = re.search(r"GLOBAL (\S+)", text)
    if wanted:
        return (
            f"asks to run code ({shown(wanted[1])}) while it is read, which is refused;"
            " save its tensors alone with torch.save(model.state_dict(), file) where you trust it, and give that"
        )
    if "TorchScript" in text:
        return "is a TorchScript archive; give the checkpoint with the state_dict instead"
    if type(error).__name__ == "SafetensorError":
        return BROKEN
    if "central directory" in text or "unexpected EOF" in text or isinstance(error, EOFError | zipfile.BadZipFile):
        return "is truncated or damaged; fetch or copy it again"
    return "is not a PyTorch checkpoint, or is damaged; give a file that torch.save or safetensors wrote"
