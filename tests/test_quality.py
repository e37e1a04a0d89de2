"""The quality report: robust hashes, an exhaustive search, leaks found, numbers that add up."""

from __future__ import annotations

import io
import json
import re
from collections import Counter
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import run
from pages import Page
from PIL import Image
from stores import seal

from fercli.datasets import read_dataset
from fercli.errors import FercliError
from fercli.expressions import EXPRESSIONS
from fercli.faces import align
from fercli.faces.perceptual_hash import NEAR, likeness, patch, perceptual_hash, unpack
from fercli.prepare import prepare
from fercli.prepare.audit import numbers
from fercli.prepare.audit.duplicates import compare, faces_of, near_pairs, numbering
from fercli.prepare.audit.report import write_quality
from fercli.spec import Prepare
from fercli.store import FORMATS, MANIFEST_COLUMNS, Store, count_statuses, read_manifest, write_manifest
from fercli.synthetic.render import STUDIO, Domain, render
from fercli.synthetic.writers import write_raf_db

MARGIN = 14
NOTHING = dict.fromkeys(
    ("leaks", "shared", "leaks_within", "across_splits", "duplicates", "alike", "subjects_across", "unlooked"), 0
)
GREEN = "No face was found in two splits"


def aligned(domain: Domain, identities: range, image_seed: int = 0) -> list[np.ndarray]:
    """Return one face [140, 140, 3] per person, with varying expressions."""
    faces = [render(domain, person, person % 7, image_seed) for person in identities]
    return [align.warp(face.image, align.template_matrix(face.landmarks), 140) for face in faces]


@pytest.fixture(scope="module")
def studio() -> list[np.ndarray]:
    return aligned(STUDIO, range(24))


def store_of(
    folder: Path,
    faces: list[np.ndarray],
    rejected: int = 0,
    synthetic: bool = True,
    protocol: tuple[str, str] = ("all", "all"),
    **columns,
) -> Store:
    """Write a complete store of these faces. `columns` {name: one value per face} fill its manifest.

    `protocol` names the splits that are adapted to and those that are scored.
    """
    folder.mkdir(parents=True)
    rows = []
    for i in range(len(faces) + rejected):
        kept = i < len(faces)
        row = dict.fromkeys(MANIFEST_COLUMNS, "")
        row |= {"id": f"{i}.jpg", "path": f"{i}.jpg", "split": "all", "label": i % 7}
        row |= {"status": "found", "score": "0.9000"} if kept else {"status": "rejected", "reason": "no face found"}
        row |= {name: values[i] for name, values in columns.items()} if kept else {}
        rows.append(row)
    write_manifest(folder / "manifest.csv", rows)
    n = len(faces)
    np.save(folder / "faces.npy", np.stack(faces) if n else np.zeros((0, 140, 140, 3), np.uint8))
    np.save(folder / "landmarks.npy", np.zeros((n, 5, 2), np.float32))
    np.save(folder / "crops.npy", np.zeros((n, 5, 48, 48, 3), np.uint8))
    np.save(folder / "labels.npy", np.arange(n) % 7)
    np.save(folder / "digests.npy", np.zeros((n, 16), np.uint8))
    np.save(folder / "splits.npy", np.array([row["split"] for row in rows[:n]], dtype="<U16"))
    counts, splits = count_statuses(rows)
    meta = {
        "format": FORMATS["template"],
        "name": folder.name,
        "synthetic": synthetic,
        "parameters": {"align": "template", "margin": MARGIN},
    }
    meta |= {"adapt_splits": protocol[0].split(), "score_splits": protocol[1].split()}
    meta |= {"counts": counts, "splits": splits, "left_out": {}}
    (folder / "meta.json").write_text(json.dumps(meta))
    seal(folder)
    return Store.open(folder)


def jpeg(image: np.ndarray, quality: int) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer))


def resized(image: np.ndarray, scale: float) -> np.ndarray:
    side = round(len(image) * scale)
    small = cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA)
    return cv2.resize(small, image.shape[:2], interpolation=cv2.INTER_CUBIC)


def moved(image: np.ndarray, x: float, y: float, degrees: float = 0.0) -> np.ndarray:
    matrix = cv2.getRotationMatrix2D((69.5, 69.5), degrees, 1)
    matrix[:, 2] += (x, y)
    return cv2.warpAffine(image, matrix, (140, 140), borderMode=cv2.BORDER_REPLICATE)


