"""Preparing: what is kept, what is rejected and why, and that nothing is lost."""

from __future__ import annotations

import csv
import hashlib
import io
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fercli.datasets import read_dataset, writers
from fercli.errors import FercliError
from fercli.faces import align, synthetic
from fercli.faces.images import Unreadable, decode_image, decode_pixels, read_image, read_pixels
from fercli.faces.landmarker import Landmarker
from fercli.prepare import Options, prepare
from fercli.store import FILES, Store, read_manifest

HERE = Options(workers=1)


@pytest.fixture(scope="module")
def faces() -> list[synthetic.Face]:
    return [synthetic.render(synthetic.STUDIO, identity, label, 3) for identity in range(2) for label in range(7)]


@pytest.fixture(scope="module")
def raf(tmp_path_factory, faces) -> Path:
    return writers.write_raf_db(tmp_path_factory.mktemp("data") / "raf", faces[:8], faces[8:])


def jpeg(image: np.ndarray, **options) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=95, **options)
    return buffer.getvalue()


def encoded(image: Image.Image, form: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def digests(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir())}


# The store


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, raf) -> Path:
    out = tmp_path_factory.mktemp("prepared") / "raf-db"
    prepare(read_dataset("raf-db", "raf-db", raf), out, HERE)
    return out


def test_a_store_holds_what_its_contract_says(prepared, faces):
    store = Store.open(prepared)
    assert len(store) == 14 and store.name == "raf-db" and store.stand_in
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
    for name in FILES:
        assert store.meta["sha256"][name] == hashlib.sha256((prepared / name).read_bytes()).hexdigest()
    assert sorted(p.name for p in prepared.iterdir()) == sorted(
        [*FILES, "meta.json", "contact-sheet.jpg"]
    )


def test_landmarks_lie_where_the_faces_were_drawn(raf, faces):
    """In shares of the distance between the eyes: near on the whole, and no point far off."""
    distances = []
    for record, face in zip(read_dataset("r", "raf-db", raf), faces, strict=True):
        found = Landmarker().find(read_image(raf / record.path), record.box)
        eyes = np.linalg.norm(face.landmarks[1] - face.landmarks[0])
        distances.append(np.linalg.norm(found.points5 - face.landmarks, axis=1) / eyes)
    assert np.mean(distances) < 0.08 and np.max(distances) < 0.25


def test_faces_match_a_plain_alignment_of_the_photograph(prepared, raf):
    """The stored face shows, at its landmarks, what the photograph shows at the found ones."""
    store = Store.open(prepared)
    for index in range(3):
        image = read_image(raf / "Image/original" / store.ids[index])
        found = Landmarker().find(image, read_dataset("r", "raf-db", raf).records[index].box)
        matrix = align.template_matrix(found.points5)
        np.testing.assert_allclose(store.landmarks[index], align.transform(matrix, found.points5), atol=1e-3)
        np.testing.assert_array_equal(store.faces[index], align.warp(image, matrix, 140))


def test_labels_are_not_read_where_they_must_not_be(prepared):
    store = Store.open(prepared, labels=False)
    assert len(store.indices(("train",))) == 8
    with pytest.raises(RuntimeError, match="labels"):
        _ = store.labels


