"""The errors that a user can fix. The command line prints their one line and exits with their code."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Command:
    """A command of fercli's that a message advises to run: ``fercli NAME ARGUMENTS``.

    The command line puts the -c, --set and --source that the user gave behind its name, where it has these options. One
    that names a spec of its own, or is only mentioned, is written as plain text.
    """

    name: str
    arguments: str = ""

    def __str__(self) -> str:
        return " ".join(filter(None, ("fercli", self.name, self.arguments)))


class Advice(str):
    """A text that keeps the commands in it apart, so that nobody has to search it for them: else an ordinary string.

    Attributes:
        parts: the text's pieces in order.
    """

    parts: tuple[str | Command, ...]

    def __new__(cls, *parts: str | Command) -> Advice:
        flat = [piece for part in parts for piece in (part.parts if isinstance(part, Advice) else (part,))]
        advice = super().__new__(cls, "".join(map(str, flat)))
        advice.parts = tuple(flat)
        return advice

    @classmethod
    def joined(cls, separator: str, texts: Iterable[str]) -> Advice:
        """Several texts as one, as `str.join` makes it."""
        first, *more = texts
        return cls(first, *(part for text in more for part in (separator, text)))

    @classmethod
    def run(cls, name: str, arguments: str = "") -> Advice:
        """The advice to run a command."""
        return cls("run: ", Command(name, arguments))


class FercliError(Exception):
    """Something the user can put right. Its text is one line: what is wrong and where; what to do.

    Attributes:
        what: what is wrong, and where.
        fix: what to do; "" where `what` says all there is to say.
    """

    exit_code = 1

    def __init__(self, what: str, fix: str = ""):
        super().__init__(what, fix)
        self.what, self.fix = what, fix

    @property
    def text(self) -> Advice:
        """The line, with its commands."""
        return Advice(*((self.what, "; ", self.fix) if self.fix else (self.what,)))

    def __str__(self) -> str:
        return str(self.text)


class SpecError(FercliError):
    """The run spec or the command line asks for something that cannot be; exits with 2, as click's own usage errors."""

    exit_code = 2


class TransientError(FercliError):
    """A failure that may pass, of memory or of a disk: never to be kept as a property of what it happened to."""