def brighter(image: np.ndarray) -> np.ndarray:
    return np.clip(image * 1.1 + 12.0, 0, 255).astype(np.uint8)


CHANGES = {
    "JPEG 50": lambda face: jpeg(face, 50),
    "half size": lambda face: resized(face, 0.5),
    "brighter": brighter,
    "grey": lambda face: np.repeat(face.mean(2, keepdims=True).astype(np.uint8), 3, axis=2),
    "moved by a pixel": lambda face: moved(face, 1, -1),
    "another margin": lambda face: np.pad(face[MARGIN:-MARGIN, MARGIN:-MARGIN], [(MARGIN,) * 2] * 2 + [(0, 0)], "edge"),
    "all at once": lambda face: moved(jpeg(brighter(resized(face, 0.5)), 60), 0.7, 0.5, 0.5),
}


def apart(first: np.ndarray, second: np.ndarray) -> int:
    """Return the distance of two faces' hashes, counted bit by bit."""
    codes = (int(perceptual_hash(face, MARGIN), 16) for face in (first, second))
    return bin(next(codes) ^ next(codes)).count("1")


# Hashes


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_face_is_recognised(studio, change):
    """Nearly all changed faces have hashes near enough, and these also match in their pixels."""
    changed = [CHANGES[change](face) for face in studio]
    near = [i for i, face in enumerate(studio) if apart(face, changed[i]) <= NEAR]
    assert len(near) >= len(studio) - 2
    assert np.median([likeness(patch(studio[i], MARGIN), patch(changed[i], MARGIN)) for i in near]) > 0.95


def test_faces_of_different_people_are_apart(studio):
    distances = [apart(a, b) for i, a in enumerate(studio) for b in studio[:i]]
    assert np.median(distances) > 85 and np.mean(np.array(distances) <= NEAR) < 0.02
    assert max(likeness(patch(a, MARGIN), patch(b, MARGIN)) for a, b in pairwise(studio)) < 0.9


def test_a_hash_is_64_hex_digits_and_leaves_the_margin_out(studio):
    text = perceptual_hash(studio[0], MARGIN)
    assert re.fullmatch("[0-9a-f]{64}", text)
    other = studio[0].copy()
    other[:MARGIN] = 0
    assert perceptual_hash(other, MARGIN) == text
    assert unpack([text]).tobytes().hex() == text and unpack([]).shape == (0, 32)


def test_the_first_bits_are_those_of_the_lowest_frequencies():
    """The two lowest frequencies are half a cosine across and down the face. Bright to dark sets their bits."""
    rows = 128 + 100 * np.cos(np.pi * (np.arange(112) + 0.5) / 112)
    down = np.broadcast_to(rows[:, None, None], (112, 112, 3)).astype(np.uint8)
    across = np.ascontiguousarray(down.swapaxes(0, 1))
    codes = [int(perceptual_hash(face, 0)[0], 16) for face in (down, 255 - down, across, 255 - across)]
    assert [code >> 2 for code in codes] == [0b01, 0b00, 0b10, 0b00]


def test_flat_faces_have_a_hash_and_no_likeness():
    flat = np.full((140, 140, 3), 90, np.uint8)
    assert perceptual_hash(flat, MARGIN) == "0" * 64
    assert likeness(patch(flat, MARGIN), patch(flat, MARGIN)) == 0.0


@pytest.mark.parametrize("hashes", (["ab"], ["0" * 63], ["g" * 64]))
def test_an_invalid_hash_is_refused(hashes):
    with pytest.raises(ValueError):
        unpack(hashes)


# The search


def brute_force(first: np.ndarray, second: np.ndarray, distance: int) -> dict[tuple[int, int], int]:
    bits = (np.unpackbits(codes, axis=1).astype(bool) for codes in (first, second))
    away = (next(bits)[:, None] != next(bits)[None]).sum(2)
    return {(int(i), int(j)): int(away[i, j]) for i, j in zip(*np.nonzero(away <= distance), strict=True)}


