"""The errors a user can mend. The command line prints their one line and exits with their code."""

from __future__ import annotations


class FercliError(Exception):
    """Something the user can put right: the message is one line saying what is wrong, where, and what to do."""

    exit_code = 1


class SpecError(FercliError):
    """The run spec or the command line asks for something that cannot be; exits with 2, as click's own usage errors."""

    exit_code = 2


class TransientError(FercliError):
    """A failure that may pass, of memory or of a disk: never to be kept as a property of what it happened to."""
