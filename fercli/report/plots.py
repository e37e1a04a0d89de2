"""The page's plots, as inline SVG: they take the page's colours, so they are right in light, dark and print.

Every plot is stretched to the width it is given (``preserveAspectRatio="none"``) with strokes that do not scale, and
holds no text of its own: labels are HTML around it and keep their size on a phone. Dots are strokes of zero length with
round caps, which stay round when the plot is stretched.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

#: A point (epoch, value); the value is None where it is not defined.
Point = tuple[int, float | None]

#: Faces that a bin of a reliability diagram takes to be drawn in full.
FEW = 5

_GRID = "".join(f"M{at} 0V100M0 {at}H100" for at in (0, 25, 50, 75, 100))


def svg(height: int, kind: str, title: str, parts: str) -> Markup:
    """Return a plot 100 wide of class `kind`; `title` is escaped, `parts` (paths made here) are not."""
    opened = Markup(
        '<svg viewBox="0 0 100 {height}" preserveAspectRatio="none" role="img" class="{kind}"><title>{title}</title>'
    )
    return opened.format(height=height, kind=kind, title=title) + Markup(parts + "</svg>")


def axis(values: Sequence[float]) -> list[float]:
    """Choose the ticks of an axis that holds fractions: even steps of a round number of points, seven at most.

    Args:
        values: fractions in [0, 1].

    Returns:
        At least two ticks within [0, 1], ascending, the ends of the axis first and last. Without values 0 and 1.
    """
    if not values:
        return [0.0, 1.0]
    for step in (1, 2, 5, 10, 20):  # points
        first = max(0, math.floor(100 * min(values) / step - 0.25) * step)
        last = min(100, math.ceil(100 * max(values) / step + 0.25) * step)
        if last - first <= 6 * step:
            break
    return [tick / 100 for tick in range(first, last + 1, step)]


def lane(
    mean: float,
    whisker: tuple[float, float] | None,
    values: Sequence[float],
    ticks: Sequence[float],
    reference: float | None,
    title: str,
) -> Markup:
    """Draw a score as a dot, how far it may be off as a bar, and the scores of single seeds as faint dots.

    Args:
        mean: a fraction.
        whisker: ends of the bar, fractions, cut at the axis's ends; None for no bar.
        values: fractions, one a seed.
        ticks: from `axis`.
        reference: where to draw a dashed line, if anywhere.
        title: what a screen reader says.
    """

    def x(value: float) -> str:
        return f"{2 + 96 * min(1.0, max(0.0, (value - ticks[0]) / (ticks[-1] - ticks[0]))):.2f}"

    parts = ['<path class="axis" d="' + "".join(f"M{x(tick)} 0V20" for tick in ticks) + '"/>']
    if reference is not None:
        parts.append(f'<path class="mark before" d="M{x(reference)} 0V20"/>')
    if whisker is not None:
        parts.append(f'<path class="whisker after" d="M{x(whisker[0])} 10H{x(whisker[1])}"/>')
    parts.extend(f'<path class="seed after" d="M{x(value)} 10h0"/>' for value in values)
    parts.append(f'<path class="dot after" d="M{x(mean)} 10h0"/>')
    return svg(20, "lane", title, "".join(parts))


def lines(
    series: Sequence[tuple[str, Sequence[Point]]],
    top: float,
    title: str,
    chosen: int | None = None,
    bottom: float = 0.0,
    dots: bool = False,
) -> dict[str, Any]:
    """Draw several quantities over the epochs on one scale from `bottom` to `top`.

    Args:
        series: (class of the line, (epoch, value) in order of epochs); an undefined value leaves a gap.
        top: value at the upper edge, above `bottom`.
        title: what a screen reader says.
        chosen: the epoch to mark, if any; with `dots` each line has a dot there.

    Returns:
        {"svg", "top", "bottom", "first", "last"}, the epochs at the ends None where there are no points.
    """
    epochs = [epoch for _, points in series for epoch, _ in points]
    first, last = min(epochs, default=None), max(epochs, default=None)

    def place(epoch: int, value: float) -> str:
        x = 2 + 96 * (epoch - first) / (last - first) if last > first else 50.0
        return f"{x:.2f} {56 - 52 * (value - bottom) / (top - bottom):.2f}"

    parts = ['<path class="axis" d="M0 4H100M0 30H100M0 56H100"/>']
    if chosen is not None and epochs and first <= chosen <= last:
        parts.append(f'<path class="mark" d="M{place(chosen, bottom).split()[0]} 0V60"/>')
    for kind, points in series:
        parts.extend(f'<path class="line {kind}" d="{path}"/>' for path in _unbroken(points, place))
        at = dict(points).get(chosen) if dots else None
        parts.extend([] if at is None else [f'<path class="dot after" d="M{place(chosen, at)}h0"/>'])
    ends = {"top": top, "bottom": bottom, "first": first, "last": last}
    return {"svg": svg(60, "curve", title, "".join(parts)), **ends}


def curve(name: str, points: Sequence[Point], chosen: int, from_zero: bool) -> dict[str, Any] | None:
    """Draw one quantity over the epochs, on a scale of its own.

    Args:
        name: what it is.
        points: (epoch, value) in order of epochs; an undefined value leaves a gap.
        chosen: the epoch to mark, where it is among them.
        from_zero: let the vertical axis begin at 0 (losses), where no value is negative.

    Returns:
        As `lines`, and "name", "chosen", "at_chosen" (the value there), "final"; None where no value is defined.
    """
    values = [value for _, value in points if value is not None]
    if not values:
        return None
    bottom, top = min(values), max(values)
    if from_zero and bottom >= 0:
        bottom = 0.0
    if top - bottom < 1e-12:
        bottom, top = bottom - 0.5 * (abs(bottom) or 1), top + 0.5 * (abs(top) or 1)
    title = f"{name}, epochs {points[0][0]} to {points[-1][0]}"
    drawn = lines([("alone", points)], top, title, chosen, bottom, dots=True)
    return {**drawn, "name": name, "chosen": chosen, "at_chosen": dict(points).get(chosen), "final": values[-1]}


def _unbroken(points: Sequence[Point], place: Any) -> list[str]:
    """Return an SVG path for each unbroken run of defined values."""
    runs: list[list[str]] = [[]]
    for epoch, value in points:
        if value is None:
            runs.append([])
        else:
            runs[-1].append(place(epoch, value))
    return ["M" + ("L".join(run) if len(run) > 1 else run[0] + "h0") for run in runs if run]


def ceiling(value: float) -> float:
    """Return the least of 1, 2, 3, 4, 5, 6, 8, 10, 20, 30 ... not below a number: an end for an axis of counts."""
    step = 1
    while True:
        for factor in (1, 2, 3, 4, 5, 6, 8):
            if value <= factor * step:
                return float(factor * step)
        step *= 10


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
