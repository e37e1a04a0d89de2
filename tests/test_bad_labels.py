"""Faulty label files through the command line: counted, rejected with a reason, or one clear error line."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import drawn
import pytest
import yaml
from conftest import TINY, merge, run
from trees import encoded, write

from fercli.store import read_manifest
from fercli.synthetic import writers
from fercli.synthetic.render import STUDIO, Face, render


@pytest.fixture(scope="module")
def faces() -> list[Face]:
    return [render(STUDIO, 1, label, 3) for label in range(7)]


@dataclass(frozen=True)
class Case:
    """A tree with a fault, and the expected result.

    `spoil` changes the contents of the label file (bytes to bytes) or, if it takes the root, the tree. `reasons` has
    the beginning of the reason of each rejected record, by id. `left_out` has what the reader counts.
    """

    dataset: str
    what: str
    spoil: Callable[[Any], Any]
    kept: int
    reasons: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, int] = field(default_factory=dict)


LABELS = {
    "raf-db": "EmoLabel/list_patition_label.txt",
    "expw": "label/label.lst",
    "fer2013": "fer2013.csv",
    "list": "labels.csv",
}
READERS = {"list": "csv"}

#: Number of faces in each tree before it is damaged.
WHOLE = {"raf-db": 5, "expw": 4, "fer2013": 5, "list": 4}


@pytest.fixture(scope="module")
def trees(tmp_path_factory, faces) -> Path:
    folder = tmp_path_factory.mktemp("trees")
    writers.write_raf_db(folder / "raf-db", faces[:3], faces[3:5])
    drawn.write_expw(folder / "expw", faces[:4])
    tight = [replace(f, image=f.image[slice(*_edges(f, 1)), slice(*_edges(f, 0))]) for f in faces[:5]]
    drawn.write_fer2013(folder / "fer2013", tight[:3], tight[3:4], tight[4:])
    (folder / "list/images").mkdir(parents=True)
    lines = ["path,label,split"]
    for i, face in enumerate(faces[:4]):
        (folder / f"list/images/{i}.png").write_bytes(encoded(face.image, "PNG"))
        lines.append(f"{i}.png,{('happy', 'Sadness', 'neutral', 'anger')[i]},{'train' if i else 'test'}")
    (folder / "list/labels.csv").write_text("\n".join(lines) + "\n")
    return folder


def _edges(face: Face, axis: int) -> tuple[int, int]:
    return max(0, int(face.box[axis]) - 12), int(face.box[axis + 2]) + 12


def _command(tmp_path: Path, dataset: str, root: Path, **changes: object):
    spec = tmp_path / "spec.yaml"
    paths = {f"paths.{name}": str(tmp_path / name) for name in ("data", "prepared", "runs")}
    reader = {f"data.datasets.{dataset}.reader": READERS[dataset]} if dataset in READERS else {}
    spec.write_text(yaml.safe_dump(merge(TINY, {**paths, **reader, **changes})))
    return run("prepare", "-c", str(spec), "--dataset", dataset, "--root", str(root), "--json")


def _crlf(text: bytes) -> bytes:
    return text.replace(b"\n", b"\r\n")


def _marked(text: bytes) -> bytes:
    return b"\xef\xbb\xbf" + text


def _blank_lines(text: bytes) -> bytes:
    return b"\n" + text.replace(b"\n", b"\n\n  \n")


def _blank_lines_below(text: bytes) -> bytes:
    return text.replace(b"\n", b"\n\n") + b"\n"


def _more(*rows: str) -> Callable[[bytes], bytes]:
    return lambda text: text.rstrip(b"\n") + b"\n" + "\n".join(rows).encode("utf-8", "surrogateescape") + b"\n"


def _repeated(text: bytes) -> bytes:
    return text + text.splitlines(keepends=True)[-1]


def _no_final_newline(text: bytes) -> bytes:
    return text.rstrip(b"\n")


def _removed(name: str) -> Callable[[Path], None]:
    return lambda root: (root / name).unlink()


def _copied(name: str, other: str) -> Callable[[Path], None]:
    return lambda root: shutil.copy(root / name, root / other) and None


def _first_box(box: str) -> Callable[[bytes], bytes]:
    """Replace the box of ExpW's first row: top left right bottom."""

    def spoil(text: bytes) -> bytes:
        first, rest = text.split(b"\n", 1)
        words = first.split()
        return b" ".join([*words[:2], box.encode(), *words[6:]]) + b"\n" + rest

    return spoil


