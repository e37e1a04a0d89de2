"""The speed of `fercli prepare`, compared with the part it depends on: MediaPipe's face mesh.

"Bare" is a loop that only reads each image with OpenCV and passes it to ``FaceMesh(static_image_mode=True)``
(``FaceLandmarker`` in mediapipe 1.x, which has no ``FaceMesh``). "Mesh only" is the same with the images decoded
beforehand. Without mediapipe, `prepare` is measured alone. Bare and `prepare` take turns on the same images with the
same number of processes, so that changes in the machine's speed affect both. Results are medians over the rounds.
Processes are started and models loaded before timing begins. `prepare` is timed as a whole: hashing the sources' state,
finding, aligning, cutting, writing the arrays, drawing the contact sheet.
"""

from __future__ import annotations

import os
import shutil
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import cv2
import joblib
import numpy as np

from fercli import console
from fercli.benchmarks import face_mesh
from fercli.datasets.reader import Listing
from fercli.durations import digits
from fercli.errors import FercliError
from fercli.faces import extract as extracting
from fercli.machine import Clock
from fercli.prepare import prepare
from fercli.prepare.build import made_of
from fercli.prepare.partial import PartialStore
from fercli.spec import Prepare

#: Number of different faces drawn; a longer list repeats them under other names.
DRAWN = 280


def draw_pictures(folder: Path, count: int) -> Listing:
    """Write `count` JPEG images of procedural faces in a folder and return their listing."""
    from fercli.datasets import read_dataset
    from fercli.synthetic.domains import STUDIO
    from fercli.synthetic.render import sample
    from fercli.synthetic.writers import write_raf_db

    faces = sample(STUDIO, min(DRAWN, count), 0, range(40), workers=-1)
    root = write_raf_db(folder / "pictures", faces, ())
    drawn = read_dataset("pictures", "raf-db", root).records
    records = []
    for i in range(count):
        first = drawn[i % len(drawn)]
        path = f"Image/original/copy_{i:06d}.jpg"
        os.link(root / first.path, root / path)
        records.append(replace(first, id=path, path=path, box=None, landmarks=None))
    return Listing("pictures", root, records, ("train",), ("train",), synthetic=True)


def measure(listing: Listing, options: Prepare, processes: Sequence[int], rounds: int, folder: Path) -> dict[str, Any]:
    """Measure one dataset.

    Args:
        listing: the dataset's records; each image must be a file (not a row in a csv of pixels).
        options: how faces are prepared; `workers` is overridden here.
        processes: numbers of processes to measure with, ascending.
        rounds: number of rounds.
        folder: a folder for temporary stores.

    Returns:
        Rates in images per second (medians), ratios and shares; see `table`. The yardstick's values are None if
        mediapipe is not installed.
    """
    if any(record.offset is not None for record in listing):
        raise FercliError(f"{listing.name} is stored in a csv of pixels; bench prepare needs one file per image")
    listing = _readable(listing)
    warm = replace(listing, records=listing.records[: 16 * max(processes)])
    runs: dict[str, Callable[[Listing, Prepare, Path], float]] = {
        "bare": partial(_shared_out, _mesh_of_files),
        "mesh only": partial(_shared_out, _mesh_of_pictures),
        "prepare": _prepare,
    }
    if not face_mesh.is_installed():
        console.say("mediapipe is not installed; prepare is measured without the comparison")
        runs = {"prepare": _prepare}
    rates: dict[tuple[str, int], list[float]] = {}
    with console.progress("rounds", total=rounds * len(processes)) as bar:
        for _ in range(rounds):
            for count in processes:
                own = options.model_copy(update={"workers": count, "backend": "loky"})
                for name, run in runs.items():
                    with console.hushed():
                        run(warm, own, folder)
                        rates.setdefault((name, count), []).append(len(listing) / run(listing, own, folder))
                bar.advance()

    def rate(name: str, count: int) -> float | None:
        return statistics.median(rates[name, count]) if name in runs else None

    def ratio(count: int, name: str, base: int) -> float | None:
        """Ratio of `prepare` with `count` processes to `name` with `base` processes, the median over the rounds."""
        if name not in runs:
            return None
        return statistics.median(p / b for p, b in zip(rates["prepare", count], rates[name, base], strict=True))

    stages = stages_ms(some_of(listing, 400), options, folder)
    return {
        "pictures": len(listing),
        "processes": [
            {
                "processes": count,
                "prepare_per_s": rate("prepare", count),
                "bare_per_s": rate("bare", count),
                "mesh_only_per_s": rate("mesh only", count),
                "prepare_to_bare": ratio(count, "bare", count),
                "prepare_to_mesh_only": ratio(count, "mesh only", count),
                "speed_up": ratio(count, "prepare", processes[0]),
                "spread": [min(rates["prepare", count]), max(rates["prepare", count])],
            }
            for count in processes
        ],
        # The rest is what one process takes beyond the stages: listing, assembling the store, drawing, starting.
        "stages_ms": {**stages, "rest": max(0.0, 1e3 / rate("prepare", processes[0]) - sum(stages.values()))},
    }


