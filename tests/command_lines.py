"""Command lines in texts: split as a shell splits them, and parsed as click parses them, without running anything."""

from __future__ import annotations

import shlex

import click

from fercli.cli import main

#: Words at which one command ends and the shell or another command begins.
_SHELL = {"|", ">", ">>", "<", "&&", "&", ";", "2>"}


def commands(line: str) -> list[list[str]]:
    """Return the arguments of every ``fercli`` command in one line of a shell."""
    words, parts = shlex.split(line, comments=True), [[]]
    for word in words:
        parts.append([]) if word in _SHELL else parts[-1].append(word)
    starts = (part[part.index("fercli") :] for part in parts if "fercli" in part)
    return [args for _, *args in starts]


def parse(line: str) -> None:
    """Parse every ``fercli`` command of a line, executing nothing. Raises click.UsageError."""
    found = commands(line)
    assert found, line
    for args in found:
        _parse_one(args)


def _parse_one(args: list[str]) -> None:
    ctx = main.make_context("fercli", args)
    while isinstance(ctx.command, click.Group):
        rest = [*ctx._protected_args, *ctx.args] if hasattr(ctx, "_protected_args") else ctx.args
        if not rest and ctx.command.invoke_without_command:
            return
        name, command, rest = ctx.command.resolve_command(ctx, rest)
        ctx = command.make_context(name, rest, parent=ctx)
