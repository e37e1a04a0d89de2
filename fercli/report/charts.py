"""The larger plots of the run's report, as inline SVG in the manner of `plots`: reliability, scatter, several lines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from fercli.report.plots import Point, svg, unbroken

#: Faces that a bin of a reliability diagram takes to be drawn in full.
FEW = 5

_GRID = "".join(f"M{at} 0V100M0 {at}H100" for at in (0, 25, 50, 75, 100))


def reliability(bins: Sequence[Mapping[str, Any]], title: str) -> Markup:
    """Draw accuracy against confidence, a bar a bin, and in other colours what lies between the two.

    Args:
        bins: {"low", "high", "count", "confidence", "accuracy"}, fractions; empty bins are left out.
        title: what a screen reader says.

    Bins of fewer than `FEW` faces have the class ``few`` besides: one face is right or wrong, and says little.
    """
    bars: dict[str, list[str]] = {}
    for one in bins:
        if not one["count"]:
            continue
        accuracy, confidence = one["accuracy"], one["confidence"]
        left, width = 100 * one["low"] + 0.4, 100 * (one["high"] - one["low"]) - 0.8
        both, more = min(accuracy, confidence), max(accuracy, confidence)
        gap, few = "over" if confidence > accuracy else "under", " few" if one["count"] < FEW else ""
        for kind, low, high in (("right", 0.0, both), (gap, both, more)):
            bar = f"M{left:.2f} {100 - 100 * low:.2f}V{100 - 100 * high:.2f}h{width:.2f}V{100 - 100 * low:.2f}z"
            bars.setdefault(kind + few, []).append(bar)
    filled = "".join(f'<path class="fill {kind}" d="{"".join(paths)}"/>' for kind, paths in bars.items())
    return svg(100, "square", title, f'<path class="axis" d="{_GRID}"/>{filled}<path class="ideal" d="M0 100L100 0"/>')


def counts(bins: Sequence[Mapping[str, Any]], title: str) -> Markup:
    """Draw how many faces each bin of `reliability` holds, the fullest bin reaching the top."""
    most = max((one["count"] for one in bins), default=0)
    path = "".join(
        f"M{100 * one['low'] + 0.4:.2f} 20V{20 - max(0.6, 20 * one['count'] / most):.2f}"
        f"h{100 * (one['high'] - one['low']) - 0.8:.2f}V20z"
        for one in bins
        if one["count"]
    )
    return svg(20, "strip", title, f'<path class="fill count" d="{path}"/><path class="axis" d="M0 20H100"/>')


def scatter(x: Sequence[float], y: Sequence[float], kinds: Sequence[str], title: str) -> Markup:
    """Draw points of several kinds on a square.

    Args:
        x, y: within 0..1, x to the right, y upward.
        kinds: the class of each point's path, such as ``c3 src``; kinds are drawn in the order of their names' first
            appearance, those that hold ``src`` beneath the others.
        title: what a screen reader says.
    """
    paths: dict[str, list[str]] = {}
    for across, up, kind in zip(x, y, kinds, strict=True):
        paths.setdefault(kind, []).append(f"M{2 + 96 * across:.1f} {98 - 96 * up:.1f}h0")
    order = sorted(paths, key=lambda kind: "src" not in kind.split())
    parts = "".join(f'<path class="point {kind}" d="{"".join(paths[kind])}"/>' for kind in order)
    return svg(100, "square map", title, parts)


def lines(
    series: Sequence[tuple[str, Sequence[Point]]],
    top: float,
    title: str,
    chosen: int | None = None,
    bottom: float = 0.0,
) -> dict[str, Any]:
    """Draw several quantities over the epochs on one scale from `bottom` to `top`.

    Args:
        series: (class of the line, (epoch, value) in order of epochs); an undefined value leaves a gap.
        top: value at the upper edge, above `bottom`.
        title: what a screen reader says.
        chosen: the epoch to mark, if any.

    Returns:
        {"svg", "top", "bottom", "first", "last"}, the epochs at the ends None where there are no points.
    """
    epochs = [epoch for _, points in series for epoch, _ in points]
    first, last = min(epochs, default=None), max(epochs, default=None)

    def x(epoch: int) -> float:
        return 2 + 96 * (epoch - first) / (last - first) if last > first else 50.0

    def y(value: float) -> float:
        return 56 - 52 * (value - bottom) / (top - bottom)

    parts = ['<path class="axis" d="M0 4H100M0 30H100M0 56H100"/>']
    if chosen is not None and epochs and first <= chosen <= last:
        parts.append(f'<path class="mark" d="M{x(chosen):.2f} 0V60"/>')
    for kind, points in series:
        parts.extend(f'<path class="line {kind}" d="{path}"/>' for path in unbroken(points, x, y))
    ends = {"top": top, "bottom": bottom, "first": first, "last": last}
    return {"svg": svg(60, "curve", title, "".join(parts)), **ends}


def ceiling(value: float) -> float:
    """Return the least of 1, 2, 3, 4, 5, 6, 8, 10, 20, 30 ... not below a number: an end for an axis of counts."""
    step = 1
    while True:
        for factor in (1, 2, 3, 4, 5, 6, 8):
            if value <= factor * step:
                return float(factor * step)
        step *= 10
