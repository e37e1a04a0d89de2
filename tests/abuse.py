"""Damage of every kind to the files that fercli reads, drawn from a seed, and the reactions that a command may have.

A `Ground` is a folder with everything that a user's folder has: datasets, prepared stores, a trained, adapted and
evaluated run, a model in one file, a spec, images and videos. `draw` returns a case by seed and number: the damage, and
the command that runs on it. The ground is restored after each case.
"""

from __future__ import annotations

import io
import json
import os
import re
import resource
import shutil
import stat
import struct
import time
import traceback
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from click.testing import Result
from clips import write_clip
from conftest import TINY, merge, run
from trees import AFFECTNET, encoded, write

from fercli.__main__ import _told

#: Limits of a command: CPU seconds, lines on stderr, and bytes of memory growth.
LONGEST_S, MOST_LINES, MOST_BYTES = 10, 16, 600 << 20

#: Words of Python's own errors, which must not appear in fercli's messages.
_PYTHON = re.compile(
    r"Traceback|unexpected error in fercli|NoneType|has no attribute|not subscriptable|unexpected keyword|codec can't"
    r"|not iterable|list index|object is not|unsupported operand|Errno "
)
#: Control characters that a terminal would interpret.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\x80-\x9f]")

#: What `fercli evaluate` may write.
_SCORED = ("runs/tiny/report", "runs/tiny/source/outputs", "runs/tiny/adapt-jaffe/outputs")
#: {name used by the cases: (arguments of the command, paths that it may write)}.
COMMANDS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "predict": (("predict", "faces", "--run", "runs/tiny", "--workers", "1"), ()),
    "predict source": (("predict", "faces", "--run", "runs/tiny/source", "--workers", "1"), ()),
    "predict file": (("predict", "faces", "--run", "model.safetensors", "--workers", "1"), ()),
    "predict media": (("predict", "media", "--run", "runs/tiny", "--workers", "1", "--csv", "out/a.csv"), ("out",)),
    "annotate": (
        ("predict", "media", "--run", "runs/tiny", "--workers", "1", "--jsonl", "out/a.jsonl", "--annotate", "out/d"),
        ("out",),
    ),
    "smooth": (("predict", "media", "--run", "runs/tiny", "--workers", "1", "--smooth", "0.3", "--every", "2"), ()),
    "evaluate": (("evaluate", "--json"), _SCORED),
    "report": (("evaluate", "--report"), _SCORED),
    "other rules": (("evaluate", "--json", "--decision", "fused", "--select", "last"), _SCORED),
    "evaluate model": (
        ("evaluate", "--model", "model.safetensors", "--target", "jaffe", "--json"),
        ("runs/model-model", "runs/model-adapt-jaffe"),
    ),
    "compare": (("compare", "tiny", "--json", "--faces", "3"), ()),
    "compare two": (("compare", "runs/tiny/source", "runs/tiny/adapt-jaffe", "--csv", "out/changed.csv"), ("out",)),
    "train-source": (("train-source", "--json"), ("runs/tiny",)),
    "adapt": (("adapt", "--json"), ("runs/tiny",)),
    "longer": (("adapt", "--json", "--set", "adapt.epochs=3"), ("runs/tiny",)),
    "train longer": (("train-source", "--json", "--set", "train_source.epochs=3"), ("runs/tiny",)),
    "export": (("export", "runs/tiny", "--out", "out/model.pt2", "--format", "torch"), ("out",)),
    "export file": (("export", "model.safetensors", "--out", "out/model.pt2", "--format", "torch"), ("out",)),
    "inspect": (("weights", "inspect", "runs/tiny/adapt-jaffe/best.ckpt", "--json"), ()),
    "inspect fit": (("weights", "inspect", "runs/tiny/source/best.ckpt", "-c", "fercli.yaml"), ()),
    "inspect file": (("weights", "inspect", "model.safetensors"), ()),
    "weights export": (("weights", "export", "runs/tiny/adapt-jaffe", "out/model.pkl"), ("out",)),
    "weights export half": (
        ("weights", "export", "runs/tiny/adapt-jaffe", "out/m.safetensors", "--format", "fercli", "--half"),
        ("out",),
    ),
    "prepare": (("prepare",), ("prepared",)),
    "verify": (("prepare", "--verify"), ()),
    "repair": (("prepare", "--repair"), ("prepared",)),
    "sweep": (("sweep", "sweep.yaml", "--dry-run"), ()),
    "doctor": (("doctor",), ()),
}
#: Commands whose standard output is always the same if nothing is damaged.
ANSWERS = ("predict", "predict source", "predict file", "evaluate", "compare")


@dataclass
class Case:
    """One case.

    Attributes:
        about: what is damaged and how.
        damage: function that does the damage, given the ground's folder.
        arguments: the command.
        writes: what it may write, as the beginnings of paths.
        expect: "any": exit code 0, 1 or 2; "same": 1 or 2, or 0 with the undamaged output; "good": 0; "bad": 1 or 2.
        answer: name of the command whose undamaged output is compared.
    """

    about: str
    damage: Callable[[Path], None]
    arguments: tuple[str, ...]
    writes: tuple[str, ...] = ()
    expect: str = "any"
    answer: str = ""
    stdin: bytes | None = None