def test_opening_needs_neither_mediapipe_nor_opencv(prepared):
    code = (
        "import sys; from fercli.store import Store; Store.open(sys.argv[1]); "
        "assert not {'mediapipe', 'cv2', 'torch', 'PIL'} & set(sys.modules), sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code, str(prepared)], check=True)


def test_an_absent_incomplete_or_damaged_store_names_the_command(tmp_path, raf, prepared):
    with pytest.raises(FercliError, match="fercli prepare --dataset jaffe"):
        Store.open(tmp_path / "jaffe")
    (tmp_path / "jaffe").mkdir()
    with pytest.raises(FercliError, match="incomplete; run: fercli prepare --dataset jaffe"):
        Store.open(tmp_path / "jaffe")
    for file in prepared.iterdir():
        (tmp_path / "jaffe" / file.name).write_bytes(file.read_bytes()[: None if file.suffix != ".npy" else -100])
    with pytest.raises(FercliError, match="damaged"):
        Store.open(tmp_path / "jaffe")
    with pytest.raises(FercliError, match="no face in val"):
        Store.open(prepared).indices(("val",))


# Again, with other workers, after a kill


def replace_records(listing, records):
    return replace(listing, records=list(records))


# Bad input


def test_bad_pictures_are_rejected_with_their_reason_and_the_rest_is_kept(tmp_path, faces):
    good = jpeg(faces[0].image)
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    bomb = encoded(Image.new("1", (20_000, 20_000)), "PNG")
    files = {
        "happy/good.jpg": good,
        "happy/empty.jpg": b"",
        "happy/truncated.jpg": good[: len(good) // 2],
        "happy/truncated.png": encoded(Image.fromarray(faces[0].image), "PNG")[:3000],
        "happy/text.jpg": b"this is no image",
        "happy/noise.png": encoded(Image.fromarray(noise), "PNG"),
        "happy/bomb.png": bomb,
        "happy/dot.png": encoded(Image.new("RGB", (1, 1)), "PNG"),
        "sad/good again.jpg": good,
    }
    root = tmp_path / "mixed"
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    (root / "happy/folder.jpg").mkdir()
    (root / "happy/link.jpg").symlink_to("nowhere")
    strange = Path(os.fsdecode(os.fsencode(root) + b"/sad/\xff two\nlines.jpg"))
    strange.write_bytes(good)
    summary = prepare(read_dataset("mixed", "folders", root), tmp_path / "out", HERE)
    rows = {row["id"]: row for row in read_manifest(tmp_path / "out")}
    reasons = {name.split("/")[1]: row["reason"] for name, row in rows.items() if row["status"] == "rejected"}
    assert reasons == {
        "empty.jpg": "empty file",
        "truncated.jpg": "damaged image: truncated",
        "truncated.png": reasons["truncated.png"],
        "text.jpg": "not an image",
        "noise.png": "no face found",
        "bomb.png": "more than 100 megapixels",
        "dot.png": "no face found",
        "folder.jpg": "a folder, not an image",
        "link.jpg": "no such file",
    }
    assert reasons["truncated.png"].startswith("damaged image: ")
    assert summary.expected == 12 and summary.kept == 3 and summary.rejected == 9
    store = Store.open(tmp_path / "out")
    assert sorted(store.ids) == sorted(["happy/good.jpg", "sad/good again.jpg", "sad/" + strange.name])
    assert store.counts()["rejected"] == 9 and store.expected(store.adapt_splits) == 12


def test_rows_without_files_end_in_the_manifest(tmp_path, faces):
    writers.write_expw(tmp_path / "expw", faces[:3])
    listed = tmp_path / "expw/label/label.lst"
    rows = listed.read_text().splitlines()
    name, _, *rest = rows[0].split()
    rows += [f"gone.jpg 0 {' '.join(rest)}", f"{name} 7 900 900 990 990 50 3", f"{name} 8 0 0 30 30 50 3"]
    listed.write_text("\n".join(rows))
    prepare(read_dataset("expw", "expw", tmp_path / "expw"), tmp_path / "out", HERE)
    manifest = {row["id"]: row for row in read_manifest(tmp_path / "out")}
    assert manifest["gone.jpg#0"]["reason"] == "no such file"
    assert manifest[f"{name}#7"]["reason"].startswith("the given box lies outside the picture")
    assert manifest[f"{name}#8"]["reason"] == "no face found in the given box"
    assert Counter(row["status"] for row in manifest.values())["rejected"] == 3


def test_a_dataset_without_a_face_is_an_error_and_leaves_nothing(tmp_path):
    (tmp_path / "d/happy").mkdir(parents=True)
    for i in range(3):
        (tmp_path / f"d/happy/{i}.png").write_bytes(encoded(Image.new("RGB", (80, 80), (i, 90, 30)), "PNG"))
    with pytest.raises(FercliError, match=r"not one face in 3 records .*no face found"):
        prepare(read_dataset("d", "folders", tmp_path / "d"), tmp_path / "out", HERE)
    assert not (tmp_path / "out").exists()


def test_a_former_store_survives_a_run_that_finds_nothing(tmp_path, prepared, raf):
    listing = read_dataset("raf-db", "raf-db", raf)
    prepare(listing, tmp_path / "out", HERE)
    gone = [replace(record, path="gone.jpg") for record in listing]
    with pytest.raises(FercliError, match="no such file"):
        prepare(replace_records(listing, gone), tmp_path / "out", HERE)
    assert digests(tmp_path / "out") == digests(prepared)


# How faces are found and cut


def test_the_given_box_chooses_among_several_faces(tmp_path, faces):
    writers.write_expw(tmp_path / "expw", faces[:4])
    prepare(read_dataset("expw", "expw", tmp_path / "expw"), tmp_path / "out", HERE)
    store = Store.open(tmp_path / "out")
    assert store.counts()["rejected"] == 0 and len(store) == 4
    both = [i for i, name in enumerate(store.ids) if name.startswith("procedural_face_3.jpg")]
    for i, face in zip(both, faces[2:4], strict=True):
        drawn = align.warp(face.image, align.template_matrix(face.landmarks), 140)
        assert abs(store.faces[i][40:110, 40:100].astype(int) - drawn[40:110, 40:100]).mean() < 30


def test_given_landmarks_need_no_detector(tmp_path, raf, faces):
    summary = prepare(read_dataset("r", "raf-db", raf), tmp_path / "out", replace(HERE, landmarks="given"))
    assert summary.given == summary.expected == 14
    store = Store.open(tmp_path / "out")
    matrix = align.template_matrix(np.round(faces[0].landmarks.astype(float), 3))
    np.testing.assert_allclose(store.landmarks[0], align.transform(matrix, faces[0].landmarks), atol=0.01)


def test_given_landmarks_that_are_not_there_or_wrong_are_rejected(tmp_path, raf):
    listing = read_dataset("r", "raf-db", raf)
    records = listing.records[:4]
    records[1] = replace(records[1], landmarks=None)
    records[2] = replace(records[2], landmarks=((5.0, 5.0),) * 5)
    records[3] = replace(records[3], landmarks=tuple((x + 5000, y) for x, y in records[3].landmarks))
    prepare(replace_records(listing, records), tmp_path / "out", replace(HERE, landmarks="given"))
    reasons = [row["reason"] for row in read_manifest(tmp_path / "out")]
    assert reasons[:2] == ["", "no landmarks given"]
    assert "no similarity" in reasons[2] and "outside the picture" in reasons[3]


@pytest.mark.parametrize("with_boxes", [True, False])
def test_missing_faces_may_be_kept_under_the_mean_shape(tmp_path, raf, with_boxes):
    listing = read_dataset("r", "raf-db", raf)
    records = [r if with_boxes else replace(r, box=None) for r in listing.records[:5]]
    blank = tmp_path / "blank.png"
    Image.new("RGB", (200, 160), (90, 80, 70)).save(blank)
    for i, at in enumerate((0, 3)):
        extra = replace(records[0], id=f"blank{i}", path=str(blank), box=(40.0, 30, 150, 140) if with_boxes else None)
        records.insert(at, extra)
    records.append(replace(records[1], id="gone", path="gone.jpg"))
    options = replace(HERE, missing="mean-landmarks", chunk=2)
    summary = prepare(replace_records(listing, records), tmp_path / "out", options)
    assert (summary.found, summary.mean_landmarks, summary.rejected) == (5, 2, 1)
    rows = read_manifest(tmp_path / "out")
    assert [row["status"] for row in rows] == [
        "mean-landmarks", "found", "found", "mean-landmarks", "found", "found", "found", "rejected",
    ]  # fmt: skip
    store = Store.open(tmp_path / "out")
    assert len(store) == 7 and len(set(store.faces[0].reshape(-1, 3)[:, 0])) == 1
    assert np.abs(store.landmarks[0] - (align.ARCFACE_TEMPLATE + 14)).max() < 8
    prepare(replace_records(listing, records), tmp_path / "again", replace(options, chunk=128))
    assert digests(tmp_path / "out") == digests(tmp_path / "again")


def test_the_papers_box_crop(tmp_path, raf, faces):
    listing = read_dataset("r", "raf-db", raf)
    prepare(replace_records(listing, listing.records[:3]), tmp_path / "out", replace(HERE, align="box"))
    store = Store.open(tmp_path / "out")
    image = read_image(raf / listing.records[0].path)
    matrix = align.box_matrix(listing.records[0].box)
    np.testing.assert_array_equal(store.faces[0], align.warp(image, matrix, 140))
    np.testing.assert_allclose(store.landmarks[0], align.transform(matrix, faces[0].landmarks), atol=12)


def test_sizes_follow_the_options(tmp_path, raf):
    listing = read_dataset("r", "raf-db", raf)
    options = replace(HERE, size=64, margin=8, crop_size=32, crop_zoom=2.0)
    prepare(replace_records(listing, listing.records[:2]), tmp_path / "out", options)
    store = Store.open(tmp_path / "out")
    assert store.faces.shape[1:] == (80, 80, 3) and store.crops.shape[1:] == (5, 32, 32, 3)
    assert store.meta["parameters"]["crop_zoom"] == 2.0


def test_the_retry_ladder_finds_small_grey_tight_faces(tmp_path, faces):
    """FER2013's way: 48 x 48, grey, cut close. The step that found a face is in the manifest."""
    tight = []
    for face in faces[:7]:
        left, top, right, bottom = (int(v) for v in face.box)
        tight.append(replace(face, image=np.ascontiguousarray(face.image[top:bottom, left:right])))
    writers.write_fer2013(tmp_path / "fer", tight)
    summary = prepare(read_dataset("fer", "fer2013", tmp_path / "fer"), tmp_path / "out", HERE)
    assert summary.kept >= 6 and summary.found + summary.retried == summary.kept
    for row in read_manifest(tmp_path / "out"):
        assert row["reason"] in ("border", "upscale", "low-confidence", "full-range") or row["status"] != "retried"
    none = prepare(read_dataset("fer", "fer2013", tmp_path / "fer"), tmp_path / "o2", replace(HERE, retries=()))
    assert none.retried == 0


@pytest.mark.parametrize("scale", [0.5, 1.0, 4.0, 9.0])
def test_landmarks_do_not_depend_on_the_size_of_the_photograph(faces, scale):
    image = faces[0].image
    size = (round(image.shape[1] * scale), round(image.shape[0] * scale))
    resized = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS))
    found, plain = Landmarker().find(resized), Landmarker().find(image)
    eyes = np.linalg.norm(plain.points5[1] - plain.points5[0])
    np.testing.assert_allclose((found.points5 + 0.5) / scale - 0.5, plain.points5, atol=0.05 * eyes)
    assert 0.4 < found.score <= 1 and plain.how == "found"


