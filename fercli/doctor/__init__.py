"""Is this machine fit for fercli and for a run spec, and what is missing?

- `checks`: all checks in their order; those of the machine, the spec and its data
- `software`: Python and the libraries, and what is to be done where one cannot be loaded
- `finding`: what a check tells

This front door needs the standard library alone: whatever else is broken, it can say so.
"""

from __future__ import annotations

from collections.abc import Iterator

from fercli.doctor.finding import FAIL, OK, WARN, Finding
from fercli.doctor.software import OPENCV_WHEELS, unloadable

__all__ = ["FAIL", "OK", "OPENCV_WHEELS", "WARN", "Finding", "examine", "unloadable"]


def examine(spec_file: str | None = None, overrides: tuple[str, ...] = ()) -> Iterator[Finding]:
    """Run all checks, in an order in which each can rely on those before.

    A check that breaks down is a finding itself. Where the spec cannot be read its defaults stand in for it.
    """
    from fercli.doctor.checks import examine

    return examine(spec_file, overrides)
