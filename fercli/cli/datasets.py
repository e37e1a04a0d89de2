"""fercli datasets"""

from __future__ import annotations

from pathlib import Path

import click

from fercli import console
from fercli.cli.completion import complete_datasets, complete_readers
from fercli.cli.options import console_options, read_spec, reader_option, reader_options


@click.group("datasets", short_help="List the datasets, or check a copy of one.", invoke_without_command=True)
@console_options
@click.pass_context
def command(ctx, quiet, as_json):
    """List the datasets that fercli can read: size, origin of the split, where to apply, and terms.

    \b
    Examples:
      fercli datasets
      fercli datasets show ck+
      fercli datasets check raf-db /data/RAF-DB/basic
    """
    console.configure(quiet=quiet, as_json=as_json)
    if ctx.invoked_subcommand is None:
        from fercli.cli.datasets_view import show_all
        from fercli.datasets import READERS

        show_all()
        console.result({"datasets": {name: reader.document() for name, reader in READERS.items()}})


@command.command("show", short_help="Show one dataset and its expected folder tree.")
@click.argument("name", shell_complete=complete_readers)
@console_options
def show(name, quiet, as_json):
    """Show one dataset: description, where to apply, terms, paper, official counts, options, expected folder tree.

    \b
    Examples:
      fercli datasets show ck+
      fercli datasets show csv
      fercli datasets show my_layouts:READER
    """
    from fercli.cli.datasets_view import show_one
    from fercli.datasets import find_reader, get_reader

    _configure(quiet, as_json)
    name = find_reader(name)
    reader = get_reader(name)
    show_one(name, reader)
    console.result({"dataset": reader.document()})


@command.command("check", short_help="Compare a copy of a dataset with the official release.")
@click.argument("name", shell_complete=complete_datasets)
@click.argument("path", required=False, metavar="[PATH]", type=click.Path(path_type=Path))
@reader_option
@click.option(
    "-c", "--spec", "spec_file", metavar="FILE", help="Run spec that names the dataset, its path and its options."
)
@console_options
def check(name, path, options, spec_file, quiet, as_json):
    """Read a dataset's folder tree without processing faces, and compare it with the official counts.

    Prints counts per split and expression, what is left out and why, subjects, and listed images that are missing.
    Without PATH, the run spec gives the folder. Exits with 1 if the tree does not have the expected layout, or if none
    of the listed images exists.

    \b
    Examples:
      fercli datasets check raf-db /data/RAF-DB/basic
      fercli datasets check fer2013 /data/fer2013 --option score=public-test
      fercli datasets check expw -c run.yaml --json
    """
    from fercli.cli.datasets_view import missing_line, show_check
    from fercli.datasets import find_reader, get_reader, read_dataset
    from fercli.datasets.check import check as compare
    from fercli.errors import FercliError

    quiet, as_json = _configure(quiet, as_json)
    chosen = reader_options(options)
    if spec_file is None and path is not None:
        reader = name = find_reader(name)
    else:
        from fercli.spec import Dataset

        spec = read_spec(spec_file, (), quiet, as_json)
        entry = spec.data.datasets.get(name, Dataset())
        reader = find_reader(entry.reader or name)
        path, chosen = path or entry.root or spec.paths.data / name, {**entry.options, **chosen}
    card = get_reader(reader).card
    result = compare(read_dataset(name, reader, path, **chosen), card)
    show_check(result, card)
    console.result({"check": {**result.document(), "reader": reader}})
    if result.missing:
        if len(result.missing) == result.images:
            raise FercliError(missing_line(result))
        console.warn(missing_line(result))


def _configure(quiet: bool, as_json: bool) -> tuple[bool, bool]:
    """Set the console's mode: a flag may be given before or after the subcommand's name."""
    group = click.get_current_context().parent.params
    mode = quiet or group["quiet"], as_json or group["as_json"]
    console.configure(*mode)
    return mode