class Ground:
    """The folder, its listing, and the copy from which it is restored.

    Attributes:
        work: the folder, which is the working folder of the commands.
        answers: output of the commands in `ANSWERS` if nothing is damaged.
    """

    def __init__(self, folder: Path):
        self.work, self._copy, self._around = folder / "a/work", folder / "copy", folder / "a"
        self.work.mkdir(parents=True)
        os.chdir(self.work)
        _fill(self.work)
        self.answers = {name: run(*COMMANDS[name][0]).stdout for name in ANSWERS}
        shutil.copytree(self.work, self._copy, symlinks=True)
        self._listing = self._list()

    def _list(self) -> dict[str, tuple]:
        found = {}
        for parent, folders, files in os.walk(self._around):
            for name in [*folders, *files]:
                path = os.path.join(parent, name)
                about = os.lstat(path)
                kind = stat.S_IFMT(about.st_mode)
                more = () if kind == stat.S_IFDIR else (about.st_size, about.st_mtime_ns, about.st_ino)
                found[os.path.relpath(path, self.work)] = (kind, *more)
        return found

    def changed(self, since: dict[str, tuple] | None = None) -> set[str]:
        """Return the paths, relative to the ground's folder, of all that was created, removed or written."""
        now, before = self._list(), self._listing if since is None else since
        return {path for path in {*now, *before} if now.get(path) != before.get(path)}

    def restore(self) -> None:
        """Restore everything."""
        os.chdir(self.work)
        for path in sorted(self.changed(), key=len):
            here, whole = self.work / path, self._copy / path
            if here.is_symlink() or (os.path.lexists(here) and not here.is_dir()):
                here.unlink()
            elif here.is_dir() and not whole.is_dir():
                shutil.rmtree(here)
            if ".." in path or not whole.exists():
                continue
            if whole.is_dir():
                here.mkdir(exist_ok=True, parents=True)
            else:
                here.parent.mkdir(exist_ok=True, parents=True)
                shutil.copy2(whole, here)
        self._listing = self._list()

    def meet(self, case: Case) -> list[str]:
        """Do the damage, run the command, and return its faults ([] if all is well)."""
        case.damage(self.work)
        before, begun = self._list(), time.process_time()
        held = _reset_peak()
        result = run(*case.arguments, stdin=case.stdin, catch=True)
        seconds, grown = time.process_time() - begun, _peak() - held
        faults = _faults(case, result, self.answers.get(case.answer))
        if seconds > LONGEST_S:
            faults.append(f"it took {seconds:.1f} s")
        if grown > MOST_BYTES:
            faults.append(f"it grew by {grown >> 20} MiB")
        strayed = [
            path
            for path in sorted(self.changed(before))
            if not any(path == part or path.startswith(part + "/") for part in case.writes)
        ]
        if strayed:
            faults.append(f"it wrote {', '.join(strayed[:5])}")
        return faults


def _faults(case: Case, result: Result, answer: str | None) -> list[str]:
    faults, code, told = [], result.exit_code, result.stderr
    problem = result.exception
    if problem is not None and not isinstance(problem, SystemExit):
        code = 1
        if isinstance(problem, Exception):
            told += f"error: {_told(problem)}\n"
        where = "".join(traceback.format_exception(problem)[-3:])
        if not isinstance(problem, Exception) or "unexpected error in fercli" in told:
            faults.append(f"{type(problem).__name__} escaped: {where}")
    if code not in (0, 1, 2):
        faults.append(f"exit code {code}")
    lines = [line for line in told.splitlines() if line.strip()]
    if code:
        verdict = case.arguments[:2] == ("weights", "inspect") or case.arguments[0] in ("doctor", "datasets")
        if not any(line.startswith("error: ") for line in lines) and not (verdict and result.stdout):
            faults.append("no error line")
        if len(lines) > MOST_LINES:
            faults.append(f"{len(lines)} lines on stderr")
    if lines and max(map(len, lines)) > 3000:
        faults.append(f"a line of {max(map(len, lines))} characters")
    for name, text in (("stderr", told), ("stdout", result.stdout)):
        if found := _PYTHON.search(text):
            faults.append(f"{found.group()!r} on {name}")
        if found := _CONTROL.search(text):
            faults.append(f"{found.group()!r} on {name}")
    if "--json" in case.arguments or case.arguments[0] == "predict":
        for line in [result.stdout] if "--json" in case.arguments else result.stdout.splitlines():
            try:
                if line.strip():
                    json.loads(line, parse_constant=_no_number)
            except ValueError as failure:
                faults.append(f"no JSON on stdout ({failure})")
    if case.expect == "bad" and not code:
        faults.append("no error")
    if case.expect == "good" and code:
        faults.append(f"exit code {code}, though there is nothing wrong or some inputs are good")
    if case.expect == "same" and not code and lasting(result.stdout) != lasting(answer):
        faults.append("another answer without an error")
    return [f"{fault}\n    said: {' | '.join(lines)[:1500]}" for fault in faults[:1]] + faults[1:]


def lasting(answer: str | None) -> str:
    """Return a JSON document's text without the parts that differ between runs."""
    return re.sub(r'"(created|seconds)": [^,}\n]+', "", answer or "")


def _no_number(name: str) -> Any:
    raise ValueError(name)


def _reset_peak() -> int:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    return _peak()


def _peak() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) << 10
    return 0


# The ground

FERPLUS = "Usage,Image name,neutral,happiness,surprise,sadness,anger,disgust,fear,contempt,unknown,NF"


def _list_more(faces: Sequence[Any]) -> None:
    """Write the lists of AFE, AffectNet and FERPlus, each with its images."""
    tables: dict[str, list[str]] = {
        "afe/annos/TrainTest/Train.csv": [],
        "afe/annos/TrainTest/Test.csv": [],
        "affectnet/Manually_Annotated_file_lists/training.csv": [AFFECTNET],
        "affectnet/Manually_Annotated_file_lists/validation.csv": [AFFECTNET],
        "ferplus/fer2013new.csv": [FERPLUS],
    }
    afe, afe_test, training, validation, votes = tables.values()
    for number, face in enumerate(faces):
        name, (left, top, right, bottom) = f"film/{number}.jpg", map(round, face.box)
        picture = encoded(face.image, "JPEG", quality=92)
        write(Path("data/afe/src/image"), name, picture)
        write(Path("data/affectnet/Manually_Annotated_Images"), name, picture)
        (afe if number < 7 else afe_test).append(f"{name} {left} {top} {right} {bottom} {number % 7}")
        points = ";".join(f"{value:.2f}" for value in np.tile(face.landmarks, (14, 1))[:68].ravel().tolist())
        row = f"{name},{left},{top},{right - left},{bottom - top},{points},{number % 7},0.25,0.25"
        (training if number < 7 else validation).append(row)
        usage = ("Training", "PublicTest", "PrivateTest")[(number >= 7) + (number >= 10)]
        counts = [7 if column == number % 7 else int(column in (7, 8, 9)) for column in range(10)]
        votes.append(f"{usage},fer{number:07d}.png,{','.join(map(str, counts))}")
    for file, lines in tables.items():
        write(Path("data"), file, "\n".join(lines) + "\n")
    shutil.copy("data/fer2013/fer2013.csv", "data/ferplus/fer2013.csv")


