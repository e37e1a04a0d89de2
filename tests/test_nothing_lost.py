"""Preparing that is stopped, repeated, distributed or short of disk: nothing is lost, and the bytes are the same."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import cv2
import drawn
import numpy as np
import PIL
import pytest
from conftest import run
from drawn import THUMBNAIL
from trees import digests, encoded

import fercli.prepare.build
from fercli.datasets import read_dataset
from fercli.errors import FercliError
from fercli.files import LOCK
from fercli.prepare import prepare
from fercli.prepare.partial import PartialStore
from fercli.prepare.verify import verify
from fercli.spec import Prepare
from fercli.store import FILES, LATER_FILES, Store, read_manifest
from fercli.synthetic import writers
from fercli.synthetic.render import render

HERE = Prepare(workers=1)


@pytest.fixture(scope="module")
def many(tmp_path_factory, faces) -> Path:
    """160 images: 14 faces, each under many names."""
    folder = tmp_path_factory.mktemp("many") / "happy"
    folder.mkdir()
    pictures = [encoded(face.image, "JPEG", quality=95) for face in faces]
    for i in range(160):
        (folder / f"{i:03d}.jpg").write_bytes(pictures[i % len(pictures)])
    return folder.parent


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory, many) -> dict[str, str]:
    out = tmp_path_factory.mktemp("unbroken") / "d"
    prepare(read_dataset("d", "folders", many), out, HERE)
    return digests(out)


def lines(out: Path) -> int:
    """Return the number of records in the largest partial store in a folder."""
    return max((len(path.read_bytes().splitlines()) - 1 for path in out.glob("partial-*/journal.jsonl")), default=0)


def start(data: Path, out: Path, **options) -> subprocess.Popen:
    """Prepare in another process, which leads its own process group."""
    script = (
        "import sys, json; from fercli.datasets import read_dataset\n"
        "from fercli.prepare import prepare; from fercli.spec import Prepare\n"
        "prepare(read_dataset('d', 'folders', sys.argv[1]), sys.argv[2], Prepare(**json.loads(sys.argv[3])))"
    )
    command = [sys.executable, "-c", script, str(data), str(out), json.dumps(options)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, start_new_session=True)


# Unchanged input


def test_a_second_run_with_nothing_changed_does_nothing(raf_store, raf):
    def times() -> dict[str, int]:
        return {p.name: p.stat().st_mtime_ns for p in raf_store.iterdir() if p.name != LOCK}  # some touch the lock

    before = times()
    summary = prepare(read_dataset("raf-db", "raf-db", raf), raf_store, HERE)
    assert summary.up_to_date and summary.computed == 0 and summary.counts["found"] == 14
    assert before == times()


def test_workers_and_chunks_do_not_change_the_bytes(tmp_path, raf_store, raf):
    listing = read_dataset("raf-db", "raf-db", raf)
    for name, options in {
        "two": Prepare(workers=2, chunk=4),
        "threads": Prepare(workers=2, chunk=5, backend="threading"),
        "ones": Prepare(workers=1, chunk=1),
    }.items():
        prepare(listing, tmp_path / name, options)
        assert digests(tmp_path / name) == digests(raf_store), name


@pytest.mark.slow
def test_a_dask_cluster_does_not_change_the_bytes(tmp_path, raf_store, raf):
    distributed = pytest.importorskip("distributed", reason="dask is not installed")
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        options = Prepare(workers=0, chunk=3, backend="dask", cluster=cluster.scheduler_address)
        prepare(read_dataset("raf-db", "raf-db", raf), tmp_path / "dask", options)
    assert digests(tmp_path / "dask") == digests(raf_store)


@pytest.mark.slow
def test_a_ray_cluster_does_not_change_the_bytes(tmp_path, raf_store, raf):
    ray = pytest.importorskip("ray", reason="ray is not installed")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        prepare(read_dataset("raf-db", "raf-db", raf), tmp_path / "ray", Prepare(workers=0, chunk=3, backend="ray"))
    finally:
        ray.shutdown()
    assert digests(tmp_path / "ray") == digests(raf_store)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"backend": "dask"}, "prepare.cluster"),
        ({"backend": "dask", "cluster": "tcp://127.0.0.1:9"}, "no dask scheduler answers at tcp://127.0.0.1:9"),
    ],
)
def test_a_missing_cluster_is_reported_in_one_line(tmp_path, raf, monkeypatch, options, words):
    pytest.importorskip("distributed", reason="dask is not installed")
    monkeypatch.delenv("DASK_SCHEDULER_ADDRESS", raising=False)
    import dask

    with dask.config.set({"distributed.comm.timeouts.connect": "1s"}), pytest.raises(FercliError, match=words):
        prepare(read_dataset("r", "raf-db", raf), tmp_path / "out", Prepare(workers=1, **options))


# Changed input


def test_other_parameters_are_noticed(tmp_path, faces):
    writers.write_raf_db(tmp_path / "raf", faces[:3], faces[3:4])
    listing, out = read_dataset("r", "raf-db", tmp_path / "raf"), tmp_path / "out"
    assert prepare(listing, out, HERE).computed == 4
    assert prepare(listing, out, Prepare(workers=1, margin=20)).computed == 4
    assert Store.open(out).faces.shape[1] == 152
    assert prepare(listing, out, Prepare(margin=20, workers=2, chunk=64)).up_to_date
    (out / "faces.npy").unlink()
    assert prepare(listing, out, Prepare(workers=1, margin=20)).computed == 4


def test_a_partial_store_of_other_parameters_is_not_mixed_in(tmp_path, many, unbroken, monkeypatch):
    """Its faces have the same sizes and would fit the arrays. A run with other parameters leaves the store alone."""
    out, listing = tmp_path / "d", read_dataset("d", "folders", many)
    stopped_at_the_end(listing, out, Prepare(workers=1, align="box"), monkeypatch)
    summary = prepare(listing, out, HERE)
    assert (summary.computed, summary.taken_over) == (160, 0)
    assert digests(out) == unbroken
    with monkeypatch.context() as patched:
        patched.setattr(PartialStore, "append", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            prepare(listing, out, Prepare(workers=1, align="box"))
    assert len(Store.open(out)) == 160
    # Back to the first parameters: the store is as it was.
    assert prepare(listing, out, HERE).up_to_date


@pytest.mark.parametrize("stopped", [False, True])
def test_other_versions_of_packages_compute_nothing_again(tmp_path, raf, monkeypatch, stopped):
    """This holds for a complete store and for a stopped run; a store that is rebuilt records the new versions."""
    listing, out = read_dataset("raf-db", "raf-db", raf), tmp_path / "raf-db"
    if stopped:
        stopped_at_the_end(listing, out, HERE, monkeypatch)
    else:
        prepare(listing, out, HERE)
    for module in (fercli, np, PIL, cv2):
        monkeypatch.setattr(module, "__version__", "99.0")
    fercli.prepare.complete.versions.cache_clear()
    monkeypatch.setattr(fercli.prepare.complete, "installed_version", lambda name: "99.0")
    try:
        summary = prepare(listing, out, HERE)
        assert summary.computed == 0 and summary.up_to_date != stopped
        assert (json.loads((out / "meta.json").read_text())["versions"]["numpy"] == "99.0") == stopped
        assert prepare(replace(listing, score_splits=("train",)), out, HERE).computed == 0
    finally:
        fercli.prepare.complete.versions.cache_clear()


def test_a_deleted_contact_sheet_is_redrawn_without_writing_arrays(tmp_path, raf_store, raf):
    out = damaged(raf_store, tmp_path)
    (out / "contact-sheet.jpg").unlink()
    before = {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in out.iterdir() if path.name != LOCK}
    summary = prepare(read_dataset("raf-db", "raf-db", raf), out, HERE)
    assert summary.up_to_date and summary.computed == 0
    after = {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in out.iterdir() if path.name != LOCK}
    assert after.keys() - before.keys() == {"contact-sheet.jpg"} and before.items() <= after.items()
    assert digests(out) == digests(raf_store)


def test_a_store_of_an_earlier_version_is_used_and_completed_from_its_own_data(tmp_path, raf_store, raf):
    out = damaged(raf_store, tmp_path)
    meta = json.loads((out / "meta.json").read_text())
    for name in LATER_FILES:
        (out / name).unlink()
        del meta["sha256"][name], meta["bytes"][name]
    (out / "meta.json").write_text(json.dumps(meta))
    old, new = Store.open(out), Store.open(raf_store)
    assert old.ids.tolist() == new.ids.tolist() and old.subjects.tolist() == new.subjects.tolist()
    assert old.content_digest(labels=True) == new.content_digest(labels=True) and verify(out).whole
    summary = prepare(read_dataset("raf-db", "raf-db", raf), out, HERE)
    assert (summary.computed, summary.taken_over) == (0, 14)
    assert digests(out) == digests(raf_store)


def stopped_at_the_end(listing, out: Path, options: Prepare, monkeypatch) -> None:
    """Prepare, and fail after all faces are made: the partial store remains."""

    def fails(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(fercli.prepare.build, "complete", fails)
        with pytest.raises(OSError, match="Input/output"):
            prepare(listing, out, options)
    assert lines(out) == len(listing) and not (out / "faces.npy").exists()


@pytest.mark.parametrize("change", ["a new image in front", "an image gone", "a smaller chunk size"])
def test_a_stopped_run_keeps_what_a_change_does_not_affect(tmp_path, many, change, monkeypatch):
    """The faces of all 160 images are made; then the input changes slightly before the store is complete."""
    out, data, options = tmp_path / "d", tmp_path / "data", Prepare(workers=1, chunk=8)
    shutil.copytree(many, data)
    stopped_at_the_end(read_dataset("d", "folders", data), out, options, monkeypatch)
    first = data / "happy/000.jpg"
    if change == "a new image in front":
        shutil.copy(first, data / "happy/0000.jpg")
    elif change == "an image gone":
        first.unlink()
    listing = read_dataset("d", "folders", data)
    if change == "a smaller chunk size":
        options = Prepare(workers=1, chunk=5)
    assert prepare(listing, out, options).computed == (change == "a new image in front")
    prepare(listing, tmp_path / "fresh", HERE)
    assert digests(out) == digests(tmp_path / "fresh")


def test_a_temporary_failure_stops_the_run_and_is_not_stored(tmp_path, many, monkeypatch):
    """A temporary disk error (EIO) is not a property of the image."""
    out, real = tmp_path / "d", Path.read_bytes

    def stutter(path: Path) -> bytes:
        if path.name == "077.jpg":
            raise OSError(errno.EIO, "Input/output error")
        return real(path)

    listing = read_dataset("d", "folders", many)
    with monkeypatch.context() as patched:
        patched.setattr(Path, "read_bytes", stutter)
        with pytest.raises(FercliError, match=r"077.jpg cannot be read just now .*; run the same command again"):
            prepare(listing, out, HERE)
    assert prepare(listing, out, HERE).counts["rejected"] == 0


def test_nothing_is_rejected_if_the_disk_with_the_images_is_missing(tmp_path, many):
    listing = read_dataset("d", "folders", many)
    with pytest.raises(FercliError, match="does not exist on"):
        prepare(replace(listing, root=tmp_path / "elsewhere"), tmp_path / "d", HERE)


@pytest.mark.parametrize("missing", ["reject", "mean-landmarks"])
def test_only_changed_images_are_processed_again(tmp_path, faces, missing):
    """One image is replaced, one only touched, one new and one gone: two faces are made."""
    options = Prepare(workers=1, missing=missing, chunk=3)
    data, out = tmp_path / "data/happy", tmp_path / "out"
    data.mkdir(parents=True)
    for i, face in enumerate(faces[:8]):
        (data / f"{i}.jpg").write_bytes(encoded(face.image, "JPEG", quality=95))
    (data / "9.jpg").write_bytes(encoded(np.full((80, 80, 3), 90, np.uint8), "JPEG", quality=95))
    assert prepare(read_dataset("d", "folders", data.parent), out, options).computed == 9
    (data / "2.jpg").write_bytes(encoded(faces[9].image, "JPEG", quality=95))
    os.utime(data / "4.jpg", (1, 1))
    (data / "00.jpg").write_bytes(encoded(faces[10].image, "JPEG", quality=95))
    (data / "6.jpg").unlink()
    listing = read_dataset("d", "folders", data.parent)
    summary = prepare(listing, out, options)
    # An image without a face is searched again if it gets the mean shape, because that has changed.
    again = 0 if missing == "reject" else 1
    assert (summary.computed, summary.taken_over) == (2 + again, 7 - again)
    prepare(listing, tmp_path / "fresh", options)
    assert digests(out) == digests(tmp_path / "fresh")
    assert verify(out, listing).whole


def test_unchanged_rows_of_a_csv_are_kept(tmp_path, faces):
    root, out = tmp_path / "fer", tmp_path / "out"
    small = [render(THUMBNAIL, 1, label, 1) for label in range(4)]
    drawn.write_fer2013(root, small)
    assert prepare(read_dataset("f", "fer2013", root), out, HERE).computed == 4
    text = (root / "fer2013.csv").read_text().splitlines()
    pixels = text[2].split(",")
    text[2] = ",".join([pixels[0], " ".join(pixels[1].split()[::-1]), pixels[2]])
    (root / "fer2013.csv").write_text("\n".join(text) + "\n")
    listing = read_dataset("f", "fer2013", root)
    assert (prepare(listing, out, HERE).computed) == 1
    prepare(listing, tmp_path / "fresh", HERE)
    assert digests(out) == digests(tmp_path / "fresh")


# Stopped


@pytest.mark.slow
def test_a_run_killed_at_random_times_ends_with_the_same_bytes(tmp_path, many, unbroken):
    """kill -9 all its processes, or only the first, six times; then let it finish."""
    chance, out, kills, before = random.Random(4), tmp_path / "d", 0, 0
    while kills < 6:
        process = start(many, out, workers=2 if kills % 2 else 1, chunk=4)
        deadline = time.monotonic() + 20
        # The delay starts when it has passed the last run, or takes over from it: imports take a second.
        while process.poll() is None and time.monotonic() < deadline:
            if len(list(out.glob("partial-*"))) > 1 if kills % 3 == 2 else lines(out) > before:
                break
            time.sleep(0.002)
        time.sleep(chance.uniform(0, 0.12))
        if process.poll() is not None:
            break
        if chance.random() < 0.7:
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
        process.communicate()
        kills += 1
        assert lines(out) >= before, "a stopped run lost faces"
        assert len(list(out.glob("partial-*"))) <= 3
        before = lines(out)
        if not (out / "meta.json").exists():
            with pytest.raises(FercliError, match="incomplete"):
                Store.open(out)
    assert kills >= 3
    last = start(many, out, workers=2, chunk=4)
    said = last.communicate()[1].decode()
    assert last.returncode == 0, said
    assert digests(out) == unbroken


@pytest.mark.parametrize(
    ("name", "spoil", "lost"),
    [
        ("crops.npy", lambda data: data[:-1000] + bytes(1000), 1),
        ("crops.npy", lambda data: data[:-100_000], 160),  # the array can no longer be opened
        ("landmarks.npy", lambda data: b"", 160),
        ("digests.npy", lambda data: data[:128] + bytes(16 * 40) + data[128 + 16 * 40 :], 40),
        ("journal.jsonl", lambda data: data[:-7], 1),
        ("journal.jsonl", lambda data: data[: len(data) // 2] + bytes(len(data) - len(data) // 2), 81),
        ("journal.jsonl", lambda data: data.replace(b'"status": "found"', b'"status": "given"'), 160),
        ("journal.jsonl", lambda data: b"", 160),
    ],
)
def test_faces_damaged_by_a_power_cut_are_made_again(tmp_path, many, unbroken, monkeypatch, name, spoil, lost):
    out, listing = tmp_path / "d", read_dataset("d", "folders", many)
    stopped_at_the_end(listing, out, HERE, monkeypatch)
    file = out / "partial-1" / name
    file.write_bytes(spoil(file.read_bytes()))
    assert abs(prepare(listing, out, HERE).computed - lost) <= 2
    assert digests(out) == unbroken


def test_a_run_that_fails_at_the_end_resumes(tmp_path, raf_store, raf, monkeypatch):
    """The disk fails on the last file: the partial store remains, and nothing is computed twice."""
    listing, out = read_dataset("raf-db", "raf-db", raf), tmp_path / "raf-db"
    stopped_at_the_end(listing, out, HERE, monkeypatch)
    (out / "parts").mkdir()  # as earlier versions left it
    (out / "parts/part-0").touch()
    summary = prepare(listing, out, HERE)
    assert (summary.computed, summary.taken_over) == (0, 14)
    assert digests(out) == digests(raf_store)


def test_rejections_of_a_stopped_run_of_an_earlier_version_are_tried_again(tmp_path, raf, monkeypatch):
    """As for a complete store, the faces found are kept."""
    listing, out = read_dataset("raf-db", "raf-db", raf), tmp_path / "raf-db"
    listing = replace(listing, records=[*listing.records, replace(listing.records[0], id="gone", path="gone.jpg")])
    with monkeypatch.context() as earlier:
        earlier.setitem(fercli.prepare.partial._HEAD, "rejections", 1)
        stopped_at_the_end(listing, out, HERE, monkeypatch)
    summary = prepare(listing, out, HERE)
    assert (summary.computed, summary.taken_over) == (1, 14)


@pytest.mark.parametrize("moved", [0, 1, 5, len(FILES)])
@pytest.mark.parametrize("spoilt", [False, True])
def test_killed_while_the_files_are_moved_into_place(tmp_path, raf_store, raf, moved, spoilt):
    """Complete files are moved into place; a face damaged by a power cut is made again."""
    out = tmp_path / "raf-db"
    shutil.copytree(raf_store, out)
    partial = out / "partial-1"
    partial.mkdir()
    (out / "meta.json").rename(partial / "meta.json")
    for name in FILES[moved:]:
        (out / name).rename(partial / name)
    if spoilt:
        file = out / "crops.npy" if (out / "crops.npy").exists() else partial / "crops.npy"
        file.write_bytes(file.read_bytes()[:-100] + bytes(100))
    summary = prepare(read_dataset("raf-db", "raf-db", raf), out, HERE)
    assert summary.computed == spoilt and summary.up_to_date != spoilt
    assert digests(out) == digests(raf_store)


def test_two_runs_at_once_do_not_collide(tmp_path, many, unbroken):
    out = tmp_path / "d"
    first = start(many, out, workers=1, chunk=4)
    while not lines(out) and first.poll() is None:
        time.sleep(0.002)
    with pytest.raises(FercliError, match=r"another fercli prepare is running in .*; wait for it, or stop it"):
        prepare(read_dataset("d", "folders", many), out, HERE)
    assert first.communicate() and first.returncode == 0
    assert digests(out) == unbroken


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 6 MiB; the test is skipped if this machine does not permit mounting one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no permission to mount a small disk here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_one_line_and_free_space_lets_it_resume(small_disk, many, unbroken):
    out = small_disk / "d"
    process = start(many, out, workers=2, chunk=4)
    said = process.communicate()[1].decode()
    assert process.returncode and f"the disk is full while writing {out}" in said.splitlines()[-1]
    assert lines(out) and not (out / "meta.json").exists()
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    assert prepare(read_dataset("d", "folders", many), out, Prepare(workers=1, chunk=4)).computed < 160
    assert digests(out) == unbroken


def test_a_limit_on_file_sizes_is_one_line_too(tmp_path, many):
    """The arrays exceed the file size limit: a write fails without mounting a disk."""
    resource = pytest.importorskip("resource")
    script = "ulimit -f 2000; exec " + " ".join(
        f"'{word}'" for word in (sys.executable, "-m", "fercli", "prepare", "--quiet", "--dataset", "d", "--root")
    )
    settings = [f"paths.prepared={tmp_path}", "data.datasets.d.reader=folders", "prepare.workers=1", "prepare.chunk=8"]
    command = [script, str(many), *(f"--set '{setting}'" for setting in settings)]
    done = subprocess.run(["bash", "-c", " ".join(command)], capture_output=True, text=True)
    assert resource and done.returncode == 1
    assert done.stderr.startswith("error: the disk is full while writing") and "Traceback" not in done.stderr


# Verifying and repairing


def damaged(raf_store: Path, tmp_path: Path) -> Path:
    shutil.copytree(raf_store, tmp_path / raf_store.name)
    return tmp_path / raf_store.name


def test_a_whole_store_is_reported_as_whole(raf_store, raf):
    verdict = verify(raf_store, read_dataset("raf-db", "raf-db", raf))
    assert verdict.whole and (verdict.faces, verdict.photographs) == (14, 14)
    assert not verdict.changed and not verdict.gone and not verdict.new


@pytest.mark.parametrize("name", ["labels.npy", "manifest.csv", "keys.npy", "digests.npy"])
def test_a_flipped_bit_is_found(tmp_path, raf_store, name):
    store = damaged(raf_store, tmp_path)
    data = bytearray((store / name).read_bytes())
    data[-2] ^= 1
    (store / name).write_bytes(data)
    assert f"{name} has changed since it was written" in verify(store).damage


@pytest.mark.parametrize("name", ["faces.npy", "crops.npy", "landmarks.npy", "shapes.npy"])
def test_a_damaged_face_is_named_and_made_again(tmp_path, raf_store, raf, name):
    store = damaged(raf_store, tmp_path)
    data = bytearray((store / name).read_bytes())
    data[-2] ^= 1
    (store / name).write_bytes(data)
    assert verify(store).damage == ["1 of 14 faces have changed since they were written (test_0006.jpg)"]
    listing = read_dataset("raf-db", "raf-db", raf)
    assert prepare(listing, store, HERE).up_to_date
    repaired = prepare(listing, store, HERE, repair=True)
    assert (repaired.computed, repaired.taken_over) == (1, 13)
    assert digests(store) == digests(raf_store)
    # With another protocol, the store is rebuilt from the existing faces.
    other = replace(listing, score_splits=("train",))
    assert prepare(other, store, HERE).computed == 0 and verify(store).whole


def test_changed_images_are_reported_and_the_store_is_whole(tmp_path, faces):
    root = writers.write_raf_db(tmp_path / "raf", faces[:4], faces[4:6])
    listing, out = read_dataset("r", "raf-db", root), tmp_path / "out"
    prepare(listing, out, HERE)
    (root / "Image/original/train_00002.jpg").write_bytes(encoded(faces[9].image, "JPEG", quality=95))
    (root / "Image/original/test_0001.jpg").unlink()
    verdict = verify(out, listing)
    assert verdict.whole and verdict.changed == ["train_00002.jpg"] and verdict.gone == ["test_0001.jpg"]
    assert verify(out, replace(listing, records=[*listing.records, replace(listing.records[0], id="x")])).new == ["x"]
    relabelled = [replace(listing.records[0], label=1 + listing.records[0].label % 6), *listing.records[1:]]
    assert verify(out, replace(listing, records=relabelled)).changed[0] == "train_00001.jpg"


def test_verify_on_the_command_line(tmp_path, raf_store, raf):
    store = damaged(raf_store, tmp_path)
    options = ("--dataset", "raf-db", "--root", str(raf), "--set", f"paths.prepared={tmp_path}", "--verify")
    done = run("prepare", *options)
    assert done.exit_code == 0 and "whole" in done.stdout
    document = json.loads(run("prepare", *options, "--json").stdout)
    assert document["verified"]["raf-db"]["whole"] and document["verified"]["raf-db"]["photographs"] == 14
    with (store / "crops.npy").open("r+b") as file:
        file.seek(-5, os.SEEK_END)
        file.write(b"?")
    done = run("prepare", *options)
    assert done.exit_code == 1 and "1 of 14 faces have changed since they were written (test_0006.jpg)" in done.stderr
    assert "run: fercli prepare --set " in done.stderr and " --repair --dataset raf-db" in done.stderr
    assert run("prepare", "--repair", *options[:-1]).exit_code == 0 and run("prepare", *options).exit_code == 0
    for name in ("labels.npy", "keys.npy", "digests.npy", "shapes.npy", "splits.npy"):
        content = (store / name).read_bytes()
        (store / name).unlink()
        done = run("prepare", *options)
        assert done.exit_code == 1 and name in done.stderr and "Traceback" not in done.stderr
        (store / name).write_bytes(content[:60])
        done = run("prepare", *options)
        assert done.exit_code == 1 and "damaged" in done.stderr and "Traceback" not in done.stderr
        (store / name).write_bytes(content)
    shutil.rmtree(store)
    assert "is not prepared" in run("prepare", *options).stderr


def test_the_manifest_contains_pose_hash_source_and_error(raf_store, raf):
    rows = read_manifest(raf_store)
    assert all(len(row["hash"]) == 64 and len(row["source"]) == 32 for row in rows)
    assert all(abs(float(row[angle])) < 45 for row in rows for angle in ("roll", "yaw", "pitch"))
    assert all(0 < float(row["given_error"]) < 0.15 for row in rows)
    first = (raf / "Image/original/train_00001.jpg").read_bytes()
    assert rows[0]["source"] == hashlib.blake2b(first, digest_size=16).hexdigest()
