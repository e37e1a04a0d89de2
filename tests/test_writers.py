"""Procedural faces in real datasets' own layouts: whole or not there, and what the reader of csvs makes of one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import cv2
import drawn
import numpy as np
import pytest

from fercli.datasets import SYNTHETIC_MARKER, read_dataset
from fercli.errors import FercliError
from fercli.synthetic import writers
from fercli.synthetic.render import STUDIO, Face, render

SMALL = replace(STUDIO, size=(88, 96))


@pytest.fixture(scope="module")
def faces() -> list[Face]:
    """Two people with the seven expressions each, 88x96 in colour."""
    return [render(SMALL, identity, label, 5) for identity in (3, 1) for label in range(7)]


WRITERS: dict[str, Callable[[Path, Iterable[Face]], Path]] = {
    "raf-db": lambda root, items: writers.write_raf_db(root, items, []),
    "jaffe": lambda root, items: writers.write_jaffe(root, (replace(face, image=SQUARE) for face in items)),
    "fer2013": lambda root, items: drawn.write_fer2013(root, items),
    "expw": lambda root, items: drawn.write_expw(root, items),
    "folders": lambda root, items: drawn.write_class_folders(root, {"train": items}),
    "csv": lambda root, items: writers.write_csv(root, {"train": items}),
}
SQUARE = np.full((256, 256, 3), 128, np.uint8)


def contents(root: Path) -> dict[str, bytes]:
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("name", WRITERS)
def test_a_root_is_whole_and_marked_or_not_there(tmp_path, faces, name):
    write, items = WRITERS[name], faces[:3]

    def cut_off() -> Iterator:
        yield items[0]
        raise KeyboardInterrupt

    root = tmp_path / "data" / "mine"
    with pytest.raises(KeyboardInterrupt):
        write(root, cut_off())
    assert not root.exists() and (tmp_path / "data/mine.partial").is_dir()
    assert write(root, iter(items)) == root
    assert [p.name for p in (tmp_path / "data").iterdir()] == ["mine"]
    assert "no photographs, no real people" in (root / SYNTHETIC_MARKER).read_text()
    before = contents(root)
    assert len(before) > 2 or name == "fer2013"
    with pytest.raises(FercliError, match="exists already"):
        write(root, items)
    assert contents(root) == before
    (tmp_path / "again").mkdir()
    assert contents(write(tmp_path / "again", items)) == before


def test_csv_round_trip(tmp_path, faces):
    root = writers.write_csv(tmp_path / "csv", {"train": faces[:9], "test": faces[9:]})
    listing = read_dataset("mine", "csv", root)
    assert listing.synthetic and not listing.left_out
    for split, expected in (("train", faces[:9]), ("test", faces[9:])):
        records = [record for record in listing if record.split == split]
        assert [r.label for r in records] == [f.label for f in expected]
        assert [r.subject for r in records] == [f"person-{f.identity}" for f in expected]
        np.testing.assert_allclose([r.landmarks for r in records], [f.landmarks for f in expected], atol=1e-3)
        np.testing.assert_allclose([r.box for r in records], [f.box for f in expected], atol=1e-3)
        boxes = [",".join(f"{v:.3f}" for v in f.box) for f in expected]
        assert [r.id for r in records] == [f"{split}_{i:05d}.png#{box}" for i, box in enumerate(boxes, 1)]
    np.testing.assert_array_equal(cv2.imread(str(root / listing.records[0].path))[..., ::-1], faces[0].image)