@pytest.mark.parametrize("distance", (0, 1, NEAR, 118))
@pytest.mark.parametrize("sizes", ((0, 3), (1, 1), (130, 71)))
def test_the_search_finds_every_pair(monkeypatch, sizes, distance):
    monkeypatch.setattr("fercli.prepare.audit.duplicates._ROWS", 32)
    monkeypatch.setattr("fercli.prepare.audit.duplicates._COLUMNS", 16)
    rng = np.random.default_rng(5)
    first, second = (rng.integers(0, 256, (n, 32), dtype=np.uint8) for n in sizes)
    for k in range(min(sizes)):  # pairs at every distance from 0
        flipped = np.unpackbits(first[k])
        flipped[rng.permutation(256)[:k]] ^= 1
        second[k] = np.packbits(flipped)
    for a, b in ((first, second), (second, first)):
        found = {(i, j): d for block in near_pairs(a, b, distance) for i, j, d in zip(*map(list, block), strict=True)}
        assert found == brute_force(a, b, distance)
    both = np.concatenate([first, second])
    within = {(i, j): d for block in near_pairs(both, None, distance) for i, j, d in zip(*block, strict=True)}
    assert within == {(i, j): d for (i, j), d in brute_force(both, both, distance).items() if i < j}


def test_the_nearest_are_examined_and_the_rest_counted(tmp_path, studio):
    faces = faces_of(store_of(tmp_path / "one", studio[:1] * 30), numbering())
    found = compare(faces, looked_at=20)
    assert (found.near, found.unlooked, len(found.pairs)) == (435, 415, 20)
    assert [(p.first, p.second) for p in found.pairs] == [(0, j) for j in range(1, 21)]


def test_pairs_of_one_subject_within_a_split_are_counted_separately(tmp_path, studio):
    subjects, splits = ["ann", "ann", "bob", "", "ann"], ["train", "test", "train", "train", "train"]
    store = store_of(tmp_path / "one", studio[:1] * 5, subject=subjects, split=splits)
    faces = faces_of(store, numbering())
    found = compare(faces)
    assert (found.one_subject, found.one_subject_across, found.near, faces.subjects_across) == (1, 2, 9, 1)
    pairs = [(p.first, p.second, p.across) for p in found.pairs]
    assert pairs == [
        *((0, 1, True), (1, 2, True), (1, 3, True), (1, 4, True)),
        *((0, 2, False), (0, 3, False), (2, 3, False), (2, 4, False), (3, 4, False)),
    ]


# Leaks


def compared(tmp_path: Path, here: list[np.ndarray], there: list[np.ndarray], **columns) -> dict:
    stores = [store_of(tmp_path / "here", here, **columns), store_of(tmp_path / "there", there, **columns)]
    return write_quality(stores, tmp_path / "report", {"here": "source", "there": "target"})


@pytest.mark.parametrize("change", ("JPEG 50", "half size", "brighter", "grey", "moved by a pixel"))
def test_an_image_in_source_and_target_is_a_leak(tmp_path, studio, change):
    document = compared(tmp_path, studio[:8], [*studio[8:14], CHANGES[change](studio[3])])
    assert document["summary"] == NOTHING | {"leaks": 1, "shared": 1}
    comparison = document["comparisons"][0]
    assert (comparison["first"], comparison["second"], comparison["within"]) == ("here", "there", False)
    (pair,) = comparison["pairs"]
    assert (pair["first"], pair["second"], pair["kind"], pair["across"]) == ("3.jpg", "6.jpg", "same image", True)
    page = (tmp_path / "report/quality.html").read_text("utf-8")
    assert (
        "Leak: 1 pair of faces has one face trained on in a source and the other scored in a target." in page
        and "1 between here and there." in page
    )


def test_different_faces_are_not_a_leak(tmp_path, studio):
    document = compared(tmp_path, studio[:12], studio[12:])
    assert document["summary"] == NOTHING
    assert "No face was found in two splits, or in both a source and a target." in page_of(tmp_path)


def test_the_same_file_needs_no_comparison(tmp_path, studio):
    """Equal files with near faces are a pair. Equal files with different faces are not."""
    flat = np.full_like(studio[0], 128)
    document = compared(tmp_path, [flat, studio[1]], [flat, studio[2]], source=["a" * 32, "b" * 32])
    (pair,) = document["comparisons"][0]["pairs"]
    assert (pair["first"], pair["second"], pair["kind"], pair["likeness"]) == ("0.jpg", "0.jpg", "same file", None)


