"""fercli predict"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fercli import console
from fercli.cli.options import force_option, outside_method_option, read_spec, spec_options
from fercli.durations import rate

if TYPE_CHECKING:
    from fercli.engine.trained import Trained
    from fercli.predict.totals import Totals
    from fercli.spec import Spec


@click.command("predict", short_help="Predict the expression of every face in images, videos or a camera.")
@click.argument("inputs", metavar="INPUT...", nargs=-1, required=True)
@spec_options
@click.option("--run", "run", metavar="RUN", help="Run, stage folder, model file, or starter. Default: see above.")
@click.option("--target", metavar="NAME", help="Use the adaptation to this target; source: the unadapted model.")
@click.option("--jsonl", metavar="FILE|-", help="Write JSON lines here. Default: stdout, unless --csv is given.")
@click.option("--csv", "csv_to", metavar="FILE|-", help="Write a table with one row per face.")
@click.option(
    "--annotate", metavar="FOLDER|FILE", help="Write copies of the inputs with the predictions drawn on them."
)
@click.option(
    "--smooth",
    type=click.FloatRange(min=0),
    metavar="SECONDS",
    help="Track faces in videos and smooth their probabilities over this time.",
)
@click.option("--every", type=click.IntRange(min=1), default=1, show_default=True, help="Use every Nth video frame.")
@click.option(
    "--batch", type=click.IntRange(min=1), default=64, show_default=True, help="Faces per batch on the device."
)
@click.option("--adapt", type=click.Choice(["adabn", "tent", "t3a"]), help="Adapt to the input faces; see above.")
@click.option("--episodic", is_flag=True, help="With --adapt: reset the model before every batch.")
@click.option("--workers", type=click.IntRange(min=0), default=0, help="Processes that find faces. Default: all cores.")
@outside_method_option
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), help="Device to use. Default: engine.device.")
@force_option("Replace existing outputs, and start again.")
@click.option("--resume", is_flag=True, help="Continue the output of a stopped run (FILE.part).")
def command(
    inputs, spec_file, overrides, quiet, as_json, run, target, jsonl, csv_to, annotate, smooth, every, batch, adapt,
    episodic, workers, device, force, resume,
):  # fmt: skip
    """Find every face and predict its expression.

    INPUT is an image, a folder (including its subfolders), a glob, a video, a camera (0 or camera:0), or - for stdin (a
    list of paths, or the bytes of one image). Each image or frame gives one line of JSON with its faces: box,
    landmarks, expression, confidence, the probabilities of all seven expressions, the GLPC stage that decided, and each
    head's prediction. An input that cannot be read gives a line with an error. Messages and progress go to stderr.

    --run names the model: a run folder, a stage folder, a checkpoint, a .safetensors file of fercli weights export, or
    starter, the model that comes with fercli (for a folder of that name: ./starter). It may also be a released
    checkpoint of AGLRLS, CGLRL or AGRA; the spec then defines how faces are cut. Without --run, the model is that of
    the spec's run if a spec is given (-c, --set, or an existing ./fercli.yaml). Otherwise it is that of ./runs/baseline
    if that exists, or else the starter.

    Until all inputs are processed, an output FILE is named FILE.part, and FILE.part.log records the progress. A stopped
    run leaves both, with only complete lines in FILE.part. The same command with --resume continues after them, and the
    final output is byte-identical to that of an uninterrupted run. Devices and pipes are written to directly, and links
    are followed. An output that would replace an input, a model or another output is rejected before the work begins.

    --adapt adapts the model without labels to the input faces, batch by batch. adabn updates the statistics of the
    batch norms. tent also updates their weights, by the entropy of the predictions. t3a updates the templates of the
    classifiers. The changes persist for later faces, unless --episodic is given. A face's prediction then depends on
    the other faces of its batch (--batch) and, without --episodic, on all faces before it; every output records this
    ("adapted"). Adapting helps if the images look different from the training images, and can harm otherwise. adabn and
    tent are misled by images sorted by expression and by videos of one expression. Only a run with --episodic can be
    resumed.

    With --json and all results in files, a summary is printed on stdout.

    \b
    Examples:
      fercli predict photo.jpg
      fercli predict photos/ --run runs/demo > predictions.jsonl
      fercli predict "holiday/*.jpg" --csv predictions.csv --annotate drawn/
      fercli predict talk.mp4 --smooth 0.5 --annotate faces.mp4 --csv faces.csv
      find . -name "*.png" | fercli predict - --csv - | head
      fercli predict photos/ --jsonl predictions.jsonl --resume
      fercli predict camera:0
    """
    from fercli.errors import SpecError
    from fercli.predict.inputs import find_inputs
    from fercli.spec.load import local_spec

    spec = read_spec(spec_file, overrides, quiet, as_json)
    if csv_to == "-" and jsonl == "-":
        raise SpecError("--csv - and --jsonl - both write to stdout", "name a file for one of them")
    if episodic and adapt is None:
        raise SpecError("--episodic needs --adapt", "name a method with --adapt")
    if jsonl is None and csv_to is None:
        jsonl = "-"
    found = find_inputs(inputs, sys.stdin.buffer)

    from fercli.engine.fabric import warn_of_unused_card
    from fercli.predict.recognizer import Recognizer
    from fercli.predict.run import predict

    trained = _model(run, target, spec, named=bool(spec_file or overrides or local_spec()))
    device = device or spec.engine.device
    warn_of_unused_card(device)
    recognizer = Recognizer.of(trained, device, adapt, episodic)
    if recognizer.adaptation is not None:
        before = "" if episodic else " and on all faces before it"
        told = f"a prediction depends on the other faces of its batch (--batch {batch}){before}"
        console.say(f"the model adapts to the input faces ({recognizer.adaptation.label}): {told}")
    files = {"jsonl": jsonl, "csv": csv_to, "annotate": annotate}
    totals = predict(
        recognizer, found, files, sys.stdout.buffer, smooth, every, batch, workers, force, resume, trained.path
    )
    if "-" not in (jsonl, csv_to):
        console.result(totals.document(files))
    _tell(totals, annotate is not None)
    if totals.stopped or not (totals.pictures or totals.left):
        click.get_current_context().exit(130 if totals.stopped else 1)


def _model(run: str | None, target: str | None, spec: Spec, named: bool) -> Trained:
    """Return the model named by --run, or the default (see the help); `named`: whether the user named a spec."""
    from fercli.engine.trained import NoModel, find_trained, holds_model
    from fercli.errors import Advice, FercliError
    from fercli.predict.recognizer import starter_line
    from fercli.starter import NAME

    if run is not None:
        return find_trained(run, target, spec)
    try:
        there = holds_model(spec.run_folder)
    except OSError:  # no permission to read the working folder
        there = False
    if named or there:
        try:
            return find_trained(spec.run_folder, target)
        except NoModel as problem:
            starter = f"; or use the model that comes with fercli: --run {NAME}"
            raise FercliError(problem.what, Advice(problem.fix, starter)) from None
    trained = find_trained(NAME, target)
    console.say(starter_line(trained, "use --run for another model"))
    return trained


def _tell(totals: Totals, drawn: bool) -> None:
    if totals.pictures:
        console.say(f"{_summary(totals)}; {rate(totals.pictures - totals.before, totals.seconds)}")
    for name, frames in totals.faceless_videos:
        console.warn(f"no face in any of the {frames} frames of {Path(name)}")
    if totals.errors:
        name, why = totals.first_error
        more = f"; and {totals.errors - 1} more (see the lines with an error)" if totals.errors > 1 else ""
        what = "could not be read or drawn" if drawn else "could not be read"
        (console.warn if totals.pictures else console.error)(
            f"{what}: {console.brief(name, 200)}: {console.brief(why, 400)}{more}"
        )
    if totals.stopped:
        console.error("stopped")


def _summary(totals: Totals) -> str:
    """Return how many faces were found, where, and with which expressions, the most common first."""
    faces = f"{totals.faces} face{'s' * (totals.faces != 1)}"
    images = f"{totals.pictures} {'images and frames' if totals.frames else 'image' + 's' * (totals.pictures != 1)}"
    faceless = f" ({totals.empty} without a face)" if totals.empty and totals.pictures > 1 else ""
    ordered = sorted(totals.expressions.items(), key=lambda item: (-item[1], item[0]))
    shares = ", ".join(f"{count} {name}" for name, count in ordered)
    return f"{faces} in {images}{faceless}" + (f": {shares}" if shares else "")
