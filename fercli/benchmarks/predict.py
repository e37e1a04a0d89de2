"""The speed of `fercli predict` from files to predictions, compared with its two parts alone.

End to end is everything the command does: reading and decoding, finding every face, aligning and cutting, the network,
the decision, writing JSON lines. It alternates with its parts, round by round, on the same images:

- detection alone: only `Landmarker.find_all`, on images already decoded in the memory of the same number of processes;
- network alone: only views, network and softmax, on faces already cut out in memory, with all of torch's threads.

Each part alone has the whole machine. On a CPU both therefore cannot reach the slower one's rate at once: they share
the cores. If neither ever waited, the rate would be 1 / (1/d + 1/n), that of doing one after the other with all cores.
If the network has its own device, the bound is min(d, n). Two ratios are reported: to the slower part alone, and to the
bound. On a CPU the latter shows the loss to decoding, cutting, writing and waiting. Processes are started and models
loaded before timing begins; results are medians over the rounds.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from fercli import console
from fercli.durations import digits
from fercli.engine.data import view_settings
from fercli.engine.fabric import make_fabric
from fercli.engine.network import empty_network
from fercli.faces.images import Decoded, read_image
from fercli.faces.landmarker import Landmarker
from fercli.loading.augment import plain_view
from fercli.machine import wait
from fercli.parallel import Workers
from fercli.predict.faces import CutFace, cut_faces
from fercli.predict.inputs import Input, find_inputs
from fercli.predict.recognizer import Recognizer
from fercli.predict.run import predict
from fercli.predict.video_writer import VideoWriter
from fercli.predict.videos import open_video
from fercli.spec import Prepare, Spec
from fercli.synthetic.render import STUDIO, Face, render

#: Number of different images drawn; a larger folder repeats them under other names.
DRAWN = 24
_SIZE = (640, 480)


def draw_folder(folder: Path, pictures: int) -> Path:
    """Write `pictures` JPEG images of 640 x 480 pixels, each with one to four procedural faces."""
    folder.mkdir(parents=True)
    for i in range(pictures):
        path = folder / f"{i:06d}.jpg"
        if i < DRAWN:
            people = [render(STUDIO, 5 * i + k, (i + k) % 7, i) for k in range(1 + i % 4)]
            cv2.imwrite(str(path), _scene(people, 0)[..., ::-1])
        else:
            os.link(folder / f"{i % DRAWN:06d}.jpg", path)
    return folder


def draw_video(path: Path, frames: int) -> Path:
    """Write an MP4 video of 640 x 480 pixels in which two procedural faces move about."""
    people = [render(STUDIO, k, 3 * k, k) for k in range(2)]
    writer = VideoWriter(path, _SIZE)
    for i in range(frames):
        writer.add(_scene(people, i), i / 25, 1 / 25)
    writer.close()
    return path


def _scene(people: Sequence[Face], step: int) -> np.ndarray:
    image = np.full((*_SIZE[::-1], 3), 110, np.uint8)
    for k, person in enumerate(people):
        height, width = person.image.shape[:2]
        x = k % 2 * 310 + 45 + round(30 * np.sin(step / 9 + k))
        y = (k // 2 * 240 if len(people) > 2 else 120) + (0 if len(people) > 2 else round(40 * np.cos(step / 7)))
        image[y : y + height, x : x + width] = person.image
    return image


def measure(
    spec: Spec, batches: Sequence[int], pictures: int, rounds: int, workers: int, room: Path
) -> list[dict[str, Any]]:
    """Measure a folder and a video with each batch size.

    Args:
        spec: defines the model, whose weights are random; its datasets are not read.
        batches: numbers of faces on the device at a time.
        pictures: number of images in the folder, and of frames in the video.
        rounds: number of rounds; results are medians over them.
        workers: processes that find faces; 0 is one per core.
        room: an empty folder.

    Returns:
        Rows of rates in faces per second, and of ratios; see `table`.
    """
    device = make_fabric(spec.engine).device
    recognizer = Recognizer(empty_network(spec).to(device).eval(), spec, device)
    sources = {"folder": draw_folder(room / "pictures", pictures), "video": draw_video(room / "video.mp4", pictures)}
    found = {kind: find_inputs([str(path)], None) for kind, path in sources.items()}
    cut = {kind: _cut_ahead(recognizer, inputs, kind) for kind, inputs in found.items()}
    rows = []
    with console.progress("bench predict", total=len(batches) * rounds * len(sources)) as bar, Workers(workers) as pool:
        for batch in batches:
            for kind, inputs in found.items():
                parts: dict[str, Callable[[], float]] = {
                    "detection": partial(_detection, recognizer.options, inputs, pool),
                    "network": partial(_network, recognizer, cut[kind], batch, pictures),
                    "end_to_end": partial(_end_to_end, recognizer, inputs, batch, pool, room / "answers.jsonl"),
                }
                with console.hushed():
                    for part in parts.values():
                        part()
                rates: dict[str, list[float]] = {name: [] for name in parts}
                for _ in range(rounds):
                    for name, part in parts.items():
                        with console.hushed():
                            rates[name].append(part())
                    bar.advance()
                rows.append(_row(kind, batch, pool.count, device, rates))
    return rows


def _row(kind: str, batch: int, workers: int, device: torch.device, rates: dict[str, list[float]]) -> dict[str, Any]:
    detection, network, whole = (statistics.median(rates[n]) for n in ("detection", "network", "end_to_end"))
    shared = device.type == "cpu"
    bound = 1 / (1 / detection + 1 / network) if shared else min(detection, network)
    return {
        "input": kind,
        "batch": batch,
        "workers": workers,
        "detection_per_s": detection,
        "network_per_s": network,
        "end_to_end_per_s": whole,
        "spread_per_s": [min(rates["end_to_end"]), max(rates["end_to_end"])],
        "slower": "detection" if detection < network else "network",
        "to_slower": whole / min(detection, network),
        "bound_per_s": bound,
        "to_bound": whole / bound,
    }


def table(rows: Sequence[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Return columns and rows of a result of `measure` for the console: rates in faces per second, and ratios."""
    columns = ["faces/s", "batch", "detection alone", "network alone", "end to end", "of the slower", "of the bound"]
    shown = []
    for row in rows:
        rates = [digits(row[f"{name}_per_s"]) for name in ("detection", "network", "end_to_end")]
        slower = f"{row['to_slower']:.0%} ({row['slower']})"
        bound = f"{row['to_bound']:.0%} of {digits(row['bound_per_s'])}"
        shown.append([row["input"], str(row["batch"]), *rates, slower, bound])
    return columns, shown