FIRST = "procedural_face_1.jpg#0"
UNREAD = {"unreadable row": 1, "file without row": 1}
IMAGES = "data/image/origin"

CASES = [
    *(Case(d, "CRLF", _crlf, n) for d, n in WHOLE.items()),
    *(Case(d, "a byte order mark", _marked, n) for d, n in WHOLE.items()),
    *(Case(d, "both", lambda text: _marked(_crlf(text)), n) for d, n in WHOLE.items()),
    *(Case(d, "no newline at the end", _no_final_newline, n) for d, n in WHOLE.items()),
    Case("raf-db", "blank lines", _blank_lines, 5),
    Case("expw", "blank lines", _blank_lines, 4),
    Case("fer2013", "blank lines", _blank_lines_below, 5),
    Case("list", "blank lines", _blank_lines_below, 4),
    Case("raf-db", "an unknown code", _more("train_00001.jpg 8"), 5, left_out={"unknown code '8'": 1}),
    Case("raf-db", "no code", _more("train_00009.jpg"), 5, left_out={"unreadable row": 1}),
    Case("raf-db", "another split", _more("extra_00001.jpg 3"), 5, left_out={"unreadable row": 1}),
    Case("raf-db", "a row twice", _repeated, 5, left_out={"listed twice": 1}),
    Case(
        "raf-db",
        "a row twice, differing",
        lambda text: text + b"test_0001.jpg 1\ntest_0001.jpg 2\n",
        5,
        left_out={"listed twice": 0, "listed twice with different labels": 2},
    ),
    Case("raf-db", "a row without file", _more("train_00099.jpg 3"), 5, {"train_00099.jpg": "no such file"}),
    Case(
        "raf-db",
        "a file without row",
        _copied("Image/original/train_00001.jpg", "Image/original/train_00077.jpg"),
        5,
        left_out={"file without row": 1},
    ),
    Case(
        "raf-db",
        "a name that is not UTF-8",
        _more(os.fsdecode(b"train_\xe9 x.jpg 3")),
        5,
        {os.fsdecode(b"train_\xe9 x.jpg"): "no such file"},
    ),
    Case("raf-db", "annotations missing", lambda root: shutil.rmtree(root / "Annotation"), 5),
    Case("expw", "an unknown code", _more("gone.jpg 7 1 1 90 90 50 9"), 4, left_out={"unknown code '9'": 1}),
    Case("expw", "too few columns", _more("procedural_face_1.jpg 7 1 1"), 4, left_out={"unreadable row": 1}),
    Case("expw", "a row twice", _repeated, 4, left_out={"listed twice": 1}),
    Case(
        "expw",
        "a row without file",
        _more("gone with a blank.jpg 0 1 1 90 90 50 3"),
        4,
        {"gone with a blank.jpg#0": "no such file"},
    ),
    Case(
        "expw",
        "a file without row",
        _copied(f"{IMAGES}/procedural_face_1.jpg", f"{IMAGES}/unlisted.jpg"),
        4,
        left_out={"file without row": 1},
    ),
    Case(
        "expw",
        "a missing file",
        _removed(f"{IMAGES}/procedural_face_3.jpg"),
        2,
        {"procedural_face_3.jpg#0": "no such file", "procedural_face_3.jpg#1": "no such file"},
    ),
    Case("expw", "a box outside the image", _first_box("900 900 990 990"), 3, {FIRST: "the given box is outside"}),
    Case("expw", "a box left of the image", _first_box("20 -90 -10 90"), 3, {FIRST: "the given box is outside"}),
    Case("expw", "a box partly outside", _first_box("-40 -30 260 300"), 4),
    Case("expw", "a box that extends far beyond it", _first_box("-1e9 -1e9 1e9 1e9"), 4),
    Case("expw", "a box with right before left", _first_box("64 162 48 193"), 3, {FIRST: "the given box "}),
    Case("expw", "a box without height", _first_box("64 48 162 64"), 3, {FIRST: "the given box "}),
    Case("expw", "a box beside the face", _first_box("0 0 30 30"), 3, {FIRST: "no face found in the given box"}),
    Case("expw", "a box that is not a number", _first_box("nan nan nan nan"), 3, left_out=UNREAD),
    Case("expw", "a corner that is not a number", _first_box("64 48 nan 193"), 3, left_out=UNREAD),
    Case("expw", "an infinite box", _first_box("64 48 inf 193"), 3, left_out=UNREAD),
    Case("expw", "a box in words", _first_box("top left right bottom"), 3, left_out=UNREAD),
    Case("fer2013", "an unknown code", _more("7,1 2 3,Training"), 5, left_out={"unknown code '7'": 1}),
    Case("fer2013", "another Usage", _more("3,1 2 3,Spare"), 5, left_out={"row of an unknown Usage": 1}),
    Case("fer2013", "too few columns", _more("3,1 2 3"), 5, left_out={"unreadable row": 1}),
    Case("fer2013", "too few pixels", _more("3,1 2 3,Training"), 5, {"train-00005": "3 pixels instead of 2304"}),
    Case("fer2013", "a pixel beyond 255", _more(f"3,{'256 ' * 2304},Training"), 5, {"train-00005": "pixels outside"}),
    Case("fer2013", "words for pixels", _more(f"3,{'x ' * 2304},Training"), 5, {"train-00005": "pixels that are no"}),
    Case("list", "an unknown label", _more("9.png,bored,train"), 4, left_out={"unknown label 'bored'": 1}),
    Case("list", "contempt", _more("9.png,Contempt,train"), 4, left_out={"contempt (outside the seven)": 1}),
    Case("list", "too few columns", _more("9.png"), 4, {"9.png": "no such file"}),
    Case("list", "too many columns", lambda text: text.replace(b"\n", b",more,and,more\n", 2), 4),
    Case("list", "a row without a path", _more(",happy,train"), 4, left_out={"row without a path": 1}),
    Case("list", "a row twice", _repeated, 4, left_out={"listed twice": 1}),
    Case("list", "a row without file", _more("gone.png,happy,train"), 4, {"gone.png": "no such file"}),
    Case("list", "a first row without file", lambda text: text.replace(b"\n", b"\ngone.png,happy,train\n", 1), 4,
         {"gone.png": "no such file"}),
    Case("list", "a path that is too long", _more("x" * 1000 + ".png,happy,train"), 4,
         {"x" * 1000 + ".png": "cannot be read: File name too long"}),
    Case("list", "markup in a name", _more("[red]x[/].png,happy,train"), 4, {"[red]x[/].png": "no such file"}),
    Case("list", "a folder", lambda root: (root / "images/0.png").unlink() or (root / "images/0.png").mkdir(), 3,
         {"0.png": "a folder, not an image"}),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=[f"{c.dataset}: {c.what}" for c in CASES])
