"""Advice that can be typed as printed: ``run: fercli prepare`` with the -c, --set and --source the user gave."""

from __future__ import annotations

import re
import shlex

import click

_KEY = "fercli.given"
#: A command advised in a message: behind a colon, so that prose that only mentions one stays as it is.
_ADVICE = re.compile(r"(?<=: )fercli (?P<name>[a-z-]+)(?: (?P<below>[a-z-]+)(?![^\s;,)]))?")


def remember(spec_file: str | None, overrides: tuple[str, ...], sources: tuple[str, ...]) -> None:
    """Keep what describes the spec of the command at work."""
    ctx = click.get_current_context(silent=True)
    if ctx is not None:
        given = [("-c", spec_file)] if spec_file else []
        ctx.meta[_KEY] = given + [("--set", text) for text in overrides] + [("--source", name) for name in sources]


def with_options(text: str, ctx: click.Context) -> str:
    """Repeat what was remembered in every command that the text advises and that has these options.

    A command advised with a spec of its own, or for its help, stays as it is.
    """
    given = ctx.meta.get(_KEY, [])
    root = ctx.find_root()

    def complete(advice: re.Match[str]) -> str:
        command, words = root.command.get_command(root, advice["name"]), f"fercli {advice['name']}"
        if isinstance(command, click.Group) and advice["below"]:
            command, words = command.get_command(root, advice["below"]), f"{words} {advice['below']}"
        rest = re.split(r"[;\n)]", advice.string[advice.start() :])[0]
        if command is None or {"-c", "--spec", "--help"} & set(rest.split()):
            return advice[0]
        known = {option for parameter in command.params for option in parameter.opts}
        options = [f"{option} {shlex.quote(value)}" for option, value in given if option in known]
        return " ".join([words, *options]) + advice[0][len(words) :]

    return _ADVICE.sub(complete, text) if given else text