def _fill(work: Path) -> None:
    import drawn

    from fercli.synthetic import writers
    from fercli.synthetic.domains import LAB, STUDIO
    from fercli.synthetic.render import render, sample

    tree = merge(
        TINY,
        {
            **{f"paths.{name}": name for name in ("data", "prepared", "runs")},
            "adapt.options": {"hidden": 8},
            "data.datasets": {"listed": {"reader": "csv", "root": "data/csv"}},
        },
    )
    Path("fercli.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
    sweep = {"sweep": {"methods": {"dann": None}, "seeds": [0]}}
    Path("sweep.yaml").write_text(yaml.safe_dump(merge({**tree, "name": "swept"}, sweep), sort_keys=False))
    faces = list(sample(STUDIO, 14, 5, range(30, 34)))
    small = list(sample(drawn.THUMBNAIL, 14, 6, range(30, 34)))
    writers.write_raf_db("data/raf-db", sample(STUDIO, 28, 0, range(12)), sample(STUDIO, 14, 1, range(12, 18)))
    writers.write_jaffe("data/jaffe", sample(LAB, 14, 2, range(20, 26)))
    writers.write_csv("data/csv", {"train": faces[:7], "test": faces[7:]})
    drawn.write_fer2013("data/fer2013", small[:7], small[7:10], small[10:])
    drawn.write_expw("data/expw", faces)
    _list_more(faces)
    for command in ("prepare", "train-source", "adapt", "evaluate"):
        done = run(command, "--quiet", *(["--report"] if command == "evaluate" else []))
        assert done.exit_code == 0, done.stderr
    done = run("weights", "export", "runs/tiny/adapt-jaffe", "model.safetensors", "--format", "fercli")
    assert done.exit_code == 0, done.stderr
    for folder in ("faces", "media", "out"):
        Path(folder).mkdir()
    for number, face in enumerate(faces[:3]):
        Path(f"faces/{number}.jpg").write_bytes(encoded(face.image, "JPEG", quality=95))
    image = faces[4].image
    for ending, form in (("jpg", "JPEG"), ("png", "PNG"), ("webp", "WEBP"), ("bmp", "BMP"), ("tiff", "TIFF")):
        Path(f"media/a.{ending}").write_bytes(encoded(image, form))
    Path("media/b.gif").write_bytes(encoded(image, "GIF"))
    Path("media/b.ppm").write_bytes(encoded(image, "PPM"))
    frames = [render(STUDIO, 40, expression, 3).image[:200, :200] for expression in (6, 1, 1)]
    write_clip(Path("media/c.mp4"), frames)
    write_clip(Path("media/c.avi"), frames, codec="mjpeg")
    write_clip(Path("media/c.mkv"), frames)
    Path("media/z.jpg").write_bytes(encoded(faces[5].image, "JPEG", quality=95))


# Damage to bytes

_WHOLE = {
    "empty": b"",
    "[]": b"[]",
    "null": b"null",
    "{}": b"{}",
    "a number": b"0",
    "a text": b'"x"',
    "a page": b"<!DOCTYPE html><html><body>404 Not Found</body></html>",
    "an LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12345\n",
    "zeros": bytes(5000),
    "UTF-16": "\ufeff[1, 2]".encode("utf-16"),
    "deep brackets": b"[" * 5000,
    "deep tables": b'{"a":' * 5000,
}


def spoil(data: bytes, rng: np.random.Generator, whole: bool = True) -> tuple[str, bytes]:
    """Damage bytes somewhere, or replace all of them (`whole`). Return what was done, and the bytes."""
    size = len(data)
    at = int(rng.integers(size)) if size else 0
    length = int(rng.integers(1, max(2, min(size, 8192))))
    noise = rng.integers(0, 256, length, np.uint8).tobytes()
    ways: list[tuple[str, Callable[[], bytes]]] = [
        (f"bit {at}.3 flipped", lambda: data[:at] + bytes([data[at] ^ 8]) + data[at + 1 :] if size else b"\x08"),
        (f"{length} bytes at {at} random", lambda: (data[:at] + noise + data[at + length :])[: max(size, 1)]),
        (f"{length} bytes at {at} zero", lambda: (data[:at] + bytes(length) + data[at + length :])[: max(size, 1)]),
        (f"cut at {at}", lambda: data[:at]),
        (f"cut {length} before the end", lambda: data[: max(0, size - length)]),
        (f"{length} bytes at {at} gone", lambda: data[:at] + data[at + length :]),
        (f"{length} random bytes inserted at {at}", lambda: data[:at] + noise + data[at:]),
        (f"halves swapped at {at}", lambda: data[at:] + data[:at]),
        (f"{length} random bytes appended", lambda: data + noise),
    ]
    if whole:
        ways += [(f"{name} in its place", lambda value=value: value) for name, value in _WHOLE.items()]
        ways += [(f"{length} random bytes in its place", lambda: noise)]
    about, make = ways[int(rng.integers(len(ways)))]
    return about, make()


def replaced(name: str, rng: np.random.Generator, whole: bool = True) -> tuple[str, Callable[[Path], None]]:
    """Damage the bytes of a file, or replace it with something that is not a file (`whole`)."""
    way = int(rng.integers(5 if whole else 1, 24))
    if way == 1:
        return f"{name} gone", lambda work: (work / name).unlink()
    if way == 2:
        return f"{name} a folder", lambda work: ((work / name).unlink(), (work / name).mkdir())
    if way == 3:
        return f"{name} a link to itself", lambda work: _link(work / name, Path(name).name)
    if way == 4:
        return f"{name} a link to nowhere", lambda work: _link(work / name, "nowhere")
    state = rng.bit_generator.state

    def damage(work: Path) -> None:
        rng.bit_generator.state = state
        (work / name).write_bytes(spoil((work / name).read_bytes(), rng, whole)[1])

    rng_of = np.random.default_rng()
    rng_of.bit_generator.state = state
    return f"{name}: {spoil(Path(name).read_bytes(), rng_of, whole)[0]}", damage


def _link(path: Path, to: str) -> None:
    path.unlink()
    path.symlink_to(to)


# Unexpected values

_VALUES: tuple[Any, ...] = (
    *(None, True, -1, 0, 1, 7, 2**31, 2**63, 2**64, -(2**70), 1e400, float("nan"), 1.5, "", " ", "nan", "²", "--5"),
    *("\x1b[31mred\x07", "../../pwn", "/", "a\0b", "\ud800", "os:system", "evil_mod:X", "happy", "=1+1"),
    *([], {}, [[]], [None], [1, 2], {"": None}, {"a": {"b": []}}, [["x"] * 3] * 3),
)


def value_of(rng: np.random.Generator) -> Any:
    """Return one of these values, or a very long one."""
    at = int(rng.integers(len(_VALUES) + 3))
    if at < len(_VALUES):
        return _VALUES[at]
    return ("x" * 5000, 10**4999, [0] * 5000)[at - len(_VALUES)]


def places(tree: Any, path: tuple = ()) -> list[tuple]:
    """Return the path of every value in a nested document, and of the first three items of lists."""
    found = [path] if path else []
    items = tree.items() if isinstance(tree, dict) else enumerate(tree[:3]) if isinstance(tree, list) else ()
    for key, value in items:
        found += places(value, (*path, key))
    return found


def with_value(tree: Any, path: Sequence[Any], value: Any) -> Any:
    """Return a copy of a document with this value at a path. The value `GONE` removes what is there."""
    if not path:
        return value
    copy = dict(tree) if isinstance(tree, dict) else list(tree)
    if len(path) == 1 and value is GONE:
        del copy[path[0]]
    else:
        copy[path[0]] = with_value(copy[path[0]], path[1:], value)
    return copy


GONE = object()


def shown(value: Any) -> str:
    try:
        return f"{value!r:.60}" if value is not GONE else "gone"
    except ValueError:  # a number with too many digits
        return "a number of 5,000 digits"


def _changed(document: Any, paths: Sequence[tuple], rng: np.random.Generator) -> tuple[str, Any]:
    """Change or remove the value at one of these paths. Return what was done, and the document."""
    path = _pick(paths, rng)
    value = GONE if rng.random() < 0.2 and path else value_of(rng)
    return f"{'.'.join(map(str, path))} {shown(value)}", with_value(document, path, value)


def json_changed(name: str, rng: np.random.Generator) -> tuple[str, Callable[[Path], None]]:
    """Change one value of a JSON document."""
    document = json.loads(Path(name).read_text())
    about, changed = _changed(document, places(document) or [()], rng)
    return f"{name}: {about}", lambda work: (work / name).write_text(_dumped(changed))


def _dumped(document: Any) -> str:
    import sys

    limit = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(0)
    try:
        return json.dumps(document)
    finally:
        sys.set_int_max_str_digits(limit)


def lines_changed(name: str, rng: np.random.Generator) -> tuple[str, Callable[[Path], None]]:
    """Change one line of a JSON Lines file."""
    lines = Path(name).read_text().splitlines()
    at = int(rng.integers(len(lines)))
    document = json.loads(lines[at])
    about, changed = _changed(document, [(), *places(document)], rng)
    lines[at] = _dumped(changed)
    return f"{name}: line {at + 1} {about}", lambda work: (work / name).write_text("\n".join(lines) + "\n")


_CELLS: tuple[str, ...] = (
    *("", " ", "²", "--5", "-1", "7", "99999999999999999999", "1e400", "nan", "inf", "x", "None", "0x1", "١", "½"),
    *("../../../etc/passwd", "/", ".", "a\0b", "\x1b[31m", "=1+1", '"', '"",', "a\rb", "\ufeff", "\udcff", "🙂" * 50),
    *("9" * 5000, "x" * 200_000, "1 2 3", "1;2;3", ",", ",,,,,,,,", "\n\n", "\t", "happy", "contempt", "test", "#"),
)


def table_changed(name: str, rng: np.random.Generator) -> tuple[str, Callable[[Path], None]]:
    """Give a text table a strange cell, row or heading."""
    text = Path(name).read_text(encoding="utf-8", errors="surrogateescape")
    separator = next((mark for mark in (",", "\t", ";", " ") if mark in text.split("\n", 1)[0]), ",")
    rows = [line.split(separator) for line in text.splitlines()] or [[""]]
    row = int(rng.integers(len(rows))) if rng.random() < 0.75 else 0
    column = int(rng.integers(len(rows[row])))
    cell = _pick(_CELLS, rng)
    way = int(rng.integers(8))
    if way == 0:
        rows = [[c for i, c in enumerate(cells) if i != column] for cells in rows]
        about = f"column {column} gone"
    elif way == 1:
        rows[row] = rows[row] + [cell]
        about = f"row {row} longer by {shown(cell)}"
    elif way == 2:
        del rows[row]
        about = f"row {row} gone"
    elif way == 3:
        rows[row] = rows[row][:column]
        about = f"row {row} cut to {column}"
    elif way == 4:
        rows = [[cell if i == column and n else c for i, c in enumerate(cells)] for n, cells in enumerate(rows)]
        about = f"column {column} all {shown(cell)}"
    elif way == 5:
        rows.insert(row, list(rows[row]))
        about = f"row {row} twice"
    else:
        rows[row][column] = cell
        about = f"row {row}, column {column} {shown(cell)}"
    data = "\n".join(separator.join(cells) for cells in rows).encode("utf-8", "surrogateescape") + b"\n"
    return f"{name}: {about}", lambda work: (work / name).write_bytes(data)


def array_changed(name: str, rng: np.random.Generator) -> tuple[str, Callable[[Path], None]]:
    """Change the type, shape or header of an .npy file."""
    array = np.load(name)
    shape = array.shape
    ways: list[tuple[str, Callable[[], bytes]]] = [
        ("no rows", lambda: _npy(array[:0])),
        ("one row fewer", lambda: _npy(array[:-1])),
        ("one row more", lambda: _npy(np.concatenate([array, array[-1:]]))),
        ("rows in another order", lambda: _npy(array[::-1])),
        ("one number", lambda: _npy(np.array(5))),
        ("flat", lambda: _npy(array.reshape(-1))),
        ("one axis more", lambda: _npy(array[..., None])),
        ("as float64", lambda: _npy(np.zeros(shape, np.float64))),
        ("as text", lambda: _npy(np.full(shape[:1], "x"))),
        ("as objects", lambda: _npy(np.full(shape[:1], None, object))),
        ("as complex", lambda: _npy(np.zeros(shape, np.complex64))),
        ("as records", lambda: _npy(np.zeros(shape[:1], [("a", "i4"), ("b", "f4")]))),
        ("in Fortran order", lambda: _npy(np.asfortranarray(array) if array.ndim > 1 else array[::-1])),
        ("NaN", lambda: _npy(np.full(shape, np.nan, np.float32))),
        ("all 99", lambda: _npy(np.full(shape, 99).astype(array.dtype))),
        ("all -1", lambda: _npy(np.full(shape, -1).astype(array.dtype) if array.dtype != np.uint8 else array ^ 1)),
        ("a header that asks for 2^45 rows", lambda: _header(array, (1 << 45, *shape[1:]))),
        ("a header with negative rows", lambda: _header(array, (-5, *shape[1:]))),
        ("a header without a shape", lambda: _raw_header("{'descr': '|u1', 'fortran_order': False}")),
        ("a header that is code", lambda: _raw_header("__import__('os').system('touch pwned')")),
        ("a header of brackets", lambda: _raw_header("(" * 3000)),
        ("version 9", lambda: b"\x93NUMPY\x09\x00" + _npy(array)[8:]),
        ("a zip", lambda: _zip({"a.npy": _npy(array)})),
    ]
    about, make = _pick(ways, rng)
    return f"{name}: {about}", lambda work: (work / name).write_bytes(make())


def _npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


def _header(array: np.ndarray, shape: tuple[int, ...]) -> bytes:
    descr = np.lib.format.dtype_to_descr(array.dtype)
    return _raw_header(repr({"descr": descr, "fortran_order": False, "shape": shape})) + array.tobytes()


def _raw_header(text: str) -> bytes:
    text = text.ljust(118) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode()


def _zip(members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return buffer.getvalue()


# Damage to checkpoints


def _explode() -> list[Any]:
    """Return nested shared lists: a hundred bytes per level, but ten times as many items to walk."""
    nested: list[Any] = ["x"]
    for _ in range(12):
        nested = [nested] * 10
    return nested


def _deep() -> list[Any]:
    nested: list[Any] = []
    for _ in range(400):
        nested = [nested]
    return nested


#: Values for any key of a checkpoint.
_STATE_VALUES: dict[str, Callable[[], Any]] = {
    "a virtual tensor of 2^38": lambda: torch.zeros(1).expand(1 << 38),
    "nested shared lists": _explode,
    "lists 400 deep": _deep,
    "a sparse tensor": lambda: torch.eye(3).to_sparse(),
    "a meta tensor": lambda: torch.empty(3, device="meta"),
    "a tensor": lambda: torch.arange(7.0),
    "a complex tensor": lambda: torch.zeros(7, 7, dtype=torch.complex64),
    "a NaN tensor": lambda: torch.full((7, 7), float("nan")),
    "a tensor out of range": lambda: torch.full((7, 7), 5.0),
    "bytes": lambda: b"\xff\xfe",
    "a device": lambda: torch.device("cuda:7"),
    "a type": lambda: torch.float16,
}


def checkpoint_changed(name: str, rng: np.random.Generator) -> tuple[str, Callable[[Path], None]]:
    """Change a value of a checkpoint, and write it with torch.save."""
    state = torch.load(name, weights_only=True)
    way = int(rng.integers(10))
    if way < 4:  # weights
        key = _pick(list(state["network"]), rng)
        old = state["network"][key]
        about, make = _pick(
            [
                ("NaN", lambda: torch.full_like(old.float(), float("nan"))),
                ("infinite", lambda: torch.full_like(old.float(), float("inf"))),
                ("one NaN", lambda: _with_nan(old.float())),
                ("integers", lambda: torch.ones_like(old, dtype=torch.int32)),
                ("booleans", lambda: torch.ones_like(old, dtype=torch.bool)),
                ("complex", lambda: old.to(torch.complex64)),
                ("of another shape", lambda: torch.zeros((*old.shape, 2))),
                ("virtual 2^38", lambda: torch.zeros(1).expand(1 << 38)),
                ("without numbers", lambda: torch.empty(old.shape, device="meta")),
                ("sparse", lambda: old.float().reshape(1, -1).to_sparse()),
                ("a text", lambda: "x"),
                ("nothing", lambda: None),
                ("a list", lambda: old.flatten()[:5].tolist()),
                ("gone", lambda: GONE),
            ],
            rng,
        )
        state["network"] = with_value(dict(state["network"]), [key], make())
        return f"{name}: network.{key} {about}", lambda work: torch.save(state, work / name)
    if way < 9:
        path = [_pick(list(state), rng)]
        if path[0] in ("spec", "best", "meter", "optimizer", "rng", "method") and rng.random() < 0.7:
            path += _pick([p for p in places(state[path[0]]) if len(p) < 4] or [()], rng)
        if rng.random() < 0.15:
            about, value = "gone", GONE
        elif rng.random() < 0.5:
            about = _pick(list(_STATE_VALUES), rng)
            value = _STATE_VALUES[about]()
        else:
            value = value_of(rng)
            about = shown(value)
        changed = with_value(state, path, value)
        return f"{name}: {'.'.join(map(str, path))} {about}", lambda work: torch.save(changed, work / name)
    about, document = _pick(
        [
            ("a list", [1, 2]),
            ("a tensor", torch.zeros(3)),
            ("nothing", None),
            ("its weights alone", dict(state["network"])),
            ("a code", {"network": {}, "spec": {}}),
            ("keys that are numbers", {1: 2, (3, 4): 5, "network": {1: torch.zeros(2)}, "spec": {}}),
            ("nested shared lists", {**state, "more": _explode()}),
            ("itself in a list", [state]),
        ],
        rng,
    )
    return f"{name}: {about}", lambda work: torch.save(document, work / name)


def _with_nan(old: torch.Tensor) -> torch.Tensor:
    new = old.clone().reshape(-1)
    new[len(new) // 2] = float("nan")
    return new.reshape(old.shape)


def archive_changed(name: str, rng: np.random.Generator) -> tuple[str, Callable[[Path], None]]:
    """Rebuild a checkpoint's zip archive with a change."""
    with zipfile.ZipFile(name) as archive:
        members = {member: archive.read(member) for member in archive.namelist()}
    numbers = [member for member in members if "/data/" in member]
    one, two = _pick(numbers, rng), _pick(numbers, rng)
    pickled = next(member for member in members if member.endswith("data.pkl"))

    def bomb() -> bytes:
        return _zip({**members, one: bytes(1 << 30)}, zipfile.ZIP_DEFLATED)

    def bomb_pickle() -> bytes:
        return _zip({**members, pickled: members[pickled] + bytes(1 << 30)}, zipfile.ZIP_DEFLATED)

    ways: list[tuple[str, Callable[[], bytes]]] = [
        (f"without {one}", lambda: _zip({key: value for key, value in members.items() if key != one})),
        (f"{one} empty", lambda: _zip({**members, one: b""})),
        (f"{one} longer", lambda: _zip({**members, one: members[one] + bytes(64)})),
        (f"{one} shorter", lambda: _zip({**members, one: members[one][:-3]})),
        (f"{one} with other bits", lambda: _zip({**members, one: bytes(b ^ 64 for b in members[one])})),
        (f"{one} is {two}", lambda: _zip({**members, one: members[two]})),
        ("without data.pkl", lambda: _zip({key: value for key, value in members.items() if key != pickled})),
        ("data.pkl runs a command", lambda: _zip({**members, pickled: b"cos\nsystem\n(S'touch pwned'\ntR."})),
        ("data.pkl damaged", lambda: _zip({**members, pickled: spoil(members[pickled], rng)[1]})),
        ("byteorder damaged", lambda: _zip({key: b"x" if "byteorder" in key else v for key, v in members.items()})),
        ("version damaged", lambda: _zip({key: b"99" if "version" in key else v for key, v in members.items()})),
        ("compressed", lambda: _zip(members, zipfile.ZIP_DEFLATED)),
        ("a zip bomb in its numbers", bomb),
        ("a zip bomb in data.pkl", bomb_pickle),
        ("no members", lambda: _zip({})),
        ("an old pickle", lambda: b"\x80\x02cos\nsystem\nX\x0b\x00\x00\x00touch pwned\x85R."),
    ]
    about, make = _pick(ways, rng)
    return f"{name}: {about}", lambda work: (work / name).write_bytes(make())


def safetensors_changed(name: str, rng: np.random.Generator) -> tuple[str, Callable[[Path], None]]:
    """Change the header or the numbers of a safetensors file."""
    data = Path(name).read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    header, body = json.loads(data[8 : 8 + length]), data[8 + length :]
    way = int(rng.integers(4))
    if way == 0:
        mark = max(header["__metadata__"], key=lambda key: len(header["__metadata__"][key]))  # not the format version
        record = json.loads(header["__metadata__"][mark])
        done, changed = _changed(record, places(record), rng)
        header["__metadata__"][mark] = _dumped(changed)
        about = f"record {done}"
    elif way == 1:
        done, header = _changed(header, places(header), rng)
        about = f"header {done}"
    elif way == 2:
        place = 4 * int(rng.integers(len(body) // 4))
        body, about = body[:place] + b"\xff" * 4 + body[place + 4 :], "a NaN"
    else:
        size = (1 << 60, length + 10**9, 0, length - 1)[int(rng.integers(4))]
        changed = struct.pack("<Q", size) + data[8:]
        return f"{name}: a header of {size} bytes", lambda work: (work / name).write_bytes(changed)
    text = _dumped(header).encode()
    return f"{name}: {about}", lambda work: (work / name).write_bytes(struct.pack("<Q", len(text)) + text + body)


# Damage to specs

_YAML: tuple[str, ...] = (
    *("2024-99-99", "2024-02-30 25:61:61", "!!int abc", "!!float abc", "!!bool maybe", "!!timestamp x", "!!binary '='"),
    *(
        "!!python/object/apply:os.system [touch pwned]",
        "!!set {a}",
        "!!omap [a]",
        "!!pairs x",
        "!unknown 5",
        "!!null x",
    ),
    *("9" * 5000, str(2**64), "-1", "0", ".inf", "-.inf", ".nan", "1e400", "0x", "0b2", "1:99:99", "~", "1_0", "0o9"),
    *(
        "[" * 3000,
        "[" * 900 + "]" * 900,
        "{a: " * 900 + "1" + "}" * 900,
        "[",
        "{",
        '"',
        "'",
        "- -",
        "? [a]",
        "{[a]: b}",
    ),
    *("*nowhere", "&a [*a]", "&a {b: *a}", "<<: 3", "{<<: [1]}", "{<<: {a: 1}}", '"a\\0b"', '"\\ud800"', '"\\x1b[31m"'),
    *("../../pwn", "/", "''", "[]", "{}", "[[]]", "true", "null", "x" * 100_000, "|", ">", "|\n  a", "%", "@x", "`x`"),
    *("²", "--5", "\t", "a: b: c", "# x", "!!str", "!!seq x", "!!map x", "0.1.2", "NO", "evil_mod:X", "1e-400"),
    *("{1: 0.1, 1: 0.2}", "{x: 1}", "{1: x}", "{-1: 0.1}", "{1: .inf}", "{0: 0.1}", "[1, 2, 3]", "1.5", "999999999"),
)
_LAUGH = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12))


def spec_text(name: str, rng: np.random.Generator) -> tuple[str, Callable[[Path], None]]:
    """Change one value or all of a spec."""
    text = Path(name).read_text()
    way = int(rng.integers(8))
    lines = text.splitlines()
    at = int(rng.integers(len(lines)))
    if way < 4 and ":" in lines[at]:
        value = _pick(_YAML, rng)
        lines[at] = lines[at].split(":", 1)[0] + ": " + value
        about = f"line {at + 1} {lines[at].strip():.60}"
    elif way == 4:
        whole = _pick(
            (*_YAML, _LAUGH, "a: 1\n" * 20_000, "\0", "\x85", "---\n---\n", "--- a\n--- b", "name: x\nname: y"), rng
        )
        lines, about = [whole], f"all of it {whole[:40]!r}"
    elif way == 5:
        lines.insert(
            at, _pick(("\t", " x: 1", "  - a", "name: [", "? ", "unknown: 5", "%YAML 9.9", "...", "<<: *x"), rng)
        )
        about = f"one line more {lines[at]!r}"
    elif way == 6:
        lines.insert(0, _LAUGH.rstrip())
        lines.append("more: *a11" if rng.random() < 0.5 else "")
        about = "a billion laughs at the start"
    else:
        return replaced(name, rng)
    data = "\n".join(lines).encode("utf-8", "surrogatepass") + b"\n"
    return f"{name}: {about}", lambda work: (work / name).write_bytes(data)


def setting(rng: np.random.Generator) -> tuple[str, tuple[str, ...]]:
    """Return a --set option with a key of the spec, or an unknown key, and a strange value."""
    from fercli.spec import Spec

    keys = [".".join(map(str, path)) for path in places(json.loads(Spec().model_dump_json()))]
    keys += ["sweep.seeds", "sweep.grid", "sweep.methods", "sweep.jobs", "data.datasets.listed.options.file"]
    keys += ["", ".", "a..b", "adapt.options.threshold", "adapt.options", "model.0", "data.source.0"]
    given = f"{_pick(keys, rng)}={_pick(_YAML, rng)}"
    if rng.random() < 0.08:
        given = _pick(("", "=", "==", "name", "name=", "=x", "a\0b=1", "\ud800=1"), rng)
    return given, ("--set", given)


# Cases


def _pick(choices: Sequence[Any], rng: np.random.Generator) -> Any:
    return choices[int(rng.integers(len(choices)))]


def _case(about: str, damage: Callable[[Path], None], command: str, same: bool = False, **more: Any) -> Case:
    arguments, writes = COMMANDS[command]
    expect = "same" if same and command in ANSWERS else "any"
    return Case(f"{about}; fercli {' '.join(arguments)}", damage, arguments, writes, expect, command, **more)


def _of_checkpoint(rng: np.random.Generator) -> Case:
    stage = _pick(("source", "adapt-jaffe"), rng)
    kind = _pick(("best", "best", "last"), rng)
    name = f"runs/tiny/{stage}/{kind}.ckpt"
    if stage == "source":
        commands = ["predict source", "evaluate", "adapt", "inspect fit"] if kind == "best" else ["train-source"]
    elif kind == "best":
        commands = ["predict", "evaluate", "compare", "export", "inspect", "weights export"]
        commands += ["weights export half", "predict"]
    else:
        commands = ["adapt", "longer"]
    if kind == "last" and stage == "source":
        commands += ["train longer"]
    make = _pick((replaced, checkpoint_changed, checkpoint_changed, archive_changed), rng)
    about, damage = make(name, rng)
    return _case(about, damage, _pick(commands, rng), same=True)


def _of_model_file(rng: np.random.Generator) -> Case:
    about, damage = _pick((replaced, safetensors_changed), rng)("model.safetensors", rng)
    commands = ("predict file", "predict file", "evaluate model", "inspect file", "export file")
    return _case(about, damage, _pick(commands, rng), same=True)


def _of_run(rng: np.random.Generator) -> Case:
    files = sorted(str(p) for p in Path("runs").rglob("*") if p.is_file() and p.suffix != ".ckpt")
    name = _pick(files, rng)
    ways: list[Any] = [replaced]
    if name.endswith(".json"):
        ways += [json_changed] * 2
    elif name.endswith(".jsonl"):
        ways += [lines_changed] * 2
    elif name.endswith(".csv"):
        ways += [table_changed] * 2
    elif name.endswith(".safetensors"):
        ways += [safetensors_changed] * 2
    elif name.endswith(".yaml"):
        ways += [spec_text]
    about, damage = _pick(ways, rng)(name, rng)
    if "/report/" in name:
        commands = ["compare", "compare two", "compare", "evaluate", "report"]
    elif "/outputs/" in name:
        commands = ["evaluate", "other rules", "report", "longer"]
    else:
        commands = ["evaluate", "report", "report", "compare", "predict", "export", "adapt", "train-source", "longer"]
        commands = [c for c in commands if c != "export" or rng.random() < 0.2]
    return _case(about, damage, _pick(commands, rng))


def _of_store(rng: np.random.Generator) -> Case:
    store = _pick(("raf-db", "jaffe"), rng)
    files = sorted(str(p) for p in Path("prepared", store).iterdir() if p.suffix != ".jpg")
    name = _pick([*files, "prepared/quality.json"], rng)
    ways: list[Any] = [replaced]
    if name.endswith(".json"):
        ways += [json_changed] * 3
    elif name.endswith(".csv"):
        ways += [table_changed]
    elif name.endswith(".npy"):
        ways += [array_changed]
    about, damage = _pick(ways, rng)(name, rng)
    checked = name.endswith(("labels.npy", "splits.npy", "manifest.csv", "digests.npy", "keys.npy"))
    commands = ("evaluate", "report", "adapt", "train-source", "longer", "train longer", "prepare", "verify", "repair")
    return _case(about, damage, _pick((*commands, "doctor", "compare"), rng), same=checked)


def _of_spec(rng: np.random.Generator) -> Case:
    about, damage = spec_text("fercli.yaml", rng)
    if rng.random() < 0.25:
        about, damage = spec_text("sweep.yaml", rng)
        return _case(about, damage, "sweep")
    commands = ("doctor", "evaluate", "verify", "inspect fit", "compare", "predict")
    case = _case(about, damage, _pick(commands, rng))
    if case.answer == "predict":
        case.arguments = (*case.arguments, "-c", "fercli.yaml")
    case.writes = ("runs", "prepared", "../pwn", "out")
    return case


def _of_setting(rng: np.random.Generator) -> Case:
    given, option = setting(rng)
    command = _pick(("doctor", "evaluate", "verify", "sweep", "inspect fit", "compare", "predict"), rng)
    arguments = COMMANDS[command][0]
    about = f"fercli {' '.join(arguments)} --set {given!r:.200}"
    return Case(about, lambda work: None, (*arguments, *option), ("runs", "prepared"))


_READERS = {
    "csv": ("csv", ("data/csv/faces.csv",)),
    "fer2013": ("fer2013", ("data/fer2013/fer2013.csv",)),
    "ferplus": ("ferplus", ("data/ferplus/fer2013new.csv", "data/ferplus/fer2013.csv")),
    "expw": ("expw", ("data/expw/label/label.lst",)),
    "affectnet": ("affectnet", ("data/affectnet/Manually_Annotated_file_lists/training.csv",)),
    "afe": ("afe", ("data/afe/annos/TrainTest/Train.csv",)),
    "raf-db": ("raf-db", ("data/raf-db/EmoLabel/list_patition_label.txt",)),
}


def _of_list(rng: np.random.Generator) -> Case:
    reader, names = _READERS[_pick(list(_READERS), rng) if rng.random() < 0.6 else "csv"]
    about, damage = _pick((replaced, table_changed, table_changed), rng)(_pick(names, rng), rng)
    root = f"data/{reader}"
    options: tuple[str, ...] = ()
    if reader == "csv" and rng.random() < 0.3:
        key = _pick(
            ("label_column", "path_column", "split_column", "box", "labels", "file", "images", "score", "adapt"), rng
        )
        options = ("--option", f"{key}={_pick(_YAML, rng)}")
    if rng.random() < 0.6:
        arguments, writes = ("datasets", "check", reader, root, *options), ()
    else:
        arguments = ("prepare", "--dataset", reader, "--root", root, "--no-report", *options)
        writes = ("prepared",)
    return Case(f"{about}; fercli {' '.join(arguments)[:300]}", damage, arguments, writes)


def _of_media(rng: np.random.Generator) -> Case:
    files = sorted(str(p) for p in Path("media").iterdir() if p.name != "z.jpg")
    name = _pick(files, rng)
    if rng.random() < 0.75:
        about, damage = replaced(name, rng)
    else:
        width, height = _pick(((1, 1), (1, 300), (300, 1), (2, 2), (3, 70000), (70000, 3), (16, 16), (65535, 1)), rng)
        mode = _pick(("L", "RGB", "1", "I;16", "P", "RGBA", "CMYK", "F"), rng)
        about, damage = f"{name} {width}x{height} {mode}", lambda work: _odd_picture(work / name, width, height, mode)
    case = _case(about, damage, _pick(("predict media", "annotate", "smooth"), rng))
    case.expect = "good"
    return case


def _odd_picture(path: Path, width: int, height: int, mode: str) -> None:
    from PIL import Image

    if path.suffix in (".mp4", ".avi", ".mkv"):
        frames = [
            np.full((max(2, height % 999 // 2 * 2), max(2, width % 999 // 2 * 2), 3), i, np.uint8) for i in range(2)
        ]
        path.write_bytes(b"")
        write_clip(path, frames, codec="mjpeg" if path.suffix == ".avi" else "mpeg4")
        return
    image = Image.new(mode, (width, height))
    for form in ("PNG", "TIFF", "PPM"):
        try:
            path.write_bytes(encoded(image, form))
            return
        except (OSError, KeyError, ValueError):
            continue


def _of_stdin(rng: np.random.Generator) -> Case:
    name = _pick(sorted(str(p) for p in Path("media").iterdir()), rng)
    about, data = spoil(Path(name).read_bytes(), rng)
    arguments = ("predict", "-", "--run", "runs/tiny", "--workers", "1")
    return Case(f"{name} on stdin, {about}; fercli {' '.join(arguments)}", lambda work: None, arguments, stdin=data)


FAMILIES: tuple[Callable[[np.random.Generator], Case], ...] = (
    *(_of_checkpoint, _of_run, _of_store, _of_spec, _of_list, _of_checkpoint, _of_media, _of_setting, _of_run),
    *(_of_store, _of_model_file, _of_stdin),
)


def draw(seed: int, number: int) -> Case:
    """Return the case of a seed and a number. The working folder must be an undamaged ground's."""
    rng = np.random.default_rng([seed, number])
    return FAMILIES[number % len(FAMILIES)](rng)
