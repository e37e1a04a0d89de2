"""Find the images that a list names, whatever operating system wrote the list."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path


class ListedPictures:
    """Translates paths as written in a list into paths as stored on the disk.

    It understands backslashes between folders, ``./`` and absolute paths below the dataset's folder. It also matches
    names that differ from the file's in Unicode normal form (macOS decomposes accents) or in case, if only one file
    fits. Each folder is read once; looking up a path makes no further system call.
    """

    def __init__(self, root: Path):
        self._root = os.path.abspath(root)
        self._beginnings = tuple({self._root.rstrip("/") + "/", os.path.realpath(root).rstrip("/") + "/"})
        self._folders: dict[str, str | None] = {}
        self._names: dict[str, frozenset[str]] = {}
        self._folded: dict[str, dict[str, list[str]]] = {}

    def find(self, written: str, folder: str = "") -> tuple[str, str, bool]:
        """Return (path as written, path on the disk, whether it exists).

        Args:
            written: the image, relative to `folder` or absolute.
            folder: a folder below the root, with ``/`` between folders.

        Both paths have ``/`` between folders. The second is relative to the root if it is below it. For a missing
        image, it is the path where the image should be.
        """
        path, there = self._find(written, folder)
        if not there and "\\" in written:
            # Only now, because a file's own name may contain a backslash.
            written = written.replace("\\", "/")
            path, there = self._find(written, folder)
        return written, path, there

    def _find(self, written: str, folder: str) -> tuple[str, bool]:
        path = f"{folder}/{written}" if folder and not written.startswith("/") else written
        if path.startswith("/") or "./" in path or "//" in path:
            path = self._plain(path)
        parent, _, name = path.rpartition("/")
        parent = parent or path[: path.startswith("/")]
        actual = self._folder(parent)
        found = None if actual is None else self._name(actual, name)
        if found is None or (found == name and actual == parent):
            return path, found is not None
        return os.path.join(actual, found), True

    def _plain(self, path: str) -> str:
        """Return a path without `.` and empty components, relative to the root if it is below it."""
        for beginning in self._beginnings:
            if path.startswith(beginning):
                path = path[len(beginning) :].lstrip("/")
                break
        plain = "/".join(step for step in path.split("/") if step not in ("", "."))
        return f"/{plain}" if path.startswith("/") else plain

    def _folder(self, path: str) -> str | None:
        """Return a folder as stored on the disk; None if it does not exist."""
        if path not in self._folders:
            self._folders[path] = self._look_up(path)
        return self._folders[path]

    def _look_up(self, path: str) -> str | None:
        try:
            with os.scandir(os.path.join(self._root, path)) as entries:
                self._names[path] = frozenset(entry.name for entry in entries)
            return path
        except (OSError, ValueError):
            if path in ("", "/"):
                return None
        parent, _, name = path.rpartition("/")
        above = self._folder(parent or path[: path.startswith("/")])
        found = None if above is None else self._name(above, name)
        actual = None if found is None else os.path.join(above, found)
        return None if actual in (None, path) else self._folder(actual)

    def _name(self, folder: str, name: str) -> str | None:
        """Return a name in a folder as stored on the disk; None if no name or more than one fits."""
        if name in self._names[folder]:
            return name
        if folder not in self._folded:
            self._folded[folder] = {}
            for one in self._names[folder]:
                self._folded[folder].setdefault(_normal(one).casefold(), []).append(one)
        alike = self._folded[folder].get(_normal(name).casefold(), [])
        if len(alike) > 1:
            alike = [one for one in alike if _normal(one) == _normal(name)]
        return alike[0] if len(alike) == 1 else None


def _normal(name: str) -> str:
    return unicodedata.normalize("NFC", name)
