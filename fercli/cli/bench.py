"""fercli bench"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fercli import console
from fercli.cli.completion import complete_datasets
from fercli.cli.options import read_spec, root_option, spec_options, together
from fercli.durations import digits

if TYPE_CHECKING:
    from fercli.spec import Spec

_rounds_option = click.option(
    "--rounds",
    type=click.IntRange(min=1),
    default=3,
    show_default=True,
    help="Number of measurements; medians are reported.",
)


@click.group("bench", short_help="Measure the speed of a step on this machine.")
def command():
    """Measure the speed of a step on this machine against a baseline in the same run.

    \b
    Examples:
      fercli bench prepare
      fercli bench train --backbone ir-small --batch 32 --batch 64
      fercli bench adapt --against published --precision bf16-mixed
      fercli bench predict
    """


@command.command("prepare")
@spec_options
@click.option(
    "--dataset",
    metavar="NAME",
    shell_complete=complete_datasets,
    help="Dataset to measure on. Default: procedural faces, drawn for the benchmark.",
)
@root_option
@click.option(
    "--images", type=click.IntRange(min=16), default=6000, show_default=True, help="Maximum number of images."
)
@_rounds_option
def prepare(spec_file, overrides, quiet, as_json, dataset, root, images, rounds):
    """Measure the speed of fercli prepare in images/s.

    It is measured in total and per process, against bare MediaPipe face mesh. The bare baseline only reads the same
    images with OpenCV and runs face mesh. The last table shows the time of each stage of prepare in one process; "rest"
    is the work done once for all images. Results are written to paths.runs/bench/prepare.json.

    \b
    Examples:
      fercli bench prepare
      fercli bench prepare --dataset raf-db --images 5000
    """
    import joblib

    from fercli.benchmarks import prepare as bench
    from fercli.doctor.software import OPENCV_WHEELS
    from fercli.machine import describe
    from fercli.prepare.from_spec import list_dataset

    spec = read_spec(spec_file, overrides, quiet, as_json)
    with _room(spec, "prepare") as room:
        if dataset is None:
            console.say("drawing procedural faces ...")
            listing = bench.draw_pictures(room, images)
        else:
            listing = list_dataset(spec, dataset, root)
            listing = bench.some_of(listing, images)
        processes = sorted({1, joblib.cpu_count()})
        result = bench.measure(listing, spec.prepare, processes, rounds, room)
    result = {
        "dataset": dataset or "procedural faces",
        **result,
        "machine": describe("mediapipe", *OPENCV_WHEELS, "numpy", "joblib"),
    }
    columns, rows = bench.table(result)
    console.table(f"Preparing {result['pictures']} images of {result['dataset']}", columns, rows)
    spent = result["stages_ms"]
    shares = [[name, digits(ms), f"{ms / sum(spent.values()):.0%}"] for name, ms in spent.items()]
    console.table("One process, by stage", ("stage", "ms/image", "share"), shares)
    _keep(spec, "prepare", result)


#: Options shared by train, adapt and predict.
_step_options = together(
    spec_options,
    click.option("--backbone", metavar="NAME", help="Backbone to use instead of the spec's model.backbone."),
    click.option("--width", type=int, help="Width to use instead of the spec's model.width (ir-small, ir-lite)."),
    click.option(
        "--batch",
        "batches",
        type=click.IntRange(min=2),
        multiple=True,
        help="Faces per domain in a step (may be repeated). Default: the spec's.",
    ),
    click.option(
        "--precision",
        "precisions",
        multiple=True,
        type=click.Choice(["auto", "32-true", "tf32", "bf16-mixed", "16-mixed"]),
        help="Precision to use instead of the spec's engine.precision (may be repeated).",
    ),
    click.option("--steps", type=click.IntRange(min=1), default=5, show_default=True, help="Steps per measurement."),
    _rounds_option,
)


@command.command("train")
@_step_options
@click.option(
    "--faces", "counts", type=click.IntRange(min=64), multiple=True,
    help="Instead, time whole epochs on this number of faces (may be repeated).",
)  # fmt: skip
def train(spec_file, overrides, quiet, as_json, backbone, width, batches, precisions, steps, rounds, counts):
    """Measure the speed of fercli train-source in steps/s.

    The tables also show the time of each part and the utilisation of the device. The benchmark runs on random images:
    no data is needed. Shares refer to parts timed separately. Utilisation is relative to the floating-point operations
    per second that a large matrix product reaches on this machine. Results are written to paths.runs/bench/train.json,
    those of --faces to train-epochs.json.

    \b
    Examples:
      fercli bench train --backbone ir50 --batch 16 --batch 64
      fercli bench train -c demo --faces 1000 --faces 4000
    """
    spec = _step_spec(spec_file, overrides, quiet, as_json, backbone, width)
    if not counts:
        _steps(spec, "train", batches, precisions, steps, rounds)
        return
    from fercli.benchmarks import steps as bench

    with _room(spec, "train") as room:
        rows = bench.measure_epochs(spec, counts, room)
    result = {"bench": "train-epochs", "backbone": spec.model.backbone, "width": spec.model.width, "rows": rows}
    shown = [[f"{r['faces']:,}", digits(r["seconds"]), digits(r["seconds_per_1000"])] for r in rows]
    console.table(f"One epoch of train-source, {_name(spec)}", ("faces", "seconds", "seconds per 1,000 faces"), shown)
    _keep(spec, "train-epochs", {**result, "machine": _machine(spec)})


@command.command("adapt")
@_step_options
@click.option("--against", type=click.Choice(["published"]), help="Compare with a plain step as published (AGLRLS).")
def adapt(spec_file, overrides, quiet, as_json, backbone, width, batches, precisions, steps, rounds, against):
    """Measure the speed of fercli adapt in steps/s.

    The benchmark works as fercli bench train, but with images of both domains. With --against published, fercli's step
    alternates with a plain variant. The plain variant cuts windows in a loop over samples and landmarks, runs five crop
    networks one by one, makes four batches' worth of forward passes with gradients, computes in float32, and counts
    hits image by image on the CPU. fercli's step is that of the spec, by default with the same passes; with
    adapt.options.passes=shared it makes three. Results are written to paths.runs/bench/adapt.json and
    adapt-published.json.

    \b
    Examples:
      fercli bench adapt --backbone ir50 --batch 16
      fercli bench adapt --against published --precision bf16-mixed
      fercli bench adapt --against published --set adapt.options.passes=shared
    """
    spec = _step_spec(spec_file, overrides, quiet, as_json, backbone, width)
    if against is None:
        _steps(spec, "adapt", batches, precisions, steps, rounds)
        return
    from fercli.benchmarks import published as bench

    with _room(spec, "adapt") as room:
        result = bench.compare(spec, batches, precisions, steps, rounds, room)
    for title, columns, rows in bench.tables(result):
        console.table(f"{title}, {_name(spec)}, against the published step", columns, rows)
    _keep(spec, "adapt-published", {**result, "machine": _machine(spec)})


@command.command("predict")
@_step_options
@click.option(
    "--pictures",
    type=click.IntRange(min=8),
    default=240,
    show_default=True,
    help="Number of images, and of frames in the video.",
)
@click.option("--workers", type=click.IntRange(min=0), default=0, help="Processes that find faces. Default: all cores.")
def predict(
    spec_file, overrides, quiet, as_json, backbone, width, batches, precisions, steps, rounds, pictures, workers
):
    """Measure the speed of fercli predict in faces/s.

    It is measured from files to predictions, against detection alone and the network alone. The benchmark runs on a
    folder of images and a video drawn for it, with random weights. The three measurements alternate, and medians are
    reported. The bound is the speed that detection (d) and network (n) could reach together: 1 / (1/d + 1/n) if they
    share the CPU, the slower of the two if the network has its own device. A second table shows the parts of the
    network, on noise (--steps, --precision); predict itself runs the network in float32. Results are written to
    paths.runs/bench/predict.json.

    \b
    Examples:
      fercli bench predict --batch 64
      fercli bench predict --backbone ir-small --width 16 --pictures 600
    """
    from fercli.benchmarks import predict as bench
    from fercli.benchmarks import steps as parts

    spec = _step_spec(spec_file, overrides, quiet, as_json, backbone, width)
    sizes = batches or (64,)
    with _room(spec, "predict") as room:
        rows = bench.measure(spec, sizes, pictures, rounds, workers, room)
        result = parts.measure(spec, "predict", sizes, precisions, steps, rounds, room)
    console.table(f"predict, {_name(spec)}", *bench.table(rows))
    titles = ("The network alone, on noise", "Shares of the parts of a step")
    for title, (columns, shown) in zip(titles, parts.tables(result), strict=True):
        console.table(title, columns, shown)
    _keep(spec, "predict", {**result, "pictures": pictures, "end_to_end": rows, "machine": _machine(spec)})


def _step_spec(spec_file, overrides, quiet, as_json, backbone, width) -> Spec:
    asked = {"model.backbone": backbone, "model.width": width}
    more = [f"{key}={value}" for key, value in asked.items() if value is not None]
    return read_spec(spec_file, (*overrides, *more), quiet, as_json)


def _steps(spec: Spec, stage: str, batches, precisions, steps: int, rounds: int) -> None:
    from fercli.benchmarks import steps as bench

    with _room(spec, stage) as room:
        result = bench.measure(spec, stage, batches, precisions, steps, rounds, room)
    method = f" by {spec.adapt.method}" if stage == "adapt" else ""
    titles = (f"{stage}{method}, {_name(spec)}", "Shares of the parts of a step")
    for title, (columns, rows) in zip(titles, bench.tables(result), strict=True):
        console.table(title, columns, rows)
    _keep(spec, stage, {**result, "machine": _machine(spec)})


def _name(spec: Spec) -> str:
    width = f" of width {spec.model.width}" if spec.model.backbone in ("ir-small", "ir-lite") else ""
    return f"{spec.model.backbone}{width}"


def _machine(spec: Spec) -> dict[str, Any]:
    from fercli.engine.fabric import resolve_device
    from fercli.machine import describe_device

    return describe_device(resolve_device(spec.engine.device))


@contextmanager
def _room(spec: Spec, stage: str) -> Iterator[Path]:
    """Yield a temporary folder for a benchmark's files; it is removed at the end."""
    import tempfile

    folder = spec.paths.runs / "bench"
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=f"{stage}-") as room:
        yield Path(room)


def _keep(spec: Spec, name: str, result: dict[str, Any]) -> None:
    """Write a result to the folder of benchmark results, and print it with --json."""
    import json

    from fercli.files import write_atomically

    write_atomically(spec.paths.runs / "bench" / f"{name}.json", (json.dumps(result, indent=1) + "\n").encode())
    console.result(result)
