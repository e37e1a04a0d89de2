"""Errors that a user can fix. The command line prints their one-line message and exits with their code."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Command:
    """A fercli command that a message tells the user to run: ``fercli NAME ARGUMENTS``.

    The command line inserts the user's -c, --set and --source after the name, if the command has these options. A
    command that names its own spec, or is only mentioned, is written as plain text.
    """

    name: str
    arguments: str = ""

    def __str__(self) -> str:
        return " ".join(filter(None, ("fercli", self.name, self.arguments)))


class Advice(str):
    """A string that keeps its commands as separate parts, so that they can be found without searching the text.

    Attributes:
        parts: the parts of the text in order.
    """

    parts: tuple[str | Command, ...]

    def __new__(cls, *parts: str | Command) -> Advice:
        flat = [piece for part in parts for piece in (part.parts if isinstance(part, Advice) else (part,))]
        advice = super().__new__(cls, "".join(map(str, flat)))
        advice.parts = tuple(flat)
        return advice

    @classmethod
    def joined(cls, separator: str, texts: Iterable[str]) -> Advice:
        """Join several texts into one, as `str.join` does."""
        first, *more = texts
        return cls(first, *(part for text in more for part in (separator, text)))

    @classmethod
    def run(cls, name: str, arguments: str = "") -> Advice:
        """Return the advice to run a command."""
        return cls("run: ", Command(name, arguments))


class FercliError(Exception):
    """An error that the user can fix. Its text is one line: what is wrong and where; what to do.

    Attributes:
        what: what is wrong, and where.
        fix: what to do; "" where `what` is sufficient.
    """

    exit_code = 1

    def __init__(self, what: str, fix: str = ""):
        super().__init__(what, fix)
        self.what, self.fix = what, fix

    @property
    def text(self) -> Advice:
        """The message line, with its commands."""
        return Advice(*((self.what, "; ", self.fix) if self.fix else (self.what,)))

    def __str__(self) -> str:
        return str(self.text)


class SpecError(FercliError):
    """The run spec or the command line is invalid; exits with 2, as click's own usage errors do."""

    exit_code = 2


class TransientError(FercliError):
    """A temporary failure of memory or of a disk; never recorded as a property of the item being processed."""
