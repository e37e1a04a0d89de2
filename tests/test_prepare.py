"""Preparation: what is kept, what is rejected and why, and that nothing is lost."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections import Counter
from dataclasses import replace

import drawn
import numpy as np
import pytest
from PIL import Image
from trees import digests, encoded

from fercli.datasets import read_dataset
from fercli.errors import FercliError
from fercli.faces import align
from fercli.faces.images import read_image
from fercli.faces.landmarker import Landmarker
from fercli.files import LOCK
from fercli.prepare import prepare
from fercli.prepare.build import record_keys
from fercli.spec import Prepare
from fercli.store import FILES, SMALL_FILES, Store, read_manifest

HERE = Prepare(workers=1)


# The store


def test_a_store_contains_what_its_contract_says(raf_store, faces):
    store = Store.open(raf_store)
    assert len(store) == 14 and store.name == "raf-db" and store.synthetic
    assert (store.faces.shape, store.faces.dtype) == ((14, 140, 140, 3), np.uint8)
    assert (store.landmarks.shape, store.landmarks.dtype) == ((14, 5, 2), np.float32)
    assert (store.crops.shape, store.crops.dtype) == ((14, 5, 48, 48, 3), np.uint8)
    assert store.labels.tolist() == [face.label for face in faces] and store.labels.dtype == np.int64
    assert store.splits.dtype == np.dtype("<U16")
    assert not store.faces.flags.writeable and isinstance(store.faces, np.memmap)
    assert store.indices(("train",)).tolist() == list(range(8)) and store.indices(["test", "train"]).dtype == np.int64
    assert store.ids[0] == "train_00001.jpg" and set(store.subjects) == {""}
    assert store.counts()["expected"] == store.counts()["found"] == 14
    assert (store.expected(("train",)), store.expected(("test",)), store.expected(("val",))) == (8, 6, 0)
    assert (store.adapt_splits, store.score_splits) == (("train",), ("test",))
    for name in SMALL_FILES:
        assert store.meta["sha256"][name] == hashlib.sha256((raf_store / name).read_bytes()).hexdigest()
    shapes, digests = np.load(raf_store / "shapes.npy"), np.load(raf_store / "digests.npy")
    for i in range(14):
        rows = (store.faces[i], store.landmarks[i], store.crops[i], shapes[i])
        plain = hashlib.sha256(b"".join(row.tobytes() for row in rows)).digest()
        assert digests[i].tobytes() == plain[:16]
    assert sorted(p.name for p in raf_store.iterdir()) == sorted([*FILES, "meta.json", "contact-sheet.jpg", LOCK])


def test_faces_match_a_plain_alignment_of_the_image(raf_store, raf):
    """The stored face shows at its landmarks what the image shows at the detected landmarks."""
    store = Store.open(raf_store)
    for index in range(3):
        image = read_image(raf / "Image/original" / store.ids[index])
        found = Landmarker().find(image, read_dataset("r", "raf-db", raf).records[index].box)
        matrix = align.template_matrix(found.points5)
        np.testing.assert_allclose(store.landmarks[index], align.transform(matrix, found.points5), atol=1e-3)
        np.testing.assert_array_equal(store.faces[index], align.warp(image, matrix, 140))


def test_labels_cannot_be_read_from_a_store_opened_without_them(raf_store):
    store = Store.open(raf_store, labels=False)
    assert len(store.indices(("train",))) == 8
    with pytest.raises(RuntimeError, match="labels"):
        _ = store.labels


def test_an_absent_incomplete_or_damaged_store_names_the_command(tmp_path, raf, raf_store):
    with pytest.raises(FercliError, match="fercli prepare --dataset jaffe"):
        Store.open(tmp_path / "jaffe")
    (tmp_path / "jaffe").mkdir()
    with pytest.raises(FercliError, match="incomplete; run: fercli prepare --dataset jaffe"):
        Store.open(tmp_path / "jaffe")
    for file in raf_store.iterdir():
        (tmp_path / "jaffe" / file.name).write_bytes(file.read_bytes()[: None if file.suffix != ".npy" else -100])
    with pytest.raises(FercliError, match="damaged"):
        Store.open(tmp_path / "jaffe")
    with pytest.raises(FercliError, match="no face in val"):
        Store.open(raf_store).indices(("val",))


# Bad input


def test_rows_without_files_end_in_the_manifest(tmp_path, faces):
    drawn.write_expw(tmp_path / "expw", faces[:3])
    listed = tmp_path / "expw/label/label.lst"
    rows = listed.read_text().splitlines()
    name, _, *rest = rows[0].split()
    rows += [f"gone.jpg 0 {' '.join(rest)}", f"{name} 7 900 900 990 990 50 3", f"{name} 8 0 0 30 30 50 3"]
    listed.write_text("\n".join(rows))
    prepare(read_dataset("expw", "expw", tmp_path / "expw"), tmp_path / "out", HERE)
    manifest = {row["id"]: row for row in read_manifest(tmp_path / "out")}
    assert manifest["gone.jpg#0"]["reason"] == "no such file"
    assert manifest[f"{name}#7"]["reason"].startswith("the given box is outside the image")
    assert manifest[f"{name}#8"]["reason"] == "no face found in the given box"
    assert Counter(row["status"] for row in manifest.values())["rejected"] == 3


def test_a_previous_store_survives_a_run_that_finds_nothing(tmp_path, raf_store, raf):
    listing = read_dataset("raf-db", "raf-db", raf)
    prepare(listing, tmp_path / "out", HERE)
    gone = [replace(record, path="gone.jpg") for record in listing]
    with pytest.raises(FercliError, match="no such file"):
        prepare(replace(listing, records=gone), tmp_path / "out", HERE)
    assert digests(tmp_path / "out") == digests(raf_store)


# How faces are found and cropped


def test_given_landmarks_need_no_detector(tmp_path, raf, faces):
    summary = prepare(read_dataset("r", "raf-db", raf), tmp_path / "out", Prepare(workers=1, landmarks="given"))
    assert summary.counts["given"] == summary.counts["expected"] == 14
    store = Store.open(tmp_path / "out")
    matrix = align.template_matrix(np.round(faces[0].landmarks.astype(float), 3))
    np.testing.assert_allclose(store.landmarks[0], align.transform(matrix, faces[0].landmarks), atol=0.01)


def test_missing_or_wrong_given_landmarks_are_rejected(tmp_path, raf):
    listing = read_dataset("r", "raf-db", raf)
    records = listing.records[:4]
    records[1] = replace(records[1], landmarks=None)
    records[2] = replace(records[2], landmarks=((5.0, 5.0),) * 5)
    records[3] = replace(records[3], landmarks=tuple((x + 5000, y) for x, y in records[3].landmarks))
    prepare(replace(listing, records=records), tmp_path / "out", Prepare(workers=1, landmarks="given"))
    reasons = [row["reason"] for row in read_manifest(tmp_path / "out")]
    assert reasons[:2] == ["", "no landmarks given"]
    assert "not in order" in reasons[2] and "outside the image" in reasons[3]


@pytest.mark.parametrize("with_boxes", [True, False])
def test_missing_faces_may_be_kept_with_the_mean_shape(tmp_path, raf, with_boxes):
    listing = read_dataset("r", "raf-db", raf)
    records = [r if with_boxes else replace(r, box=None) for r in listing.records[:5]]
    blank = tmp_path / "blank.png"
    Image.new("RGB", (200, 160), (90, 80, 70)).save(blank)
    for i, at in enumerate((0, 3)):
        extra = replace(records[0], id=f"blank{i}", path=str(blank), box=(40.0, 30, 150, 140) if with_boxes else None)
        records.insert(at, extra)
    records.append(replace(records[1], id="gone", path="gone.jpg"))
    options = Prepare(workers=1, missing="mean-landmarks", chunk=2)
    summary = prepare(replace(listing, records=records), tmp_path / "out", options)
    assert [summary.counts[status] for status in ("found", "mean-landmarks", "rejected")] == [5, 2, 1]
    rows = read_manifest(tmp_path / "out")
    assert [row["status"] for row in rows] == [
        "mean-landmarks", "found", "found", "mean-landmarks", "found", "found", "found", "rejected",
    ]  # fmt: skip
    store = Store.open(tmp_path / "out")
    assert len(store) == 7 and len(set(store.faces[0].reshape(-1, 3)[:, 0])) == 1
    assert np.abs(store.landmarks[0] - (align.ARCFACE_TEMPLATE + 14)).max() < 8
    prepare(replace(listing, records=records), tmp_path / "again", options.model_copy(update={"chunk": 128}))
    assert digests(tmp_path / "out") == digests(tmp_path / "again")


BOXED = Prepare(workers=1, align="box")


def test_the_released_box(tmp_path, raf):
    """The given box, or the mesh's, a tenth wider on each side, clipped, and cropped and resized as by Pillow."""
    listing = read_dataset("r", "raf-db", raf)
    records = [*listing.records[:2], replace(listing.records[2], box=None)]
    prepare(replace(listing, records=records), tmp_path / "out", BOXED)
    store, rows = Store.open(tmp_path / "out"), read_manifest(tmp_path / "out")
    for record, face, points, row in zip(records, store.faces, store.landmarks, rows, strict=True):
        image = Image.open(raf / record.path)
        box = record.box or tuple(map(float, row["box"].split()))
        left, top, right, bottom = map(int, box)
        across, down = int(0.5 * int(0.2 * (right - left))), int(0.5 * int(0.2 * (bottom - top)))
        left, top = max(left - across, 0), max(top - down, 0)
        right, bottom = min(right + across, image.width), min(bottom + down, image.height)
        whole = image.crop((left, top, right, bottom)).resize((112, 112), Image.Resampling.BILINEAR)
        assert abs(face[16:124, 16:124].astype(int) - np.asarray(whole).astype(int)[2:-2, 2:-2]).max() <= 1
        found = Landmarker().find(np.asarray(image), record.box).points5
        shares = (found + 0.5 - (left, top)) / (right - left, bottom - top)
        np.testing.assert_allclose(points, 14 + shares * 112 - 0.5, atol=1e-3)
    assert {row["status"] for row in rows} == {"found"}