def test_landmarker_is_silent(tmp_path, faces):
    np.save(tmp_path / "face.npy", faces[0].image)
    code = (
        "import sys, numpy as np; from fercli.faces.landmarker import Landmarker; "
        "l = Landmarker(); assert l.find(np.load(sys.argv[1])); l.find(np.zeros((60, 60, 3), np.uint8))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "face.npy")], capture_output=True, check=True)
    assert done.stdout == done.stderr == b""


# Reading pictures


def four_colours() -> Image.Image:
    image = np.zeros((40, 60, 3), np.uint8)
    image[:20, :30], image[:20, 30:], image[20:, :30], image[20:, 30:] = (
        (200, 30, 30),
        (30, 200, 30),
        (30, 30, 200),
        128,
    )
    return Image.fromarray(image)


def exif_of(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


@pytest.mark.parametrize(
    ("form", "mode", "options"),
    [
        ("JPEG", "RGB", {"quality": 95, "subsampling": 0}),
        ("JPEG", "CMYK", {"quality": 98}),
        ("PNG", "RGB", {}),
        ("PNG", "P", {}),
        ("PNG", "RGBA", {}),
        ("TIFF", "RGB", {}),
        ("BMP", "RGB", {}),
        ("WEBP", "RGB", {"lossless": True}),
        ("GIF", "P", {"save_all": True, "append_images": [Image.new("P", (60, 40))]}),
    ],
)
def test_every_kind_of_picture_is_read_as_rgb(form, mode, options):
    picture = four_colours().quantize(8) if mode == "P" else four_colours().convert(mode)
    image = decode_image(encoded(picture, form, **options))
    assert image.dtype == np.uint8 and image.shape == (40, 60, 3) and image.flags.c_contiguous
    inner = np.s_[4:-4, 4:-4]
    assert abs(image[inner].astype(int) - np.asarray(four_colours())[inner]).mean() < 4


@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_honoured(form, orientation):
    turns = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    upright = four_colours()
    stored = upright.transpose(turns[orientation]) if orientation in turns else upright
    image = decode_image(encoded(stored, form, exif=exif_of(orientation)))
    assert image.shape == (40, 60, 3)
    assert abs(image.astype(int) - np.asarray(upright)).mean() < 6


def test_grey_16_bits_and_transparency():
    ramp = np.tile(np.linspace(0, 65535, 60).astype(np.uint16), (40, 1))
    deep = decode_image(encoded(Image.fromarray(ramp), "PNG"))
    np.testing.assert_allclose(deep[0, :, 0], np.linspace(0, 255, 60), atol=1)
    clear = Image.new("RGBA", (10, 10), (255, 0, 0, 0))
    assert (decode_image(encoded(clear, "PNG")) == 255).all()
    assert (decode_image(encoded(Image.new("L", (9, 9), 77), "JPEG")) == 77).all()


def test_unreadable_files_say_why(tmp_path):
    for path, reason in ((tmp_path / "none.jpg", "no such file"), (tmp_path, "a folder")):
        with pytest.raises(Unreadable, match=reason):
            read_image(path)


@pytest.mark.parametrize(
    ("pixels", "reason"),
    [
        ("1 2 3", "3 pixels instead of 2304"),
        (" ".join(["300"] * 2304), "outside"),
        (" ".join(["x"] * 2304), "no numbers"),
    ],
)
def test_bad_pixel_rows_say_why(tmp_path, pixels, reason):
    (tmp_path / "t.csv").write_text(f"emotion,pixels,Usage\n3,{pixels},Training\n")
    with pytest.raises(Unreadable, match=reason):
        decode_pixels(read_pixels(tmp_path / "t.csv", len("emotion,pixels,Usage\n")))


def test_pixel_rows_are_read_where_they_stand(tmp_path):
    writer_rows = [" ".join(str((i * 7 + k) % 256) for k in range(2304)) for i in range(3)]
    with (tmp_path / "fer2013.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["emotion", "pixels", "Usage"])
        table.writerows([i, row, "Training"] for i, row in enumerate(writer_rows))
    for record, row in zip(read_dataset("f", "fer2013", tmp_path), writer_rows, strict=True):
        image = decode_pixels(read_pixels(tmp_path / record.path, record.offset))
        assert image[..., 1].ravel().tolist() == [int(v) for v in row.split()]


# Real faces


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "reader", "step", "least"), [("wild-mini", "csv", 5, 0.97), ("fer2013-mini", "fer2013", 10, 0.9)]
)
def test_real_faces_are_found(tmp_path, name, reader, step, least):
    root = Path(__file__).resolve().parents[2] / "shared" / "data" / name
    if not root.is_dir():
        pytest.skip(f"needs the real faces in {root}")
    listing = read_dataset(name, reader, root)
    summary = prepare(replace_records(listing, listing.records[::step]), tmp_path / name, HERE)
    assert summary.kept >= least * summary.expected
