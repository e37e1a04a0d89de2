"""fercli datasets"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from fercli import console
from fercli.cli.options import read_spec

_QUIET = click.option("--quiet", "-q", is_flag=True, help="Say nothing but warnings and errors.")
_JSON = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON on stdout, nothing else.")


@click.group("datasets", short_help="List the datasets, or check a copy of one.", invoke_without_command=True)
@_QUIET
@_JSON
@click.pass_context
def command(ctx, quiet, as_json):
    """List the datasets that can be read: their sizes, whose split, where to apply, on what terms.

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
        console.result({"datasets": {name: _document(name) for name in READERS}})


@command.command("show", short_help="All that is known of one dataset, and the tree it should be.")
@click.argument("name")
@_QUIET
@_JSON
def show(name, quiet, as_json):
    """Show one dataset: what it is, where to apply, terms, paper, official counts, options, and the tree expected.

    \b
    Examples:
      fercli datasets show ck+
      fercli datasets show csv
    """
    from fercli.cli.datasets_view import show_one

    console.configure(quiet=quiet, as_json=as_json)
    name = _known(name)
    show_one(name, _options(name))
    console.result({"dataset": _document(name)})


@command.command("check", short_help="Compare a copy of a dataset with the official release.")
@click.argument("name")
@click.argument("path", required=False, metavar="[PATH]", type=click.Path(path_type=Path))
@click.option(
    "--option",
    "options",
    metavar="KEY=VALUE",
    multiple=True,
    help="Option of the dataset's reader (see fercli datasets show NAME); may be repeated.",
)
@click.option(
    "-c", "--spec", "spec_file", metavar="FILE", help="Run spec: its name for the dataset, its path and options."
)
@_QUIET
@_JSON
def check(name, path, options, spec_file, quiet, as_json):
    """Read a dataset's tree without touching a face, and set what is found beside the official counts.

    Counts per split and expression, what is left out and why, subjects, and listed pictures that are missing. Without
    PATH the run spec says where the dataset lies. Exits with 1 if the tree is not of the layout expected.

    \b
    Examples:
      fercli datasets check raf-db /data/RAF-DB/basic
      fercli datasets check fer2013 /data/fer2013 --option score=public-test
      fercli datasets check expw -c run.yaml --json
    """
    from fercli.cli.datasets_view import show_check
    from fercli.datasets import read_dataset
    from fercli.datasets.check import check as compare
    from fercli.datasets.facts import FACTS

    console.configure(quiet=quiet, as_json=as_json)
    chosen = _chosen(options)
    if spec_file is None and path is not None:
        reader = name = _known(name)
    else:
        from fercli.spec import Dataset

        spec = read_spec(spec_file, (), quiet, as_json)
        entry = spec.data.datasets.get(name, Dataset())
        reader = _known(entry.reader or name)
        path, chosen = path or entry.root or spec.paths.data / name, {**entry.options, **chosen}
    result = compare(read_dataset(name, reader, path, **chosen), FACTS.get(reader))
    show_check(result, reader)
    console.result({"check": {**result.document(), "reader": reader}})


def _known(name: str) -> str:
    """Return the reader's name, case aside. Raises FercliError, with the nearest, for one that does not exist."""
    import difflib

    from fercli.datasets import READERS
    from fercli.errors import FercliError

    found = next((known for known in READERS if known == name.strip().lower()), None)
    if found is None:
        near = difflib.get_close_matches(name.lower(), READERS, n=1)
        hint = f"; did you mean '{near[0]}'?" if near else ""
        raise FercliError(f"no dataset '{name}' (there are: {', '.join(READERS)}){hint}")
    return found


def _chosen(options: tuple[str, ...]) -> dict[str, Any]:
    """Parse KEY=VALUE, the value as YAML, as --set does."""
    import yaml

    from fercli.errors import SpecError

    chosen = {}
    for option in options:
        key, equals, value = option.partition("=")
        try:
            chosen[key.strip()] = yaml.safe_load(value)
        except yaml.YAMLError:
            equals = ""
        if not equals or not key.strip():
            raise SpecError(f"--option {option}: expected KEY=VALUE, such as --option score=public-test")
    return chosen


def _options(name: str) -> list[str]:
    """The reader's options with their defaults, as they would be given."""
    import inspect

    from fercli.datasets import READERS

    reader = READERS[name]
    defaults = inspect.signature(reader.parse).parameters
    return [
        f"{option}={defaults[option].default}" if isinstance(defaults[option].default, (str, int)) else option
        for option in reader.options
    ]


def _document(name: str) -> dict[str, Any]:
    from fercli.datasets import READERS
    from fercli.datasets.facts import FACTS
    from fercli.datasets.layouts import LAYOUTS

    known = FACTS[name].document() if name in FACTS else {}
    layout = {"layout": READERS[name].layout, "tree": LAYOUTS[name].splitlines(), "options": _options(name)}
    return {**known, **layout}