def test_a_face_in_two_splits_is_marked(tmp_path, studio):
    splits = ["train"] * 6 + ["test"] * 2 + ["train"]
    store = store_of(tmp_path / "one", [*studio[:7], studio[2], studio[5]], split=splits, protocol=("train", "test"))
    document = write_quality([store], tmp_path / "report", {})
    assert document["summary"] == NOTHING | {"leaks_within": 1, "across_splits": 1, "duplicates": 2}
    first, second = document["comparisons"][0]["pairs"]
    assert (first["first"], first["second"], first["splits"], first["across"]) == (
        "2.jpg",
        "7.jpg",
        ["train", "test"],
        True,
    )
    assert (second["first"], second["second"], second["across"]) == ("5.jpg", "8.jpg", False)
    assert document["comparisons"][0]["labels_differ"] == 2  # 2 and 7 % 7, 5 and 8 % 7
    assert "Leak: 1 pair of faces has one face in a split that is trained on or adapted to and the other in" in page_of(
        tmp_path
    )
    assert GREEN not in page_of(tmp_path)


@pytest.mark.parametrize(
    ("adapt", "score", "leaks"),
    (
        ("train", "test", 1),
        ("train", "train test", 1),
        ("train test", "train test", 0),  # adapted to and scored as a whole
        ("train", "val", 0),
    ),
)
def test_one_image_of_a_subject_in_two_splits(tmp_path, studio, adapt, score, leaks):
    """The commonest leak: one file of one subject in train and in test. A similar image in train is not a leak."""
    columns = {"subject": ["s0", "s0", "s0", "s1"], "split": ["train", "test", "train", "test"]}
    columns |= {"source": ["a" * 32, "a" * 32, "c" * 32, "d" * 32]}
    faces = [studio[0], studio[0], jpeg(studio[0], 80), studio[1]]
    store = store_of(tmp_path / "one", faces, protocol=(adapt, score), **columns)
    document = write_quality([store], tmp_path / "report", {"one": "target"})
    counts = {"leaks_within": 2 * leaks, "across_splits": 2, "duplicates": 2, "subjects_across": 1}
    assert document["summary"] == NOTHING | counts
    (comparison,) = document["comparisons"]
    assert (comparison["same file"], comparison["one_subject"], comparison["one_subject_across"]) == (1, 1, 2)
    html = page_of(tmp_path)
    assert ("Leak: 2 pairs" in html) is bool(leaks) and GREEN not in html
    assert ("2 pairs of faces are in two splits of one dataset, but not" in html) is not leaks
    assert "1 subject is in several splits" in html


@pytest.mark.parametrize(
    ("source", "target", "leaks"), (("train", "test", 1), ("test", "test", 0), ("train", "train", 0))
)
def test_a_leak_is_trained_on_and_scored(tmp_path, studio, source, target, leaks):
    here = store_of(tmp_path / "here", studio[:2], split=[source, "train"], protocol=("train", "test"))
    there = store_of(tmp_path / "there", [studio[0], studio[2]], split=[target, "test"], protocol=("train", "test"))
    document = write_quality([here, there], tmp_path / "report", {"here": "source", "there": "target"})
    assert document["summary"] == NOTHING | {"leaks": leaks, "shared": 1}
    (pair,) = document["comparisons"][0]["pairs"]
    assert (pair["splits"], pair["leak"]) == ([source, target], bool(leaks))
    html = page_of(tmp_path)
    assert ("1 pair of faces is in both a source and a target, but not trained on and scored" in html) is not leaks
    assert ("faces that the model was trained on" in html) is bool(leaks) and GREEN not in html
    assert f'<b class="cut" title="here">here</b><b class="cut" title="{source}">{source}</b>' in html


def test_subjects_in_two_splits_and_unexamined_pairs_are_reported(tmp_path, studio, monkeypatch):
    """Neither is a duplicate, but with either, the page must not say that there is none."""
    people = store_of(tmp_path / "people", studio[:2], subject=["s0", "s0"], split=["train", "test"])
    assert write_quality([people], tmp_path / "report", {})["summary"] == NOTHING | {"subjects_across": 1}
    assert GREEN not in page_of(tmp_path) and "1 subject is in several splits" in page_of(tmp_path)
    monkeypatch.setattr("fercli.prepare.audit.report.LOOKED_AT", 0)
    many = store_of(tmp_path / "many", [studio[0]] * 2)
    assert write_quality([many], tmp_path / "report", {})["summary"] == NOTHING | {"unlooked": 1}
    assert GREEN not in page_of(tmp_path) and "1 pair with similar hashes was not examined" in page_of(tmp_path)