def _readable(listing: Listing) -> Listing:
    """Leave out the images that the bare loop could not read."""
    paths = {record.id: str(listing.root / record.path) for record in listing}
    # haveImageReader comes first because imread reports unreadable files on stderr.
    good = [r for r in listing if cv2.haveImageReader(paths[r.id]) and cv2.imread(paths[r.id]) is not None]
    if len(good) < len(listing):
        console.say(f"{len(listing) - len(good)} images that OpenCV cannot read are left out")
    if not good:
        raise FercliError(f"{listing.name}: OpenCV cannot read any of its images")
    return replace(listing, records=good)


def some_of(listing: Listing, count: int) -> Listing:
    """Return a listing of at most `count` of the records, evenly spread."""
    step = max(1, len(listing) / count)
    chosen = [listing.records[int(i * step)] for i in range(min(count, len(listing)))]
    return replace(listing, records=chosen)


def stages_ms(listing: Listing, options: Prepare, folder: Path) -> dict[str, float]:
    """Return the time of each stage in one process, in milliseconds per image: decode, detect, warp, write.

    Hashing is part of decoding and digests are part of writing. Work that `prepare` does once for all images is not
    included.
    """
    records, root, clock = listing.records, listing.root, Clock()
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        for record in records[:8]:
            extracting.extract(record, root, options)
        with PartialStore(folder / "stage", options) as partial:
            keys = np.zeros((options.chunk, 24), np.uint8)
            for start in range(0, len(records), options.chunk):
                done = []
                for record in records[start : start + options.chunk]:
                    with clock("decode"):
                        data = extracting.read_source(record, root)
                        extracting.source_hash(data)
                        picture = extracting.decode_source(record, root, data)
                    with clock("detect"):
                        frame = extracting.frame_of(record, picture.size)
                        result, points, box = extracting.locate(record, picture.pixels, frame, options)
                    with clock("warp"):
                        if points is not None:
                            extracting.cut(result, picture.pixels, points, box, frame, options, record.cropped)
                    done.append(result)
                with clock("write"):
                    partial.append(keys[: len(done)], [made_of(one) for one in done])
        shutil.rmtree(folder / "stage")
    finally:
        cv2.setNumThreads(threads)
    return {name: 1e3 * spent / len(records) for name, spent in clock.spent.items()}


def _prepare(listing: Listing, options: Prepare, folder: Path) -> float:
    out = folder / "store"
    started = time.perf_counter()
    prepare(listing, out, options)
    spent = time.perf_counter() - started
    shutil.rmtree(out)
    return spent


def _shared_out(function: Callable[[list[str]], float], listing: Listing, options: Prepare, folder: Path) -> float:
    """Return the seconds that the slowest process took for its share of the images."""
    paths, workers = [str(listing.root / record.path) for record in listing], options.workers
    shares = [paths[i::workers] for i in range(workers)]
    if workers == 1:
        return function(shares[0])
    with joblib.parallel_config(backend="loky", n_jobs=workers, inner_max_num_threads=1):
        return max(joblib.Parallel(batch_size=1)(joblib.delayed(function)(share) for share in shares))


def _mesh_of_files(paths: list[str]) -> float:
    mesh = _face_mesh()
    started = time.perf_counter()
    for path in paths:
        mesh(cv2.cvtColor(cv2.imread(path), cv2.COLOR_BGR2RGB))
    return time.perf_counter() - started


def _mesh_of_pictures(paths: list[str]) -> float:
    mesh = _face_mesh()
    # A few at a time: all images decoded would not fit into memory.
    spent, step = 0.0, 64
    for start in range(0, len(paths), step):
        pictures = [cv2.cvtColor(cv2.imread(path), cv2.COLOR_BGR2RGB) for path in paths[start : start + step]]
        started = time.perf_counter()
        for picture in pictures:
            mesh(picture)
        spent += time.perf_counter() - started
    return spent


@lru_cache(maxsize=1)
def _face_mesh() -> Callable[[np.ndarray], int]:
    """The face mesh, loaded once per process; also limits OpenCV to one thread."""
    cv2.setNumThreads(1)
    return face_mesh.face_mesh()


def table(result: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return columns and rows of a result of `measure` for the console."""
    columns = [
        *("processes", "prepare /s", "per process", "bare face mesh /s", "ratio"),
        *("mesh only /s", "ratio to it", "speed-up"),
    ]
    rows = [
        [
            str(row["processes"]),
            digits(row["prepare_per_s"]),
            digits(row["prepare_per_s"] / row["processes"]),
            _or_none(row["bare_per_s"], digits),
            _or_none(row["prepare_to_bare"], "{:.2f}".format),
            _or_none(row["mesh_only_per_s"], digits),
            _or_none(row["prepare_to_mesh_only"], "{:.2f}".format),
            f"{row['speed_up']:.2f}",
        ]
        for row in result["processes"]
    ]
    return columns, rows


def _or_none(value: float | None, show: Callable[[float], str]) -> str:
    return "-" if value is None else show(value)
