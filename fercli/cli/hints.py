"""Advice that can be run as printed: ``run: fercli prepare`` with the user's -c, --set and --source."""

from __future__ import annotations

import shlex

import click

from fercli.errors import Advice, Command

_KEY = "fercli.given"


def remember(spec_file: str | None, overrides: tuple[str, ...], sources: tuple[str, ...]) -> None:
    """Remember the options that describe the spec of the running command."""
    ctx = click.get_current_context(silent=True)
    if ctx is not None:
        given = [("-c", spec_file)] if spec_file else []
        ctx.meta[_KEY] = given + [("--set", text) for text in overrides] + [("--source", name) for name in sources]


def with_options(text: str) -> str:
    """Return the text with the options that the running command remembered added to every advised command with them."""
    ctx = click.get_current_context(silent=True)
    if ctx is None or not isinstance(text, Advice):
        return text
    return "".join(_completed(part, ctx) if isinstance(part, Command) else part for part in text.parts)


def _completed(advised: Command, ctx: click.Context) -> str:
    command: click.Command | None = ctx.find_root().command
    for word in advised.name.split():
        command = command.get_command(ctx.find_root(), word) if isinstance(command, click.Group) else None
    known = {option for parameter in command.params for option in parameter.opts} if command is not None else set()
    given = [f"{option} {shlex.quote(value)}" for option, value in ctx.meta.get(_KEY, []) if option in known]
    return " ".join(filter(None, ("fercli", advised.name, *given, advised.arguments)))
