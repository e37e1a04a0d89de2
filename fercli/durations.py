"""Durations and rates as text: a small value never becomes "0.0 s", "0.0/s" or "nan s"."""

from __future__ import annotations

import math


def duration(seconds: float) -> str:
    """Return seconds as text: ``under 0.1 s``, ``3.2 s``, ``2 min 05 s``, ``1 h 02 min``."""
    if seconds < 0.05:
        return "under 0.1 s"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def rate(count: float, seconds: float) -> str:
    """Return `count` items in `seconds` as a rate, such as ``12.3/s``."""
    return f"{digits(count / max(seconds, 1e-9))}/s"


def digits(value: float) -> str:
    """Return a number with three significant digits, or all digits before its point if more; without an exponent."""
    if not value or not math.isfinite(value):
        return f"{value:.0f}"
    # Rounded first: 9.996 is shown as 10.0.
    rounded = float(f"{value:.3g}")
    return f"{value:.{max(0, 2 - math.floor(math.log10(abs(rounded))))}f}"
