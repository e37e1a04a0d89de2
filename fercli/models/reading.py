"""Checkpoint files as data: tensors and plain values, never code, whoever wrote them.

Files of torch are read with ``torch.load(weights_only=True)``, and a file that needs more than tensors and plain values
is refused; so is an archive that unpacks to more than it weighs, or whose bytes are not those that were written. Files
of safetensors hold nothing but tensors. Names inside a file are the writer's too: they are printed by `shown` alone.
"""

from __future__ import annotations

import hashlib
import os
import re
import warnings
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from fercli.console import brief
from fercli.errors import FercliError

#: The safe format's ending. Files of other names are recognised by their first bytes.
SAFETENSORS = ".safetensors"

#: What is told of a file that safetensors cannot read.
BROKEN = "is truncated or damaged, or no safetensors file; fetch or copy it again"

_OTHER_BYTES = "is damaged: its bytes are not those that were written"
_CUT = "is truncated or damaged"

_FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
#: Names that `some` gives.
NAMED_AT_MOST = 6
_LONGEST_NAME = 160


class Damaged(ValueError):
    """A file is not as it was written; the message says how, to be put behind its name."""


def read_document(path: Path) -> Any:
    """Return what a checkpoint file holds, on the CPU: whatever torch saved, or a dict of tensors from safetensors.

    Raises:
        FercliError: the file is missing, a folder, empty, truncated, damaged, made to fill the memory, or asks to run
            code.
    """
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise FercliError(f"weights {path}: {what}", "give a checkpoint file (or model.weights: null for none)")
    try:
        if path.stat().st_size == 0:
            raise FercliError(f"weights {path}: the file is empty", "fetch or copy it again")
        if is_safetensors(path):
            from safetensors.torch import load_file

            return load_file(path)
        return read_torch(path)
    except FercliError:
        raise
    except OSError as error:
        raise FercliError(f"weights {path}: cannot be read ({error.strerror or error})") from error
    except Damaged as error:
        raise FercliError(f"weights {path}: {error}", "fetch or copy it again") from error
    except ValueError as error:
        raise FercliError(f"weights {path}: {error}") from error
    except Exception as error:  # safetensors meets arbitrary bytes
        raise FercliError(f"weights {path}: {_why_unreadable(error)}") from error


def read_torch(path: Path) -> Any:
    """Return what torch.save wrote into a file, on the CPU, once its bytes are checked.

    The archive's check sums are compared while torch reads, in a thread: torch itself does not look at them. (The
    format before torch 1.6 is no archive and has none.)

    Raises:
        Damaged: it is not as it was written.
        ValueError: why it cannot be read, and what to do, to be put behind the file's name.
        OSError: the file cannot be opened.
    """
    with path.open("rb") as file, ThreadPoolExecutor(1) as thread:
        if zipfile.is_zipfile(file):
            entries = _entries(file)
            checked = thread.submit(_compare_sums, path, entries)
        else:
            checked = None
        try:
            with warnings.catch_warnings():  # of sparse tensors and the like, which are told below or not used
                warnings.simplefilter("ignore")
                document = torch.load(path, map_location="cpu", weights_only=True)
        except (OSError, MemoryError):
            raise
        except Exception as error:  # the unpickler meets arbitrary bytes: KeyError, IndexError, AssertionError, ...
            if checked is not None:
                checked.result()
            why = _why_unreadable(error)
            raise (Damaged if why == _CUT else ValueError)(why) from error
        if checked is not None:
            checked.result()
    return document


def seal_torch(file: IO[bytes]) -> None:
    """Put behind what torch.save wrote into a file, open for reading and writing, a digest of all its entries.

    It stands in the archive's comment, which torch does not read. `read_torch` compares it where there is one: then an
    entry that something else rewrote is seen, though its own check sum is right.
    """
    file.flush()
    digest = _digest(_entries(file))
    file.seek(-2, os.SEEK_END)
    file.write(len(digest).to_bytes(2, "little") + digest)


def _digest(entries: Iterable[zipfile.ZipInfo]) -> bytes:
    told = "\n".join(f"{entry.filename} {entry.file_size} {entry.CRC}" for entry in entries)
    return b"fercli sha256 " + hashlib.sha256(told.encode("utf-8", "surrogateescape")).hexdigest().encode()


