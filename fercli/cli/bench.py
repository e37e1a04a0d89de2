"""fercli bench"""

from __future__ import annotations

import click

from fercli import console
from fercli.cli.options import read_spec, spec_options


@click.group("bench", short_help="Measure the speed of a step on this machine.")
def command():
    """Measure the speed of a step on this machine, beside a yardstick in the same run.

    \b
    Examples:
      fercli bench prepare
      fercli bench prepare --dataset raf-db --images 5000
    """


@command.command("prepare")
@spec_options
@click.option("--dataset", metavar="NAME", help="Pictures to measure on. Default: procedural faces, drawn for it.")
@click.option("--root", metavar="FOLDER", help="Where the dataset lies. Default: paths.data/NAME.")
@click.option("--images", type=click.IntRange(min=16), default=6000, show_default=True, help="How many, at most.")
@click.option("--rounds", type=click.IntRange(min=1), default=3, show_default=True, help="How often; medians count.")
def prepare(spec_file, overrides, quiet, as_json, dataset, root, images, rounds):
    """Pictures a second of fercli prepare, in all and by process, against bare MediaPipe face mesh.

    Bare reads the same pictures with OpenCV and runs face mesh, nothing else. The last table tells what each stage of
    prepare takes of one process; rest is what is done once for all. Results are kept in paths.runs/bench/prepare.json.

    \b
    Examples:
      fercli bench prepare
      fercli bench prepare --dataset raf-db --images 5000
    """
    import json
    import tempfile
    from pathlib import Path

    import joblib

    from fercli.benchmarks import prepare as bench
    from fercli.faces.extract import Options
    from fercli.files import write_atomically
    from fercli.machine import describe
    from fercli.pipeline import list_dataset

    spec = read_spec(spec_file, overrides, quiet, as_json)
    folder = Path(spec.paths.runs / "bench")
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix="prepare-") as room:
        room = Path(room)
        if dataset is None:
            console.say("drawing procedural faces ...")
            listing = bench.draw_pictures(room, images)
        else:
            listing = list_dataset(spec, dataset, root)
            listing = bench.some_of(listing, images)
        processes = sorted({1, joblib.cpu_count()})
        result = bench.measure(listing, Options.of(spec.prepare), processes, rounds, room)
    result = {
        "dataset": dataset or "procedural faces",
        **result,
        "machine": describe("mediapipe", "opencv-contrib-python", "numpy", "joblib"),
    }
    columns, rows = bench.table(result)
    console.table(f"Preparing {result['pictures']} pictures of {result['dataset']}", columns, rows)
    spent = result["stages_ms"]
    shares = [[name, f"{ms:.2f}", f"{ms / sum(spent.values()):.0%}"] for name, ms in spent.items()]
    console.table("One process, by stage", ("stage", "ms a picture", "share"), shares)
    write_atomically(folder / "prepare.json", (json.dumps(result, indent=1) + "\n").encode())
    console.result(result)
