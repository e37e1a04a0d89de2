"""Help: every command ends in examples, every example parses, lines are short, and no heavy module is loaded."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from command_lines import commands, parse

from fercli.cli import COMMANDS, main


def _root(width: int = 110) -> click.Context:
    # With the group's settings, as click does: a command keeps the help option of its first use.
    return click.Context(main, info_name="fercli", terminal_width=width, **main.context_settings)


def _words() -> list[tuple[str, ...]]:
    """Return the words after ``fercli`` for every command, including groups."""
    root = _root()

    def walk(group: click.Group, ctx: click.Context, before: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
        for name in group.list_commands(ctx):
            yield (*before, name)
            below = group.get_command(ctx, name)
            if isinstance(below, click.Group):
                yield from walk(below, click.Context(below, ctx, name), (*before, name))

    return list(walk(main, root, ()))


def _context(words: tuple[str, ...], width: int = 110) -> click.Context:
    ctx = _root(width)
    for word in words:
        ctx = click.Context(ctx.command.get_command(ctx, word), ctx, word)
    return ctx


def _examples(text: str) -> list[str]:
    """Return the commands in a text; a description may follow a command after two blanks."""
    lines = [line.strip() for line in text.splitlines()]
    return [line.split("  ")[0] for line in lines if "fercli " in line and not line.endswith(":")]


@pytest.mark.parametrize("words", [(), *_words()], ids=" ".join)
def test_help_ends_in_examples_that_parse(words: tuple[str, ...]) -> None:
    ctx = _context(words)
    for width in (80, 110):
        ctx = _context(words, width)
        assert [line for line in ctx.get_help().splitlines() if len(line) > width] == []
    text = ctx.command.help.rstrip()
    if words:
        _, examples, text = text.partition("Examples:")
        assert examples
    lines = _examples(text)
    assert any(args[: len(words)] == list(words) for line in lines for args in commands(line))
    for line in lines:
        parse(line)
    # The examples are the end of the text.
    assert _examples(text.splitlines()[-1]) == lines[-1:]


@pytest.mark.parametrize(
    "line",
    ["fercli adapt --targt jaffe", "fercli adapt jaffe", "fercli weights inspct x", "fercli sweep", "fercli adpt"],
)
def test_an_invalid_example_is_detected(line: str) -> None:
    with pytest.raises(click.UsageError):
        parse(line)


def test_every_command_has_a_short_line() -> None:
    ctx = _root()
    for name in COMMANDS:
        assert 10 < len(main.get_command(ctx, name).get_short_help_str(100)) < 90


_HEAVY = "torch torchvision mediapipe cv2 lightning_fabric matplotlib tensorboard"
_HELP = "import fercli.cli\nfor words in {words!r}: fercli.cli.main([*words, '--help'], standalone_mode=False)"
#: Code to run, and modules that it must not load.
_LIGHT = {
    "the package": ("import fercli", _HEAVY),
    "the command": ("import fercli.cli", _HEAVY),
    "a spec": ("import fercli.spec; fercli.spec.load()", _HEAVY),
    "the registry": ("import fercli.spec.registry", "torch sklearn numpy"),
    "the starter": ("from fercli.starter import starter_file; starter_file()", "torch"),
    "the readers": ("import fercli.datasets", "numpy torch cv2"),
    "a store": ("from fercli.store import Store; Store.open({store!r})", "mediapipe cv2 torch PIL"),
    "help": (
        _HELP.format(words=[(), ("datasets",), ("datasets", "check")]),
        "numpy torch cv2 pydantic fercli.datasets",
    ),
    "help of all": (_HELP.format(words=[(), *_words()]), f"{_HEAVY} scipy numpy pydantic"),
}


@pytest.mark.parametrize("case", _LIGHT)
def test_heavy_modules_are_loaded_only_when_needed(case: str, raf_store: Path) -> None:
    code, heavy = _LIGHT[case]
    code = code.replace("{store!r}", repr(str(raf_store)))
    ending = f"\nimport sys; loaded = set({heavy.split()!r}) & set(sys.modules); sys.exit(str(loaded) if loaded else 0)"
    done = subprocess.run([sys.executable, "-c", code + ending], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