def _entries(file: IO[bytes]) -> list[zipfile.ZipInfo]:
    """The entries of an archive of torch's. It stores them as they are, so that it is larger than what is in it."""
    try:
        with zipfile.ZipFile(file) as archive:
            entries, comment = archive.infolist(), archive.comment
    except (zipfile.BadZipFile, ValueError, NotImplementedError):
        raise Damaged(_CUT) from None
    size = file.seek(0, os.SEEK_END)
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries) or sum(e.file_size for e in entries) > size:
        raise ValueError("unpacks to more than the file holds, which torch.save's never do")
    if comment and comment != _digest(entries):
        raise Damaged(_OTHER_BYTES)
    return entries


def _compare_sums(path: Path, entries: Iterable[zipfile.ZipInfo]) -> None:
    """Raise Damaged where an entry's bytes are not those of its check sum; 0 stands where none was computed."""
    # Large blocks: after each of them the thread waits for the interpreter, which torch's reader has.
    block = memoryview(bytearray(1 << 22))
    with path.open("rb", buffering=0) as file:
        for entry in entries:
            file.seek(entry.header_offset + 26)
            lengths = file.read(4)
            file.seek(int.from_bytes(lengths[:2], "little") + int.from_bytes(lengths[2:], "little"), 1)
            left, found = entry.file_size, 0
            while left and (count := file.readinto(block[: min(left, len(block))])):
                found, left = zlib.crc32(block[:count], found), left - count
            if left or found != entry.CRC != 0:
                raise Damaged(_OTHER_BYTES)


def check_plain(document: Any, most: int = 200_000) -> None:
    """Look through what a checkpoint of ours holds, before anything is done with it.

    Args:
        document: mappings, sequences, plain values and tensors, nested.
        most: values that it may have. One list named in many places counts in each: a small file may so ask for more
            than any memory holds.

    Raises:
        ValueError: why it cannot be used, to be put behind the file's name.
    """
    waiting, count = [document], 0
    while waiting:
        value = waiting.pop()
        if isinstance(value, Tensor):
            if not _holds_its_numbers(value):
                raise ValueError("holds a tensor without its numbers")
        elif isinstance(value, int) and value.bit_length() > 64:
            raise ValueError("holds a number of more than 64 bits")
        elif isinstance(value, Mapping | list | tuple | set | frozenset):
            count += len(value)
            if count > most:
                raise ValueError(f"holds more than {most} values")
            waiting.extend(value.values() if isinstance(value, Mapping) else value)


def _holds_its_numbers(tensor: Tensor) -> bool:
    """Tell a tensor with a place in its storage for each number from those that only claim their size."""
    if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
        return False
    return tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()


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


def is_finite(tensor: Tensor) -> bool:
    """Tell whether all of a float tensor's numbers are finite; in one pass and without another tensor of its size."""
    return not tensor.numel() or bool(torch.stack(torch.aminmax(tensor)).isfinite().all())


def some(names: Iterable[Any]) -> str:
    """Return the first six names and how many more there are, in one line."""
    names = list(names)
    more = len(names) - NAMED_AT_MOST
    return ", ".join(map(shown, names[:NAMED_AT_MOST])) + (f" and {more} more" if more > 0 else "")


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


def _why_unreadable(error: Exception) -> str:
    text = str(error)
    wanted = re.search(r"GLOBAL (\S+)", text)
    if wanted:
        return (
            f"asks to run code ({shown(wanted[1])}) while it is read, which is refused;"
            " save its tensors alone with torch.save(model.state_dict(), file) where you trust it, and give that"
        )
    if "alloc" in text:
        return "does not fit into the memory that is free"
    if "TorchScript" in text:
        return "is a TorchScript archive; give the checkpoint with the state_dict instead"
    if type(error).__name__ == "SafetensorError":
        return BROKEN
    if "central directory" in text or "unexpected EOF" in text or isinstance(error, EOFError | zipfile.BadZipFile):
        return _CUT
    return "is not a PyTorch checkpoint, or is damaged; give a file that torch.save or safetensors wrote"