def test_the_released_box_of_a_cropped_face_is_the_whole_image(tmp_path, faces):
    drawn.write_fer2013(tmp_path / "fer", faces[:4])
    listing = read_dataset("f", "fer2013", tmp_path / "fer")
    for options in (BOXED, HERE):
        prepare(listing, tmp_path / options.align, options)
    boxed, aligned = Store.open(tmp_path / "box"), Store.open(tmp_path / "template")
    for face, record in zip(boxed.faces, listing, strict=True):
        with (tmp_path / "fer/fer2013.csv").open("rb") as file:
            file.seek(record.offset)
            pixels = np.array(file.readline().split(b",")[1].split(), np.uint8).reshape(48, 48)
        whole = Image.fromarray(pixels).resize((112, 112), Image.Resampling.BILINEAR)
        assert abs(face[14:126, 14:126, 0].astype(int) - np.asarray(whole)).max() <= 1
        np.testing.assert_array_equal(face[:14], np.repeat(face[:1], 14, 0))  # edge pixels repeated
    # The face is detected in the same way, and its position is recorded too.
    columns = ("box", "score", "status", "roll")
    same = ([[row[name] for name in columns] for row in read_manifest(store.path)] for store in (boxed, aligned))
    assert next(same) == next(same)
    # Without `cropped`, the mesh's box is used: these are other faces, so none is reused.
    listing.records[:] = [replace(record, cropped=False) for record in listing]
    assert prepare(listing, tmp_path / "box", BOXED).computed == 4
    assert (Store.open(tmp_path / "box").faces != np.array(boxed.faces)).any((1, 2, 3)).all()
    assert prepare(listing, tmp_path / "template", HERE).up_to_date