def test_every_source_is_compared_with_every_target(tmp_path, studio):
    roles = {"a": "source", "b": "source", "c": "target", "d": "target", "e": ""}
    stores = [store_of(tmp_path / name, [studio[k]]) for k, name in enumerate(roles)]
    document = write_quality(stores, tmp_path / "report", roles)
    met = [(c["first"], c["second"]) for c in document["comparisons"]]
    assert "4 pairs of datasets, 5 datasets: nothing found" in page_of(tmp_path)
    assert "within the dataset</small>" not in page_of(tmp_path)
    assert met == [("a", "c"), ("a", "d"), ("b", "c"), ("b", "d"), *((name, name) for name in roles)]


def test_leaks_are_found_starting_from_images(tmp_path):
    """The whole pipeline: the same images with other names, sizes and qualities are prepared again."""
    for name, people in (("here", range(6)), ("there", range(6, 11))):
        for person in people:
            face = render(STUDIO, person, person % 7, 1)
            save(tmp_path / "data" / name / EXPRESSIONS[person % 7] / f"{person}.png", face.image)
    copied = render(STUDIO, 4, 4, 1).image
    smaller = cv2.resize(copied, None, fx=0.7, fy=0.7, interpolation=cv2.INTER_AREA)
    save(tmp_path / "data/there/happiness/IMG_0001.jpg", smaller, quality=60)
    stores = []
    for name in ("here", "there"):
        prepare(read_dataset(name, "folders", tmp_path / "data" / name), tmp_path / name, Prepare(workers=1))
        stores.append(Store.open(tmp_path / name))
    document = write_quality(stores, tmp_path, {"here": "source", "there": "target"})
    assert document["summary"]["leaks"] == 1
    (pair,) = document["comparisons"][0]["pairs"]
    assert (pair["first"], pair["second"]) == ("sadness/4.png", "happiness/IMG_0001.jpg")


def save(path: Path, image: np.ndarray, **options) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path, **options)


# Numbers


def test_numbers_match_the_manifest(prepared, tmp_path):
    stores = [Store.open(prepared / name) for name in ("raf-db", "jaffe")]
    document = write_quality(stores, tmp_path, {"raf-db": "source", "jaffe": "target"})
    assert json.loads((tmp_path / "quality.json").read_text()) == document
    for store in stores:
        rows, about = read_manifest(store.path), document["datasets"][store.name]
        kept = [row for row in rows if row["status"] != "rejected"]
        assert (about["listed"], about["kept"], about["synthetic"]) == (len(rows), len(kept), True)
        assert about["statuses"] == {**dict.fromkeys(about["statuses"], 0), **Counter(row["status"] for row in rows)}
        assert sum(about["rejected"].values()) == len(rows) - len(kept)
        assert about["subjects"] == len({row["subject"] for row in rows if row["subject"]})
        for split, part in about["splits"].items():
            here = [EXPRESSIONS[int(row["label"])] for row in kept if row["split"] == split]
            assert part["classes"] == {**dict.fromkeys(EXPRESSIONS, 0), **Counter(here)}
        assert {name: c["kept"] for name, c in about["classes"].items()} == Counter(
            EXPRESSIONS[label] for label in store.labels
        )
        scores = [float(row["score"]) for row in kept if row["score"]]
        assert (about["score"]["faces"], sum(about["score"]["counts"])) == (len(scores), len(scores))
        assert about["score"]["median"] == pytest.approx(np.median(scores), abs=1e-4)
    assert document["summary"]["leaks"] == 0


def test_the_report_is_reproducible(tmp_path, studio):
    store = store_of(tmp_path / "one", [*studio[:4], studio[0]])
    written = []
    for _ in range(2):
        write_quality([store], tmp_path / "report", {})
        written.append([(tmp_path / "report" / f"quality.{form}").read_bytes() for form in ("json", "html")])
    assert written[0] == written[1]


