"""Reads checkpoint files as data: tensors and plain values, never code, whatever their origin.

Torch files are read with ``torch.load(weights_only=True)``. A file that needs more than tensors and plain values is
refused, and so is an archive that unpacks to more than its own size or whose bytes have changed since it was written.
Safetensors files hold nothing but tensors. The names inside a file are not trusted either: they are only printed
through `shown`.
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

#: The file name extension of safetensors. Files with other names are recognised by their first bytes.
SAFETENSORS = ".safetensors"

#: The message for a file that safetensors cannot read.
BROKEN = "is truncated, damaged or not a safetensors file; download or copy it again"

_OTHER_BYTES = "is damaged: its bytes have changed since it was written"
_CUT = "is truncated or damaged"

_FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
#: The most names that `some` returns.
NAMED_AT_MOST = 6
_LONGEST_NAME = 160


class Damaged(ValueError):
    """A file has changed since it was written. The message says how and is meant to follow the file's name."""


def read_document(path: Path) -> Any:
    """Return a checkpoint file's content, on the CPU: whatever torch saved, or a dict of tensors from safetensors.

    Raises:
        FercliError: the file is missing, a folder, empty, truncated, damaged, crafted to exhaust the memory, or asks
            to run code.
    """
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise FercliError(f"weights {path}: {what}", "give a checkpoint file (or model.weights: null for none)")
    try:
        if path.stat().st_size == 0:
            raise FercliError(f"weights {path}: the file is empty", "download or copy it again")
        if is_safetensors(path):
            from safetensors.torch import load_file

            return load_file(path)
        return read_torch(path)
    except FercliError:
        raise
    except OSError as error:
        raise FercliError(f"weights {path}: cannot be read ({error.strerror or error})") from error
    except Damaged as error:
        raise FercliError(f"weights {path}: {error}", "download or copy it again") from error
    except ValueError as error:
        raise FercliError(f"weights {path}: {error}") from error
    except Exception as error:  # the bytes may be arbitrary
        raise FercliError(f"weights {path}: {_why_unreadable(error)}") from error


def read_torch(path: Path) -> Any:
    """Return what torch.save wrote into a file, on the CPU, after its bytes have been checked.

    A thread compares the archive's checksums while torch reads, since torch itself does not check them. (The format
    before torch 1.6 is not an archive and has no checksums.)

    Raises:
        Damaged: the file has changed since it was written.
        ValueError: the file cannot be read. The message says why and what to do, and is meant to follow the file's
            name.
        OSError: the file cannot be opened.
    """
    with path.open("rb") as file, ThreadPoolExecutor(1) as thread:
        if zipfile.is_zipfile(file):
            entries = _entries(file)
            checked = thread.submit(_compare_sums, path, entries)
        else:
            checked = None
        try:
            with warnings.catch_warnings():  # about sparse tensors and the like, which are reported below or not used
                warnings.simplefilter("ignore")
                document = torch.load(path, map_location="cpu", weights_only=True)
        except (OSError, MemoryError):
            raise
        except Exception as error:  # the bytes may be arbitrary: KeyError, IndexError, AssertionError, ...
            if checked is not None:
                checked.result()
            why = _why_unreadable(error)
            raise (Damaged if why == _CUT else ValueError)(why) from error
        if checked is not None:
            checked.result()
    return document


def seal_torch(file: IO[bytes]) -> None:
    """Append a digest of all entries to a file that torch.save wrote and that is open for reading and writing.

    The digest is stored in the archive's comment, which torch does not read. `read_torch` checks it if there is one:
    this detects an entry that another program rewrote with a correct checksum.
    """
    file.flush()
    digest = _digest(_entries(file))
    file.seek(-2, os.SEEK_END)
    file.write(len(digest).to_bytes(2, "little") + digest)


def _digest(entries: Iterable[zipfile.ZipInfo]) -> bytes:
    lines = "\n".join(f"{entry.filename} {entry.file_size} {entry.CRC}" for entry in entries)
    return b"fercli sha256 " + hashlib.sha256(lines.encode("utf-8", "surrogateescape")).hexdigest().encode()