def _pictures(inputs: Sequence[Input], part: int = 0, of: int = 1) -> list[np.ndarray]:
    """Return every `of`-th image or frame, starting at number `part`, decoded."""
    if inputs[0].kind == "picture":
        return [read_image(one.path) for one in inputs[part::of]]
    with open_video(inputs[0].path) as video:
        return [frame.image for frame in video.frames() if frame.number % of == part]


def _cut_ahead(recognizer: Recognizer, inputs: Sequence[Input], kind: str) -> list[CutFace]:
    """The faces of the first few images. The network's cost does not depend on which faces they are."""
    few = inputs[:DRAWN] if kind == "folder" else inputs
    pictures = [Decoded(image) for image in _pictures(few)[:DRAWN]]
    return [face for one in pictures for face in cut_faces(one, recognizer.options, recognizer.with_crops)]


def _detection(options: Prepare, inputs: Sequence[Input], pool: Workers) -> float:
    shares = ((options, list(inputs), part, pool.count) for part in range(pool.count))
    return sum(rate for _, rate in pool.in_order(detect_alone, shares, lambda share: share, pool.count + 1))


def detect_alone(options: Prepare, inputs: Sequence[Input], part: int, of: int) -> float:
    """Return how many faces per second one process finds in its share of the images, without decoding."""
    pictures = _pictures(inputs, part, of)
    landmarker = Landmarker(options.confidence, options.low_confidence, options.retries)
    started = time.perf_counter()
    faces = sum(len(landmarker.find_all(image)) for image in pictures)
    return faces / (time.perf_counter() - started)


@torch.inference_mode()
def _network(recognizer: Recognizer, cut: Sequence[CutFace], batch: int, least: int) -> float:
    faces = [cut[i % len(cut)] for i in range(batch)]
    arrays = [np.stack([face.face for face in faces]), np.stack([face.landmarks for face in faces])]
    arrays.append(np.stack([face.crops for face in faces]) if recognizer.with_crops else None)
    device, settings, done = recognizer.device, view_settings(recognizer.spec), 0
    wait(device)
    started = time.perf_counter()
    while done < least:
        rows = (None if a is None else torch.from_numpy(a).to(device) for a in arrays)
        recognizer.network(*plain_view(*rows, settings).inputs).logits.float().softmax(-1).cpu()
        done += batch
    return done / (time.perf_counter() - started)


def _end_to_end(recognizer: Recognizer, inputs: list[Input], batch: int, pool: Workers, out: Path) -> float:
    started = time.perf_counter()
    totals = predict(recognizer, inputs, {"jsonl": str(out)}, None, batch=batch, workers=pool, force=True)
    return totals.faces / (time.perf_counter() - started)
