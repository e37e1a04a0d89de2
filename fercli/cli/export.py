"""fercli export"""

from __future__ import annotations

import click

from fercli import console
from fercli.cli.completion import complete_datasets, complete_runs
from fercli.cli.options import console_options, force_option, outside_method_option

#: File endings that determine the format.
_FORMATS = {".onnx": "onnx", ".pt2": "torch"}


@click.command("export", short_help="Export a trained model to ONNX or torch.export, with a model card.")
@click.argument("run", metavar="RUN", shell_complete=complete_runs)
@click.option(
    "--target",
    metavar="NAME",
    shell_complete=complete_datasets,
    help="The run's model to export: the name of its target, or source.",
)
@click.option(
    "--format",
    "kind",
    type=click.Choice(["onnx", "torch"]),
    help="ONNX, or a torch.export program (.pt2). Default: from the ending of --out, else onnx.",
)
@click.option("--out", metavar="FILE", help="Output file. Default: ./RUN-TARGET.onnx (or .pt2).")
@click.option("--opset", metavar="N", type=int, default=18, show_default=True, help="ONNX operator set version.")
@outside_method_option
@force_option("Replace the file and its card if they already exist.")
@console_options
def command(run, target, kind, out, opset, force, quiet, as_json):
    """Export a trained model to one file that runs without fercli, with a model card beside it.

    RUN is a run folder, a stage folder, a checkpoint, a .safetensors file of fercli weights export, or starter, the
    model that comes with fercli.

    The exported model takes aligned faces and their five landmarks, in batches of any size. It returns the prediction,
    its probabilities and those of all heads: normalisation, network and decision rule are included. The file is
    compared with the model on the run's prepared faces, or on synthetic ones if there are none. It is not written if
    the outputs differ by more than 1e-4. An existing card (FILE with .md) is kept, because it may have been edited.

    ONNX needs: pip install "fercli[onnx]"

    \b
    Examples:
      fercli export runs/baseline --target jaffe
      fercli export runs/baseline/source --format torch --out models/source.pt2
      fercli export starter --out starter.onnx
      fercli export runs/baseline --target jaffe --opset 20 --force --json
    """
    from pathlib import Path

    from fercli.engine.trained import find_trained
    from fercli.errors import SpecError
    from fercli.export.write import default_name, export

    console.configure(quiet=quiet, as_json=as_json)
    implied = _FORMATS.get(Path(out).suffix) if out else None
    if kind and implied and kind != implied:
        raise SpecError(f"--out {out} implies --format {implied}, not {kind}", "leave out --format, or change --out")
    kind = kind or implied or "onnx"
    trained = find_trained(run, target)
    done = export(trained, kind, Path(out) if out else default_name(trained, kind), opset, force)
    console.say(f"checked on {done.agreement}")
    what = f"ONNX, opset {done.opset}" if done.format == "onnx" else "torch.export program"
    console.say(f"{done.path}: {what}, {done.size / 1e6:.1f} MB, batches of any size")
    if done.card_kept:
        console.say(f"{done.card}: kept unchanged (--force replaces it)")
    elif done.card is not None:
        console.say(f"{done.card}: model card; read it, and add what fercli cannot know")
    agreement = {**done.agreement._asdict(), "batches": list(done.agreement.batches)}
    document = {
        **done._asdict(),
        "path": str(done.path),
        "card": None if done.card is None else str(done.card),
        "batch": "any",
    }
    console.result({"export": {**document, "agreement": agreement}})