def test_a_store_with_the_former_box_is_refused_and_made_again(tmp_path, raf):
    listing = read_dataset("r", "raf-db", raf)
    listing.records[:] = listing.records[:3]
    prepare(listing, tmp_path / "r", BOXED)
    meta = json.loads((tmp_path / "r/meta.json").read_text())
    (tmp_path / "r/meta.json").write_text(json.dumps({**meta, "format": 2}))
    with pytest.raises(FercliError, match="written by another version of fercli; run: fercli prepare --dataset r"):
        Store.open(tmp_path / "r")
    assert prepare(listing, tmp_path / "r", BOXED).computed == 3
    assert json.loads((tmp_path / "r/meta.json").read_text()) == meta
    assert len(Store.open(tmp_path / "r")) == 3


def test_faces_aligned_to_the_template_keep_their_keys(tmp_path, raf):
    """The keys are written out here to detect any change, which would make all stores be prepared again."""
    listing = read_dataset("r", "raf-db", raf)
    record = replace(listing.records[0], subject="x", offset=None)
    listing.records[:] = [record, replace(record, cropped=True)]
    told = (
        f"Record(id='train_00001.jpg', path='Image/original/train_00001.jpg', label={record.label}, split='train', "
        f"subject='x', box={record.box}, landmarks={record.landmarks}, offset=None)"
    )
    keys = {kind: record_keys(listing, Prepare(align=kind))[:, :16] for kind in ("template", "box")}
    parameters = json.dumps([2, 1, Prepare().parameters()], sort_keys=True)
    due = hashlib.blake2b((parameters + told).encode(), digest_size=16).digest()
    assert [key.tobytes() for key in keys["template"]] == [due, due]
    former = json.dumps([2, 1, Prepare(align="box").parameters()], sort_keys=True)
    kept = hashlib.blake2b((former + told).encode(), digest_size=16).digest()
    assert len({kept, *(key.tobytes() for key in keys["box"])}) == 3