def test_labels_of_a_store_opened_without_them_stay_unread(tmp_path, studio):
    store_of(tmp_path / "one", studio[:3])
    closed = Store.open(tmp_path / "one", labels=False)
    document = write_quality([closed], tmp_path / "report", {"one": "target"})
    assert document["datasets"]["one"]["classes"]["surprise"] == {"listed": 1, "kept": 1}


@pytest.mark.parametrize(
    ("values", "counts", "median"),
    (
        ([], [0, 0, 0, 0], None),
        ([0.0, 0.24, 0.25, 1.0], [2, 1, 0, 1], 0.245),
        ([-3.0, 0.6, 7.0], [1, 0, 1, 1], 0.6),
    ),
)
def test_histograms(values, counts, median):
    made = numbers.histogram(values, 0, 1, 4)
    assert (made["counts"], made["median"], made["faces"]) == (counts, median, len(values))


def test_detected_and_given_landmarks(tmp_path, studio):
    errors = ["0.0400", "", "0.5000", "0.0600", "nonsense"]
    store = store_of(tmp_path / "one", studio[:5], given_error=errors, yaw=["-10.0", "0.0", "10.0", "", "70.0"])
    about = numbers.dataset_numbers(store)
    assert about["given_error"]["faces"] == 3 and about["given_error"]["median"] == 0.06
    assert [one["id"] for one in about["given_error"]["worst"]] == ["2.jpg", "3.jpg", "0.jpg"]
    yaw = about["pose"]["yaw"]
    assert (yaw["faces"], yaw["median"], yaw["counts"][-1]) == (4, 5.0, 1)
    write_quality([store], tmp_path / "report", {})
    assert "differ by 6.0% of the distance between the eyes" in page_of(tmp_path)
    # store_of puts all five landmarks in the corner of the face, which is a margin outside the part shown
    assert page_of(tmp_path).count("M-13.5 -13.5h0" * 5 + '"') == 2 * 3


def test_an_older_manifest_lacks_columns(tmp_path, studio):
    """Hashes are computed from the faces. Poses and errors are left out."""
    store = store_of(tmp_path / "one", [studio[0], studio[1], studio[0]])
    text = (store.path / "manifest.csv").read_text().splitlines()
    (store.path / "manifest.csv").write_text("\n".join(",".join(line.split(",")[:9]) for line in text) + "\n")
    seal(store.path)
    document = write_quality([Store.open(store.path)], tmp_path / "report", {})
    assert document["summary"]["duplicates"] == 1
    assert document["datasets"]["one"]["given_error"] is None
    assert document["datasets"]["one"]["pose"]["roll"]["faces"] == 0


# The page


def page_of(tmp_path: Path) -> str:
    return (tmp_path / "report/quality.html").read_text("utf-8")


def test_names_are_escaped_and_nothing_is_loaded(tmp_path, studio):
    evil = "<script>alert(1)</script>&\"'.jpg"
    bytes_of_no_name = b"caf\xe9.jpg".decode("utf-8", "surrogateescape")
    store = store_of(
        tmp_path / "a&b <i>",
        [studio[0], studio[0], studio[1]],
        rejected=1,
        id=[evil, bytes_of_no_name, "2.jpg"],
        split=["<b>x</b>", "y", "y"],
        given_error=["0.5", "0.1", ""],
    )
    document = write_quality([store], tmp_path / "report", {store.name: "source"})
    html = page_of(tmp_path)
    page = Page(html)
    assert "<script" not in html and "<i>" not in html.replace("<i class", "").replace('<i style="width', "")
    assert evil in page.text and "caf\ufffd.jpg" in page.text
    loads = [attributes[key] for _, attributes in page.elements for key in ("src", "srcset") if key in attributes]
    loads += [attributes["href"] for tag, attributes in page.elements if tag == "link"]
    assert loads and all(target.startswith("data:") for target in loads)
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert "@import" not in html and "url(" not in html and len(ids) == len(set(ids))
    assert document["comparisons"][0]["pairs"][0]["second"] == bytes_of_no_name
    assert json.loads((tmp_path / "report/quality.json").read_text()) == document


