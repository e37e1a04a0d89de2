"""How long work took and how fast it went, in words: never "0.0 s", "0.0/s" or "nan s" for what is only small."""

from __future__ import annotations

import math


def duration(seconds: float) -> str:
    """Seconds as text: ``under 0.1 s``, ``3.2 s``, ``2 min 05 s``, ``1 h 02 min``."""
    if seconds < 0.05:
        return "under 0.1 s"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def rate(count: float, seconds: float) -> str:
    """So many pieces in so many seconds, as ``12.3/s``."""
    return f"{digits(count / max(seconds, 1e-9))}/s"


def digits(value: float) -> str:
    """A number with three significant digits, but all those before its point, and without an exponent."""
    if not value or not math.isfinite(value):
        return f"{value:.0f}"
    # Rounded first: 9.996 has the digits of 10.0.
    rounded = float(f"{value:.3g}")
    return f"{value:.{max(0, 2 - math.floor(math.log10(abs(rounded))))}f}"
