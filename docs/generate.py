"""Write the pages of docs/ that come from the code: the run spec's keys, the methods' options, the help pages.

Run it after a change of a key, an option or a help text::

    python docs/generate.py

`tests/test_docs.py` fails where a page is stale.
"""

from __future__ import annotations

import ast
import inspect
import itertools
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_origin

import click
from pydantic import BaseModel

from fercli.cli import COMMANDS, main
from fercli.methods import method_class
from fercli.spec import Spec, packaged
from fercli.spec.registry import METHODS
from fercli.spec.schema import Sweep
from fercli.spec.template import flow, plain, values

FOLDER = Path(__file__).parent
_NOTE = "<!-- Written by docs/generate.py from the code. Do not edit. -->\n"
_WIDTH = 80


def run_spec_page() -> str:
    """Every key of the run spec: a table for each section."""
    lines = [
        "# The run spec",
        "",
        _NOTE,
        "Every command reads one YAML file, the run spec: `-c FILE`, else `./fercli.yaml`, else the packaged default. "
        "`fercli init` writes one with every key and its explanation. `--set key.path=VALUE` overrides a key for one "
        "command. An unknown key or a value out of range is an error that names the key. "
        "[The schema](../configs/spec.schema.json) lets editors complete and check keys.",
        "",
        "A spec names only the keys that it changes:",
        "",
        "```yaml",
        "name: first-run",
        "data: {source: raf-db, targets: [jaffe, my-faces], datasets: {my-faces: {reader: folders, root: faces}}}",
        "model: {backbone: ir18}",
        "adapt: {method: aglrls, epochs: 10, lr: {1: 1e-5, 6: 1e-6}}",
        "```",
        "",
        "A learning rate is a number, or a mapping from an epoch to the rate from that epoch on.",
        "",
        "`-c` also takes the name of a packaged spec: " + ", ".join(f"`{name}`" for name in sorted(packaged())) + ".",
        *_section(Spec, ""),
    ]
    return "\n".join(lines) + "\n"


def _section(kind: type[BaseModel], prefix: str) -> Iterator[str]:
    leaves, below = [], []
    for name, field in kind.model_fields.items():
        inner = field.annotation
        if prefix + name == "sweep":
            below.append((name, Sweep, f"{field.description} A spec with this section is run by `fercli sweep`."))
        elif inspect.isclass(inner) and issubclass(inner, BaseModel):
            below.append((name, inner, field.description or ""))
        else:
            leaves.append((name, field))
    yield from ["", "| key | default | meaning |", "|---|---|---|"]
    for name, field in leaves:
        default = "required" if field.is_required() else f"`{flow(field.get_default(call_default_factory=True))}`"
        words = _markdown(field.description or "")
        named = [value for value in values(prefix + name, field.annotation) if value not in words]
        if named:
            words = f"{words.rstrip('.')}; one of {', '.join(f'`{value}`' for value in named)}"
        yield f"| `{prefix}{name}` | {_cell(default)} | {_cell(words)} |"
    for name, inner, words in below:
        yield from ["", f"{'###' if prefix else '##'} `{prefix}{name}`", "", _markdown(words)]
        yield from _section(inner, f"{prefix}{name}.")


def methods_page() -> str:
    """Every method's description and options."""
    lines = [
        "# Method reference",
        "",
        _NOTE,
        "What each method computes, and the keys of `adapt.options` that it takes. [Methods](methods.md) says which "
        "one to choose.",
    ]
    for name in METHODS:
        method = method_class(name)
        source = inspect.getmodule(method)
        first = plain((source.__doc__ or "").strip().split("\n\n")[0])
        lines += ["", f"## `{name}`", "", _escaped(first), "", *_paragraphs(inspect.cleandoc(method.__doc__ or ""))]
        fields = method.Options.model_fields
        if fields:
            lines += ["| option | default | values | meaning |", "|---|---|---|---|"]
            meanings = _attribute_docstrings(method.Options)
            for key, field in fields.items():
                allowed = ", ".join(f"`{value}`" for value in values(f"adapt.options.{key}", field.annotation))
                cells = (f"`{key}`", f"`{flow(field.get_default())}`", allowed or _type(field), _cell(meanings[key]))
                lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _attribute_docstrings(kind: type) -> dict[str, str]:
    """The docstring under each attribute of a class and its bases; a class replaces its bases'."""
    found = {}
    for base in reversed([base for base in kind.__mro__ if base.__module__.startswith("fercli.methods.")]):
        (body,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        for line, below in itertools.pairwise(body.body):
            if isinstance(line, ast.AnnAssign) and isinstance(below, ast.Expr):
                found[line.target.id] = _markdown(below.value.value)
    return found


def _paragraphs(text: str) -> Iterator[str]:
    """A docstring's paragraphs; what is indented or a table stays as it is, in a block."""
    for part in text.split("\n\n"):
        if part.startswith("- ") or "\n- " in part:
            yield from ["\n".join(re.sub(r"``([^`]+)``", r"`\1`", line) for line in part.splitlines()), ""]
        elif part.startswith((" ", "|")) or "\n    " in part or "::" in part:
            yield from ["```text", part.strip("\n"), "```", ""]
        else:
            yield from [_markdown(part), ""]


def _type(field: Any) -> str:
    kind = field.annotation
    if get_origin(kind) is not None:
        kind = next((one for one in get_args(kind) if one is not type(None)), kind)
    words = {bool: "`true`, `false`", int: "an integer", float: "a number", str: "text"}.get(kind, "")
    limits = []
    for limit in field.metadata:
        for sign, mark in (("ge", "≥"), ("gt", ">"), ("le", "≤"), ("lt", "<")):
            if getattr(limit, sign, None) is not None:
                limits.append(f"{mark} {getattr(limit, sign):g}")
    return " ".join(filter(None, [words, " and ".join(limits)]))


def commands_page() -> str:
    """The help page of every command."""
    root = click.Context(main, info_name="fercli", terminal_width=_WIDTH, **main.context_settings)
    lines = [
        "# Commands",
        "",
        _NOTE,
        "What `fercli --help` and `fercli COMMAND --help` print. Results go to stdout, progress and messages to "
        "stderr. `--quiet` and `--json` are for scripts. An error is one line; `--debug` shows its traceback. "
        "Stopped or killed, a command resumes when it is run again.",
    ]
    for words, ctx in _contexts(main, root, ()):
        lines += ["", f"## {' '.join(('fercli', *words))}", "", "```text", ctx.get_help().rstrip(), "```"]
    return "\n".join(lines) + "\n"


def _contexts(command: click.Command, ctx: click.Context, words: tuple[str, ...]) -> Iterator[Any]:
    yield words, ctx
    if isinstance(command, click.Group):
        for name in COMMANDS if not words else command.list_commands(ctx):
            below = command.get_command(ctx, name)
            yield from _contexts(below, click.Context(below, ctx, name), (*words, name))


def _markdown(text: str) -> str:
    """A docstring's words on one line: ``code`` as code, references to the code's own names as code."""
    text = re.sub(r" \(`fercli[^)]*\)", "", " ".join(text.split()))
    return re.sub(r"``([^`]+)``", r"`\1`", text)


def _escaped(text: str) -> str:
    return text.replace("<", "&lt;")


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


PAGES = {"run-spec.md": run_spec_page, "method-reference.md": methods_page, "commands.md": commands_page}


if __name__ == "__main__":
    for name, page in PAGES.items():
        (FOLDER / name).write_text(page(), encoding="utf-8")