def test_a_faulty_label_file_is_counted_or_rejected(tmp_path, trees, case):
    root = _spoilt(tmp_path, trees, case.dataset, case.spoil)
    result = _command(tmp_path, case.dataset, root)
    assert result.exit_code == 0, result.stderr
    summary = json.loads(result.stdout)["prepared"][case.dataset]
    rows = {row["id"]: row for row in read_manifest(tmp_path / "prepared" / case.dataset)}
    rejected = {name: row["reason"] for name, row in rows.items() if row["status"] == "rejected"}
    assert set(rejected) == set(case.reasons)
    for name, reason in case.reasons.items():
        assert rejected[name].startswith(reason)
    assert summary["left_out_reasons"] == {reason: n for reason, n in case.left_out.items() if n}
    assert summary["expected"] == len(rows) == case.kept + len(case.reasons)
    assert Counter(row["status"] != "rejected" for row in rows.values())[True] == case.kept


def _spoilt(tmp_path: Path, trees: Path, dataset: str, spoil: Callable[[Any], Any]) -> Path:
    """Return a damaged copy of a tree. The function takes its root, or the bytes of its label file."""
    root = tmp_path / "tree" / dataset
    shutil.copytree(trees / dataset, root)
    labels = root / LABELS[dataset]
    try:
        changed = spoil(labels.read_bytes())
    except TypeError:
        changed = spoil(root)
    if isinstance(changed, bytes):
        labels.write_bytes(changed)
    return root