def test_sizes_follow_the_options(tmp_path, raf):
    listing = read_dataset("r", "raf-db", raf)
    options = Prepare(workers=1, size=64, margin=8, crop_size=32, crop_zoom=2.0)
    prepare(replace(listing, records=listing.records[:2]), tmp_path / "out", options)
    store = Store.open(tmp_path / "out")
    assert store.faces.shape[1:] == (80, 80, 3) and store.crops.shape[1:] == (5, 32, 32, 3)
    assert store.meta["parameters"]["crop_zoom"] == 2.0


_PEAK = """
import resource, sys
from fercli.datasets import read_dataset
from fercli.prepare import prepare
from fercli.prepare.build import record_keys
from fercli.spec import Prepare
from fercli.prepare.verify import verify
listing = read_dataset("d", "folders", sys.argv[1])
prepare(listing, sys.argv[2], Prepare(workers=1))
assert verify(sys.argv[2]).whole
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_dataset(tmp_path, faces):
    """1,600 faces make arrays of 150 MB. Preparing and verifying them takes hardly more memory than 200 faces."""
    peaks = []
    for count in (200, 1600):
        folder = tmp_path / str(count) / "happy"
        folder.mkdir(parents=True)
        pictures = [encoded(face.image, "JPEG", quality=95) for face in faces]
        for i in range(count):
            (folder / f"{i}.jpg").write_bytes(pictures[i % len(pictures)])
        command = [sys.executable, "-c", _PEAK, str(folder.parent), str(tmp_path / f"out-{count}")]
        peaks.append(int(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
    assert peaks[1] - peaks[0] < 60, peaks