def test_names_show_their_ends(tmp_path, studio):
    names = ["a/very/long/way/to/0001.jpg", "b.jpg", "x" * 80 + "/0002.jpg"]
    write_quality([store_of(tmp_path / "one", studio[:1] * 3, id=names)], tmp_path / "report", {})
    assert f"<span>\N{HORIZONTAL ELLIPSIS}{'x' * 60}</span><span>/0002.jpg</span>" in page_of(tmp_path)
    assert "<span>a/very/long/way/to</span><span>/0001.jpg</span>" in page_of(tmp_path)
    assert "<span></span><span>b.jpg</span>" in page_of(tmp_path)


@pytest.mark.parametrize("name", ("quality.html", "quality.json"))
def test_a_folder_with_the_name_of_the_report(tmp_path, studio, name):
    (tmp_path / "report" / name).mkdir(parents=True)
    with pytest.raises(FercliError, match=f"{name} is a folder") as failure:
        write_quality([store_of(tmp_path / "one", studio[:1])], tmp_path / "report", {})
    assert "\n" not in str(failure.value)


def test_an_older_report_is_made_again(tmp_path, studio):
    store = store_of(tmp_path / "one", studio[:1])
    document = write_quality([store], tmp_path / "report", {})
    for old in (json.dumps({**document, "schema": 1, "summary": {}}), "[]"):
        (tmp_path / "report/quality.json").write_text(old)
        assert write_quality([store], tmp_path / "report", {}) == document


def test_splits_are_in_order(tmp_path, studio):
    splits = ["all", "fold 1", "test", "private-test", "public-test", "val", "train"]
    about = numbers.dataset_numbers(store_of(tmp_path / "one", studio[:7], split=splits))
    assert list(about["splits"]) == ["train", "val", "public-test", "private-test", "test", "fold 1", "all"]
    assert {split: part["kept"] for split, part in about["splits"].items()} == dict.fromkeys(splits, 1)


@pytest.mark.parametrize("count", (0, 1))
def test_a_store_with_no_or_one_face(tmp_path, studio, count):
    store = store_of(tmp_path / "one", studio[:count], rejected=2)
    document = write_quality([store], tmp_path / "report", {"one": "target"})
    about = document["datasets"]["one"]
    assert (about["listed"], about["kept"], about["rejected"]) == (count + 2, count, {"no face found": 2})
    assert document["summary"] == NOTHING
    Page(page_of(tmp_path))


def test_many_pairs_do_not_bloat_the_page(tmp_path, studio):
    store = store_of(tmp_path / "one", studio[:1] * 60)
    document = write_quality([store], tmp_path / "report", {})
    assert document["summary"]["duplicates"] == 1770 and len(document["comparisons"][0]["pairs"]) == 1000
    html = page_of(tmp_path)
    assert html.count("<figure") == 24 + 1 and len(html) < 400_000  # 24 pairs and one histogram
    assert "24 of 1\u202f770 pairs shown" in html


def test_the_command_line_reports_a_leak(tmp_path):
    """An image of the source is in the target too, saved again at another quality."""
    faces = [render(STUDIO, person, person % 7, 1) for person in range(6)]
    write_raf_db(tmp_path / "data/raf-db", faces[:3], faces[3:4])
    (tmp_path / "data/mine/happy").mkdir(parents=True)
    for i, face in enumerate([faces[1], *faces[4:]]):
        Image.fromarray(face.image).save(tmp_path / f"data/mine/happy/{i}.jpg", quality=60)
    settings = {"paths.data": tmp_path / "data", "paths.prepared": tmp_path / "prepared", "prepare.workers": 1}
    settings |= {"data.targets": "mine", "data.datasets.mine.reader": "folders"}
    options = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    done = run("prepare", *options)
    told = "quality.html: pairs of duplicate faces trained on in a source and scored in a target (a leak): 1"
    assert done.exit_code == 0 and told in done.stderr
    assert told in run("prepare", "--quiet", *options).stderr
    assert json.loads(run("prepare", "--json", *options).stdout)["quality"]["leaks"] == 1
    document = json.loads((tmp_path / "prepared/quality.json").read_text())
    (leak,) = next(c for c in document["comparisons"] if not c["within"])["pairs"]
    assert (leak["first"], leak["second"]) == ("train_00002.jpg", "happy/0.jpg")
    (tmp_path / "prepared/quality.html").unlink()
    assert run("prepare", "--no-report", *options).exit_code == 0
    assert not (tmp_path / "prepared/quality.html").exists()
