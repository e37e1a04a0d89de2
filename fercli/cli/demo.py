"""fercli demo"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from fercli import console
from fercli.cli.options import console_options


@click.command("demo", short_help="Run the whole workflow on synthetic faces, in minutes.")
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Seed for the faces, the network and the training.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("fercli-demo"),
    show_default=True,
    help="Folder for everything the demo writes.",
)
@click.option(
    "--sweep",
    "sweeping",
    is_flag=True,
    help="Instead, run every method on three targets, each further from the source, with five seeds (most of an hour).",
)
@click.option("--jobs", type=click.IntRange(min=1), default=1, show_default=True, help="With --sweep: cells at a time.")
@console_options
@click.pass_context
def command(ctx, seed, out, sweeping, jobs, quiet, as_json):
    """Train, adapt and evaluate a model from scratch, on synthetic faces.

    Draws procedural faces (no photographs) in the layouts of RAF-DB and JAFFE, then runs prepare, train-source, adapt
    and evaluate --report in order. If it is stopped, run the same command again to resume. The steps run in
    the demo's folder, fercli-demo/seed-0, and print paths relative to it.

    \b
    Examples:
      fercli demo
      fercli demo --seed 1 --out /tmp/demo
      fercli demo --sweep --jobs 2
    """
    from fercli.cli import adapt, evaluate, prepare, sweep, train_source
    from fercli.errors import FercliError
    from fercli.files import only_one
    from fercli.synthetic.demo import write_demo, write_shifts

    console.configure(quiet=quiet, as_json=as_json)
    folder = out / ("shifts" if sweeping else f"seed-{seed}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise FercliError(f"cannot create {folder}: {problem.strerror}", "name another folder with --out") from None
    ctx.with_resource(only_one(folder, "demo"))
    still = quiet or as_json
    preparing = (prepare.command, "prepare", {"datasets": (), "root": None})
    if sweeping:
        whole = {"dry_run": False, "counting": False, "cell": None}
        spec_file = write_shifts(folder).name
        steps = (
            preparing,
            (sweep.command, f"sweep {spec_file} --jobs {jobs}", {"jobs": jobs, **whole, "spec_file": spec_file}),
            (evaluate.command, "evaluate --report", {"sources": (), "targets": (), "report": True}),
        )
    else:
        write_demo(folder, seed)
        steps = (
            preparing,
            (train_source.command, "train-source", {"sources": (), "restart": False}),
            (
                adapt.command,
                "adapt --target jaffe",
                {"sources": (), "targets": ("jaffe",), "method": None, "restart": False},
            ),
            (evaluate.command, "evaluate --report", {"sources": (), "targets": (), "report": True}),
        )
    console.say(f"\n$ cd {folder}", style="bold")
    ctx.with_resource(_inside(folder))
    for step, words, arguments in steps:
        console.say(f"\n$ fercli {words}", style="bold")
        last = step is evaluate.command
        ctx.invoke(
            step,
            **{"spec_file": None, **arguments},  # without one, a command reads the fercli.yaml of its folder
            overrides=(),
            quiet=quiet if last else still,
            as_json=as_json and last,
        )
        console.configure(quiet=quiet, as_json=as_json)
    console.say(f"everything is in {folder}: run further commands there")


@contextmanager
def _inside(folder: Path) -> Iterator[None]:
    """Work in a folder for a while (contextlib.chdir exists since Python 3.11)."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)
