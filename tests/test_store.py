"""A prepared store is opened as of one moment, and what was written about its faces is joined with these faces only."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import Bench
from stores import cut, seal

import fercli.store
from fercli.datasets import read_dataset
from fercli.errors import FercliError
from fercli.prepare import Options, prepare
from fercli.store import Store


@pytest.fixture
def again(tmp_path: Path, raf: Path):
    """Give a folder with a store, and a function that prepares it again, in the opposite order and with new labels."""
    listing = read_dataset("raf-db", "raf-db", raf)
    changed = [replace(record, label=(record.label + 1) % 7) for record in reversed(listing.records)]
    prepare(listing, tmp_path / "raf-db", Options(workers=1))
    return tmp_path / "raf-db", lambda: prepare(
        replace(listing, records=changed), tmp_path / "raf-db", Options(workers=1)
    )


def rows(store: Store) -> dict[str, tuple[int, bytes]]:
    return {
        name: (int(label), face.tobytes())
        for name, label, face in zip(store.ids, store.labels, store.faces, strict=True)
    }


def test_labels_are_those_of_the_faces_though_the_store_is_prepared_again(again) -> None:
    folder, prepare_again = again
    whole, store = rows(Store.open(folder)), Store.open(folder)
    prepare_again()
    assert rows(store) == whole
    assert {name: label for name, (label, _) in rows(Store.open(folder)).items()} == {
        name: (label + 1) % 7 for name, (label, _) in whole.items()
    }


@pytest.mark.parametrize("at", ["splits.npy", "manifest.csv", "labels.npy"])
def test_a_store_that_is_prepared_again_while_it_is_opened(again, at: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, prepare_again = again
    read, times = fercli.store._read_small, []

    def slow(path: Path, name: str, hashes):
        if name == at and not times:
            times.append(prepare_again())
        return read(path, name, hashes)

    monkeypatch.setattr(fercli.store, "_read_small", slow)
    store = Store.open(folder)
    monkeypatch.undo()
    assert times and rows(store) == rows(Store.open(folder))


@pytest.mark.parametrize("name", ["labels.npy", "splits.npy", "manifest.csv"])
def test_a_file_of_another_store_is_refused(raf_store: Path, tmp_path: Path, name: str) -> None:
    for folder, keep in (("raf-db", np.arange(14)), ("other", np.arange(14)[::-1])):
        cut(raf_store, tmp_path / folder, keep)
    shutil.copy(tmp_path / "other" / name, tmp_path / "raf-db" / name)
    with pytest.raises(FercliError) as caught:
        Store.open(tmp_path / "raf-db")
    assert str(caught.value).endswith(
        f"is damaged ({name} is not as it was written); run: fercli prepare --dataset raf-db --repair"
    )


def test_without_labels_their_file_is_not_read(raf_store: Path, tmp_path: Path) -> None:
    cut(raf_store, tmp_path / "raf-db", np.arange(14))
    (tmp_path / "raf-db/labels.npy").write_bytes(b"anything")
    assert len(Store.open(tmp_path / "raf-db", labels=False)) == 14
    with pytest.raises(FercliError, match=r"labels\.npy is not as it was written"):
        Store.open(tmp_path / "raf-db")


def test_the_digest_tells_faces_and_order_and_no_labels(raf_store: Path, tmp_path: Path) -> None:
    cut(raf_store, tmp_path / "turned", np.arange(14)[::-1])
    cut(raf_store, tmp_path / "relabelled", np.arange(14))
    np.save(tmp_path / "relabelled/labels.npy", np.zeros(14, np.int64))
    seal(tmp_path / "relabelled")
    digest = Store.open(raf_store).faces_digest
    assert Store.open(tmp_path / "turned").faces_digest != digest
    assert Store.open(tmp_path / "relabelled").faces_digest == digest


@pytest.fixture
def turned(tmp_path: Path, trained: Bench) -> Path:
    """The shared stores, the target's faces in the opposite order."""
    cut(trained.prepared / "jaffe", tmp_path / "stores/jaffe", np.arange(42)[::-1])
    (tmp_path / "stores/raf-db").symlink_to(trained.prepared / "raf-db")
    return tmp_path / "stores"


def test_an_adaptation_does_not_go_on_with_other_faces(make_adapting, turned: Path) -> None:
    bench = make_adapting("bench")
    bench.done("adapt", "--quiet")
    result = Bench(bench.folder, turned, {"adapt.epochs": 3})("adapt")
    assert result.exit_code == 1
    assert "was begun with other settings (jaffe was prepared again, with other faces)" in result.stderr
