"""What a check of `fercli doctor` tells."""

from __future__ import annotations

from dataclasses import dataclass

OK, WARN, FAIL = "ok", "warn", "fail"


@dataclass(frozen=True)
class Finding:
    """What a check found.

    Attributes:
        check: its name.
        status: ``ok``, ``warn`` (something will not work) or ``fail``.
        found: in words.
        fix: what to do; "" where nothing is amiss.
    """

    check: str
    status: str
    found: str
    fix: str = ""
