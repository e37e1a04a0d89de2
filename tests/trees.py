"""Small trees and images shared by several test files."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fercli.datasets import read_dataset
from fercli.errors import FercliError

#: The heading of AffectNet's lists.
AFFECTNET = "subDirectory_filePath,face_x,face_y,face_width,face_height,facial_landmarks,expression,valence,arousal"


def write(root: Path, name: str, content: str | bytes = b"not read while listing") -> Path:
    """Write a file below a folder, and create its parent folders."""
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def touch(root: Path, *names: str) -> Path:
    """Write files that a listing never opens."""
    for name in names:
        write(root, name)
    return root


def rows(listing: Iterable[Any], *fields: str) -> list[tuple]:
    """Return these fields of each record."""
    return [tuple(getattr(record, field) for field in fields) for record in listing]


def refusal(reader: str, root: Path, **options: Any) -> str:
    """Return the one-line error with which a reader refuses a folder."""
    with pytest.raises(FercliError) as caught:
        read_dataset("mine", reader, root, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def encoded(image: Image.Image | np.ndarray, form: str, **options: Any) -> bytes:
    """Return an image encoded as the bytes of a file."""
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, form, **options)
    return buffer.getvalue()


def digests(folder: Path) -> dict[str, str]:
    """Return {name: SHA-256} of the files in a folder."""
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir())}
