"""Options shared by commands, and how they become a run spec."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from fercli import console
from fercli.cli.completion import complete_datasets, complete_methods, complete_specs, complete_targets
from fercli.cli.hints import remember

if TYPE_CHECKING:
    from fercli.spec import Spec

F = TypeVar("F", bound=Callable[..., Any])


def together(*options: Callable[[F], F]) -> Callable[[F], F]:
    """Combine several options into one decorator, in the order in which --help lists them."""

    def decorate(function: F) -> F:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


#: --quiet and --json.
console_options = together(
    click.option("--quiet", "-q", is_flag=True, help="Print only warnings and errors."),
    click.option("--json", "as_json", is_flag=True, help="Print only the result, as JSON on stdout."),
)
#: --set.
overrides_option = click.option(
    "--set", "overrides", metavar="KEY=VALUE", multiple=True, help="Override any key: --set adapt.epochs=5"
)
#: -c/--spec, --set, --quiet and --json.
spec_options = together(
    click.option(
        "-c",
        "--spec",
        "spec_file",
        metavar="FILE",
        shell_complete=complete_specs,
        help="Run spec (YAML file), or the name of a packaged spec. Default: ./fercli.yaml, else the packaged default.",
    ),
    overrides_option,
    console_options,
)
#: --source, a shortcut for data.source.
source_option = click.option(
    "--source",
    "sources",
    metavar="NAME",
    multiple=True,
    shell_complete=complete_datasets,
    help="Labelled source dataset (may be repeated).",
)
#: --root, for a command that reads one dataset.
root_option = click.option("--root", metavar="FOLDER", help="Folder of the dataset. Default: paths.data/NAME.")
#: --option, for the reader of a dataset; may be repeated.
reader_option = click.option(
    "--option",
    "options",
    metavar="KEY=VALUE",
    multiple=True,
    help="Option of the dataset's reader (see fercli datasets show NAME); may be repeated.",
)
#: --method, a shortcut for adapt.method.
method_option = click.option(
    "--method",
    metavar="NAME",
    shell_complete=complete_methods,
    help="Adaptation method; a shortcut for adapt.method.",
)
#: --restart.
restart_option = click.option(
    "--restart", is_flag=True, help="Discard the results of this step so far and start again."
)


def dataset_option(meaning: str) -> Callable[[F], F]:
    """--dataset, with its help text."""
    return click.option(
        "--dataset", "datasets", metavar="NAME", multiple=True, shell_complete=complete_datasets, help=meaning
    )


def target_option(meaning: str) -> Callable[[F], F]:
    """--target, with its help text."""
    return click.option(
        "--target", "targets", metavar="NAME", multiple=True, shell_complete=complete_targets, help=meaning
    )


def force_option(meaning: str) -> Callable[[F], F]:
    """--force, with its help text."""
    return click.option("--force", is_flag=True, help=meaning)


def reader_options(options: tuple[str, ...]) -> dict[str, Any]:
    """Return the --option values as a dictionary: KEY=VALUE with VALUE as YAML, as for --set."""
    from fercli.errors import SpecError
    from fercli.spec.yaml_data import NotYAML, read_yaml

    chosen = {}
    for option in options:
        key, equals, value = option.partition("=")
        try:
            # An empty value is "", as in label_column=: YAML's null would select the option's default.
            chosen[key.strip()] = read_yaml(value) if value.strip() else ""
        except NotYAML as problem:
            raise SpecError(
                f"--option {console.brief(option)}: the value is not YAML that fercli reads ({problem})",
                "write plain words, lists [a, b] or tables {1: happy}",
            ) from None
        if not equals or not key.strip():
            raise SpecError(f"--option {console.brief(option)}: expected KEY=VALUE, such as --option score=public-test")
    return chosen


def outside_method_option(function: F) -> F:
    """--method for commands that use a trained model: external code that the model file may name."""

    def trust(ctx: click.Context, parameter: click.Parameter, names: tuple[str, ...]) -> None:
        from fercli.spec.plugins import trust

        trust(*names)

    return click.option(
        "--method",
        metavar="MODULE:NAME",
        multiple=True,
        expose_value=False,
        callback=trust,
        help="External method that the model was adapted with; its code is run.",
    )(function)


def read_spec(
    spec_file: str | None,
    overrides: tuple[str, ...],
    quiet: bool,
    as_json: bool,
    sources: tuple[str, ...] = (),
) -> Spec:
    """Set the console's mode, and load the spec that the options describe."""
    from fercli.spec import load

    console.configure(quiet=quiet, as_json=as_json)
    remember(spec_file, overrides, sources)
    shortcuts = {"data.source": list(sources)} if sources else {}
    return load(spec_file, overrides, shortcuts)


def chosen_targets(spec: Spec, targets: tuple[str, ...]) -> list[str]:
    """Return the targets named by --target; with none or ``all``, every target of the spec.

    Raises:
        SpecError: there is no target, or one of them is a source.
    """
    from fercli.errors import SpecError

    names = list(spec.data.targets) if not targets or "all" in targets else list(dict.fromkeys(targets))
    if not names:
        raise SpecError("no target given; name one with --target, or list targets under data.targets in the spec")
    for name in names:
        if name in spec.data.source:
            raise SpecError(f"--target {name} is a source of this run", "a target must be another dataset")
    return names


def show_files(document: dict[str, Any], files: dict[str, Path]) -> None:
    """Print where a results document was written, by kind of file; with --json, print the document with these paths."""
    for kind, path in files.items():
        console.say(f"{kind}: {path}")
    console.result({**document, "files": {kind: str(path) for kind, path in files.items()}})