#: (dataset, contents of its label file or damage to its tree, part of the one-line error)
FAILURES: list[tuple[str, str | bytes | Callable[[Path], Any], str]] = [
    ("raf-db", lambda r: (r / LABELS["raf-db"]).unlink(), "no EmoLabel/list_patition_label.txt"),
    ("raf-db", lambda r: shutil.rmtree(r / "Image"), "no Image/aligned"),
    ("raf-db", "", "nothing usable"),
    ("raf-db", bytes(range(256)) * 9, "list_patition_label.txt"),
    ("raf-db", "train_00001.jpg 9\n", "nothing usable"),
    ("expw", lambda r: (r / LABELS["expw"]).unlink(), "no label/label.lst"),
    ("expw", lambda r: shutil.rmtree(r / "data"), "no data/image/origin"),
    ("expw", "a.jpg 3\nb.jpg 4\n", "label.lst lacks a column"),
    ("fer2013", "pixels,Usage\n1 2,Training\n", "lacks the column emotion"),
    ("fer2013", "emotion,Usage\n1,Training\n", "lacks the column pixels"),
    ("fer2013", "", "lacks the column"),
    ("fer2013", "emotion,pixels,Usage\n", "nothing usable"),
    ("fer2013", lambda r: (r / LABELS["fer2013"]).unlink(), "no fer2013.csv"),
    ("list", "image of,label\na.png,happy\n", "no path column"),
    ("list", "path,label\n0.png,3\n", "labels are numbers"),
    ("list", "", "no path column"),
    ("list", lambda r: (r / LABELS["list"]).unlink(), "not exactly one csv"),
    ("list", b"path,label\n\0\0\0,happy\n", ""),
    ("list", "path,label\n" + "x" * 200_000 + ",happy\n", ""),
    ("list", "path,label\n0.png,happy\n0.png,fear\n", "labels.csv lists images/0.png as 'happy' and as 'fear'"),
    ("list", shutil.rmtree, "no such folder"),
    ("list", lambda r: [p.unlink() for p in (r / "images").iterdir()], "no face in 4 records"),
]


@pytest.mark.parametrize(
    ("dataset", "spoil", "line"), FAILURES, ids=[f"{f[0]}: {f[2] or 'odd bytes'}" for f in FAILURES]
)
def test_an_unusable_tree_gives_a_one_line_error_and_exit_code_1(tmp_path, trees, dataset, spoil, line):
    root = tmp_path / "tree" / dataset
    shutil.copytree(trees / dataset, root)
    spoil(root) if callable(spoil) else write(root, LABELS[dataset], spoil)
    result = _command(tmp_path, dataset, root)
    assert result.exit_code == 1
    assert result.stdout == "" and result.stderr.startswith("error: ") and line in result.stderr
    assert result.stderr.count("\n") == 1 and len(result.stderr) < 1000
    assert not (tmp_path / "prepared" / dataset).exists()


def test_a_missing_dataset_is_reported_before_the_first_is_prepared(tmp_path, trees):
    spec = tmp_path / "spec.yaml"
    tree = {
        "paths.data": str(trees),
        "paths.prepared": str(tmp_path / "prepared"),
        "paths.runs": str(tmp_path / "runs"),
    }
    spec.write_text(yaml.safe_dump(merge(TINY, {**tree, "data.targets": ["expw", "jaffe"]})))
    result = run("prepare", "-c", str(spec))
    assert result.exit_code == 1 and "jaffe" in result.stderr and result.stderr.count("\n") == 1
    assert not (tmp_path / "prepared").exists()


@pytest.mark.parametrize("quiet", [False, True])
def test_folders_whose_names_look_like_markup_are_printed_as_they_are(tmp_path, faces, quiet):
    root = tmp_path / "[red]in[" / "]"
    (root / "data/happy/sub[").mkdir(parents=True)
    for name in ("[bold]x.jpg", "sub[/] y.jpg"):
        (root / "data/happy" / name).write_bytes(encoded(faces[0].image, "JPEG"))
    (root / "data/happy/[link]z.jpg").write_bytes(b"")
    spec = tmp_path / "spec.yaml"
    paths = {f"paths.{name}": str(root / name) for name in ("data", "prepared", "runs")}
    spec.write_text(yaml.safe_dump(merge(TINY, {**paths, "data.datasets": {"[b]odd": {"reader": "folders"}}})))
    command = ["prepare", "-c", str(spec), "--dataset", "[b]odd", "--root", str(root / "data")]
    for _ in range(2):  # the second run reports that the store is up to date
        result = run(*command, *(["--quiet"] if quiet else []))
        assert result.exit_code == 0, result.stderr
        if not quiet:
            assert "[red]in[/]/prepared/[b]odd" in result.stderr and "[b]odd" in result.stdout
    ids = [row["id"] for row in read_manifest(root / "prepared/[b]odd")]
    assert ids == ["happy/[bold]x.jpg", "happy/[link]z.jpg", "happy/sub[/] y.jpg"]
    for path in (root / "data/happy").glob("**/*.jpg"):
        path.write_bytes(b"")
    result = run(*command)
    assert result.exit_code == 1 and "[red]in[/]/data" in result.stderr
