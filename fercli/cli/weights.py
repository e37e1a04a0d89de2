"""fercli weights"""

from __future__ import annotations

import click

from fercli import console
from fercli.cli.options import console_options, force_option, outside_method_option, read_spec, spec_options


@click.group("weights", short_help="Inspect a checkpoint, or export one to published formats.")
def command():
    """Inspect a checkpoint and whether it fits a network, or export a fercli checkpoint to a published format.

    Checkpoints are read as data only: a file that would run code is rejected.

    \b
    Examples:
      fercli weights inspect backbone_ir50_ms1m_epoch120.pth
      fercli weights export runs/baseline/source model.pkl --format aglrls
    """


@command.command("inspect", short_help="Show what checkpoints contain and whether they fit a spec.")
@click.argument("files", metavar="FILE...", nargs=-1, required=True)
@spec_options
@click.pass_context
def inspect(ctx, files, spec_file, overrides, quiet, as_json):
    """Show the contents of checkpoint files: origin, network, the parts they fill, unused tensors, missing parts.

    starter is the model that comes with fercli; its card is shown too.

    With -c or --set, also show whether they fit the spec's network, with every mismatch. Exits with 1 if a file cannot
    be read or does not fit.

    \b
    Examples:
      fercli weights inspect runs/baseline/adapt-jaffe/best.ckpt
      fercli weights inspect weights/*.pth -c raf-db-ir50
      fercli weights inspect model.pkl --set model.backbone=ir18 --json
      fercli weights inspect starter
    """
    from fercli.cli.weights_view import document_of, examine, show
    from fercli.errors import FercliError

    console.configure(quiet=quiet, as_json=as_json)
    spec = read_spec(spec_file, overrides, quiet, as_json) if spec_file or overrides else None
    documents, bad = [], False
    for file in files:
        try:
            found = examine(file, spec)
        except FercliError as problem:
            if len(files) == 1:
                raise
            console.error(str(problem))
            documents.append({"file": file, "error": str(problem)})
            bad = True
            continue
        show(found)
        documents.append(document_of(found))
        bad = bad or bool(found.spec_misfits)
    console.result({"weights": documents})
    if bad:
        ctx.exit(1)


@command.command("export", short_help="Export a fercli checkpoint to a format that other code reads.")
@click.argument("source", metavar="RUN_OR_CHECKPOINT")
@click.argument("out", metavar="OUT")
@click.option(
    "--format",
    "kind",
    # as `fercli.export.weights.FORMATS`, which is imported only when needed
    type=click.Choice(["aglrls", "face-evolve", "torchvision", "fercli"]),
    default="aglrls",
    show_default=True,
    help="Output format; see above.",
)
@outside_method_option
@click.option("--half", is_flag=True, help="Store floats as float16, at half the size.")
@force_option("Replace OUT if it already exists.")
@console_options
def export(source, out, kind, half, force, quiet, as_json):
    """Export a run's checkpoint (a file, or its stage folder) with published tensor names.

    starter is the model that comes with fercli.

    \b
    Formats:
      aglrls       a released AGLRLS checkpoint: epoch, classwise (b), model
      face-evolve  the IR backbone alone, as face.evoLVe names it
      torchvision  the MobileNetV2 alone, as torchvision names it
      fercli       fercli's own, without what only a resumed training needs

    An OUT that ends in .safetensors contains only the tensors, under the format's names. With format fercli, it is a
    complete model in one file, without paths of this machine: predict --run, evaluate --model, export and model.weights
    accept it.

    \b
    Examples:
      fercli weights export runs/baseline/adapt-jaffe jaffe.pkl
      fercli weights export runs/baseline/source backbone.pth --format face-evolve
      fercli weights export runs/a/source a.safetensors --format fercli --half
    """
    from fercli.export.weights import export as write

    console.configure(quiet=quiet, as_json=as_json)
    done = write(source, out, kind, force, half)
    for text in done.left_out:
        console.say(f"left out: {text}")
    console.say(f"{done.path}: {done.format}, {done.tensors} tensors, {done.numbers / 1e6:.2f} M values")
    console.result({"export": {**done._asdict(), "path": str(done.path)}})
