"""fercli demo"""

from __future__ import annotations

from pathlib import Path

import click

from fercli import console


@click.command("demo", short_help="Run all four on faces it draws itself, in minutes.")
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Seed of the faces, the network and the training.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("fercli-demo"),
    show_default=True,
    help="Folder for everything the demo makes.",
)
@click.option("--quiet", "-q", is_flag=True, help="Say nothing but warnings and errors.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON on stdout, and nothing else.")
@click.pass_context
def command(ctx, seed, out, quiet, as_json):
    """Go from nothing to an adapted, evaluated model, on faces it draws itself.

    Draws procedural faces (a stand-in: no photographs) in the layouts of RAF-DB and JAFFE, then runs prepare,
    train-source, adapt and evaluate --report in order. Stopped in the middle, the same command goes on.

    \b
    Examples:
      fercli demo
      fercli demo --seed 1 --out /tmp/demo
    """
    from fercli.cli import adapt, evaluate, prepare, train_source
    from fercli.demo import write_demo

    console.configure(quiet=quiet, as_json=as_json)
    spec_file = str(write_demo(out / f"seed-{seed}", seed))
    still = quiet or as_json
    steps = (
        (prepare.command, "prepare", {"datasets": (), "root": None}),
        (train_source.command, "train-source", {"sources": (), "restart": False}),
        (
            adapt.command,
            "adapt --target jaffe",
            {"sources": (), "targets": ("jaffe",), "method": None, "restart": False},
        ),
        (evaluate.command, "evaluate --report", {"sources": (), "targets": (), "report": True}),
    )
    for step, words, arguments in steps:
        console.say(f"\n$ fercli {words} -c {spec_file}", style="bold")
        last = step is evaluate.command
        ctx.invoke(
            step,
            spec_file=spec_file,
            overrides=(),
            quiet=quiet if last else still,
            as_json=as_json and last,
            **arguments,
        )
        console.configure(quiet=quiet, as_json=as_json)
