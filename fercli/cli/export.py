"""fercli export"""

from __future__ import annotations

import click

from fercli import console
from fercli.cli.completion import complete_datasets, complete_runs
from fercli.cli.options import console_options, force_option, outside_method_option

#: Endings that tell the format.
_FORMATS = {".onnx": "onnx", ".pt2": "torch"}


@click.command("export", short_help="A trained model as ONNX or torch.export, checked, with a model card.")
@click.argument("run", metavar="RUN", shell_complete=complete_runs)
@click.option(
    "--target",
    metavar="NAME",
    shell_complete=complete_datasets,
    help="Which of the run's models: its target, or source.",
)
@click.option(
    "--format",
    "kind",
    type=click.Choice(["onnx", "torch"]),
    help="ONNX, or a torch.export program (.pt2). Default: by --out, else onnx.",
)
@click.option("--out", metavar="FILE", help="File to write. Default: ./RUN-TARGET.onnx (or .pt2).")
@click.option("--opset", metavar="N", type=int, default=18, show_default=True, help="ONNX operator set.")
@outside_method_option
@force_option("Replace the file and its card where they are there already.")
@console_options
def command(run, target, kind, out, opset, force, quiet, as_json):
    """Write a trained model as one file that runs without fercli, and a model card beside it.

    RUN is a run's folder, the folder of one of its stages, a checkpoint, a .safetensors of fercli weights export, or
    starter, the model that comes with fercli. Aligned faces and their five landmarks go
    in, batches of any size; the answer, its probabilities and those of all heads come out: normalisation, network and
    decision rule are inside. The file is compared with the model on the run's prepared faces, else on drawn ones, and
    not written where they differ by more than 1e-4. The card (FILE with .md) is kept where there is one: it may have
    been edited.

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
        raise SpecError(f"--out {out} is a name for --format {implied}, not {kind}", "leave --format out, or rename it")
    kind = kind or implied or "onnx"
    trained = find_trained(run, target)
    done = export(trained, kind, Path(out) if out else default_name(trained, kind), opset, force)
    console.say(f"checked on {done.agreement}")
    what = f"ONNX, opset {done.opset}" if done.format == "onnx" else "torch.export program"
    console.say(f"{done.path}: {what}, {done.size / 1e6:.1f} MB, batches of any size")
    if done.card_kept:
        console.say(f"{done.card}: kept as it is (--force writes it again)")
    elif done.card is not None:
        console.say(f"{done.card}: model card; read it, and add what it cannot know")
    agreement = {**done.agreement._asdict(), "batches": list(done.agreement.batches)}
    document = {
        **done._asdict(),
        "path": str(done.path),
        "card": None if done.card is None else str(done.card),
        "batch": "any",
    }
    console.result({"export": {**document, "agreement": agreement}})