def _entries(file: IO[bytes]) -> list[zipfile.ZipInfo]:
    """Return the entries of a torch archive. Torch stores them uncompressed, so it is larger than its content."""
    try:
        with zipfile.ZipFile(file) as archive:
            entries, comment = archive.infolist(), archive.comment
    except (zipfile.BadZipFile, ValueError, NotImplementedError):
        raise Damaged(_CUT) from None
    size = file.seek(0, os.SEEK_END)
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries) or sum(e.file_size for e in entries) > size:
        raise ValueError("unpacks to more than its own size, which no file of torch.save does")
    if comment and comment != _digest(entries):
        raise Damaged(_OTHER_BYTES)
    return entries


def _compare_sums(path: Path, entries: Iterable[zipfile.ZipInfo]) -> None:
    """Raise Damaged if an entry's bytes do not match its checksum; 0 means that no checksum was computed."""
    # Large blocks: after each one the thread waits for the interpreter lock, which torch's reader holds.
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
    """Check the content of one of our checkpoints before it is used.

    Args:
        document: nested mappings, sequences, plain values and tensors.
        most: the most values it may have. A list that is referenced in many places counts each time: a small file
            could otherwise ask for more memory than there is.

    Raises:
        ValueError: the content cannot be used. The message says why and is meant to follow the file's name.
    """
    waiting, count = [document], 0
    while waiting:
        value = waiting.pop()
        if isinstance(value, Tensor):
            if not _holds_its_numbers(value):
                raise ValueError("contains a tensor without its numbers")
        elif isinstance(value, int) and value.bit_length() > 64:
            raise ValueError("contains a number of more than 64 bits")
        elif isinstance(value, Mapping | list | tuple | set | frozenset):
            count += len(value)
            if count > most:
                raise ValueError(f"contains more than {most} values")
            waiting.extend(value.values() if isinstance(value, Mapping) else value)


def _holds_its_numbers(tensor: Tensor) -> bool:
    """Return whether a tensor's storage holds all its numbers; some tensors only claim their size."""
    if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
        return False
    return tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()


def is_safetensors(path: Path) -> bool:
    """Return whether a file is safetensors, by its name or its first bytes. Raises OSError."""
    return path.suffix == SAFETENSORS or _looks_like_safetensors(path, path.stat().st_size)


def is_plain(value: Any) -> bool:
    """Return whether a value is a strided tensor of numbers, and not sparse, quantised or anything else."""
    return (
        isinstance(value, Tensor)
        and value.layout == torch.strided
        and value.device.type == "cpu"
        and (value.dtype in _FLOATS or value.dtype == torch.int64)
    )


def is_finite(tensor: Tensor) -> bool:
    """Return whether all numbers of a float tensor are finite, in one pass and without another tensor of its size."""
    return not tensor.numel() or bool(torch.stack(torch.aminmax(tensor)).isfinite().all())


def some(names: Iterable[Any]) -> str:
    """Return the first six names and the number of further ones, in one line."""
    names = list(names)
    more = len(names) - NAMED_AT_MOST
    return ", ".join(map(shown, names[:NAMED_AT_MOST])) + (f" and {more} more" if more > 0 else "")


def shown(name: Any) -> str:
    """Return a name found in a file as a short text without line breaks or terminal control codes."""
    # No repr of other values: a few bytes of nested tuples can produce gigabytes of text.
    text = name if isinstance(name, str) else f"<{type(name).__name__}>"
    return brief(text.encode("utf-8", "backslashreplace").decode(), _LONGEST_NAME)


def _looks_like_safetensors(path: Path, size: int) -> bool:
    """Check whether a file starts with a header's length in eight bytes and then a JSON header."""
    with path.open("rb") as file:
        head = file.read(9)
    return head[8:] == b"{" and 2 <= int.from_bytes(head[:8], "little") <= size - 8


def _why_unreadable(error: Exception) -> str:
    text = str(error)
    wanted = re.search(r"GLOBAL (\S+)", text)
    if wanted:
        return (
            f"asks to run code ({shown(wanted[1])}) while it is read, which is refused; if you trust it,"
            " save only its tensors with torch.save(model.state_dict(), file) and give that file"
        )
    if "alloc" in text:
        return "does not fit into the free memory"
    if "TorchScript" in text:
        return "is a TorchScript archive; give the checkpoint with the state_dict instead"
    if type(error).__name__ == "SafetensorError":
        return BROKEN
    if "central directory" in text or "unexpected EOF" in text or isinstance(error, EOFError | zipfile.BadZipFile):
        return _CUT
    return "is not a PyTorch checkpoint, or is damaged; give a file written by torch.save or safetensors"
