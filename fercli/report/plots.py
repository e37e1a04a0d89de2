"""The page's plots as inline SVG. They use the page's colours, so they work in light mode, dark mode and print.

Every plot is stretched to the available width (``preserveAspectRatio="none"``) with strokes that do not scale. It
contains no text: labels are HTML around it and keep their size on a phone. Dots are strokes of zero length with round
caps, which stay round when the plot is stretched. A screen reader reads the plot's title.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

#: A point (epoch, value); the value is None where it is not defined.
Point = tuple[int, float | None]

#: Minimum number of faces for a bin of a reliability diagram to be drawn in full colour.
FEW = 5

_GRID = "".join(f"M{at} 0V100M0 {at}H100" for at in (0, 25, 50, 75, 100))


def svg(height: int, kind: str, title: str, parts: str) -> Markup:
    """Return a plot 100 units wide, of class `kind`. `title` is escaped; `parts` (paths made here) are not."""
    opened = Markup(
        '<svg viewBox="0 0 100 {height}" preserveAspectRatio="none" role="img" class="{kind}"><title>{title}</title>'
    )
    return opened.format(height=height, kind=kind, title=title) + Markup(parts + "</svg>")


def axis(values: Sequence[float]) -> list[float]:
    """Choose the ticks of an axis for fractions: two to seven within [0, 1], a round number of points apart, with the
    axis ends as first and last tick. Without values, 0 and 1."""
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
    bar: Sequence[float] | None,
    seeds: Sequence[float],
    ticks: Sequence[float],
    reference: float | None,
    title: str,
) -> Markup:
    """Draw a score as a dot, its uncertainty as a bar (given by its ends), seeds as faint dots and the reference as a
    dashed line. All are fractions, on an axis with these ticks; values outside are clipped to its ends."""

    def x(value: float) -> str:
        return f"{2 + 96 * min(1.0, max(0.0, (value - ticks[0]) / (ticks[-1] - ticks[0]))):.2f}"

    parts = ['<path class="axis" d="' + "".join(f"M{x(tick)} 0V20" for tick in ticks) + '"/>']
    if reference is not None:
        parts.append(f'<path class="mark before" d="M{x(reference)} 0V20"/>')
    if bar is not None:
        parts.append(f'<path class="whisker after" d="M{x(bar[0])} 10H{x(bar[1])}"/>')
    parts += [f'<path class="seed after" d="M{x(value)} 10h0"/>' for value in seeds]
    return svg(20, "lane", title, "".join([*parts, f'<path class="dot after" d="M{x(mean)} 10h0"/>']))


def bars(pair: Sequence[float], top: float, title: str) -> Markup:
    """Draw two numbers, before and after, as two bars one above the other, on the axis of `lane` from 0 to `top`."""
    drawn = "".join(
        f'<path class="fill {kind}" d="M2 {y}h{96 * value / top:.2f}v6h-{96 * value / top:.2f}z"/>'
        for kind, y, value in zip(("before", "after"), (3, 11), pair, strict=True)
    )
    return svg(20, "lane", title, '<path class="axis" d="M2 0V20"/>' + drawn)


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
        series: (class of the line, (epoch, value) in epoch order); an undefined value leaves a gap.
        chosen: the epoch to mark, if any; with `dots` each line has a dot there.

    Returns:
        {"svg", "top", "bottom", "first", "last"}; the first and last epoch are None where there are no points.
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
        runs: list[list[str]] = [[]]
        for epoch, value in points:
            if value is None:
                runs.append([])
            else:
                runs[-1].append(place(epoch, value))
        drawn = ["L".join(run) if len(run) > 1 else f"{run[0]}h0" for run in runs if run]
        parts += [f'<path class="line {kind}" d="M{path}"/>' for path in drawn]
        at = dict(points).get(chosen) if dots else None
        parts += [] if at is None else [f'<path class="dot after" d="M{place(chosen, at)}h0"/>']
    ends = {"top": top, "bottom": bottom, "first": first, "last": last}
    return {"svg": svg(60, "curve", title, "".join(parts)), **ends}


def curve(name: str, points: Sequence[Point], chosen: int, from_zero: bool) -> dict[str, Any] | None:
    """Draw one quantity over the epochs, on its own scale.

    Args:
        from_zero: start the vertical axis at 0 (for losses) where no value is negative.

    Returns:
        As `lines`, with "name", "chosen", "at_chosen" (the value there), "final"; None where no value is defined.
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


def ceiling(value: float) -> float:
    """Return the smallest of 1, 2, 3, 4, 5, 6, 8, 10, 20, 30 ... that is not below `value`: the end of a count axis."""
    step = 1
    while value > 8 * step:
        step *= 10
    return float(next(factor * step for factor in (1, 2, 3, 4, 5, 6, 8) if value <= factor * step))


def reliability(bins: Sequence[Mapping[str, Any]], title: str) -> tuple[Markup, Markup]:
    """Draw accuracy against confidence, one bar per bin, with the difference in other colours. A second plot below
    shows the number of faces in each bin; the fullest bin reaches the top.

    Args:
        bins: {"low", "high", "count", "confidence", "accuracy"}, fractions. Empty bins are left out. Bins with fewer
            than `FEW` faces also have the class ``few``, because so few faces say little about accuracy.
    """
    bars, filled = {}, [one for one in bins if one["count"]]
    for one in filled:
        accuracy, confidence, few = one["accuracy"], one["confidence"], " few" if one["count"] < FEW else ""
        ends = [("right", 0.0, min(accuracy, confidence))]
        ends.append(("over" if confidence > accuracy else "under", ends[0][2], max(accuracy, confidence)))
        for kind, low, high in ends:
            bars[kind + few] = bars.get(kind + few, "") + _bar(one, 100 - 100 * low, 100 - 100 * high)
    paths = "".join(f'<path class="fill {kind}" d="{path}"/>' for kind, path in bars.items())
    grid, ideal = f'<path class="axis" d="{_GRID}"/>', '<path class="ideal" d="M0 100L100 0"/>'
    most = max((one["count"] for one in filled), default=1)
    counted = "".join(_bar(one, 20, 20 - max(0.6, 20 * one["count"] / most)) for one in filled)
    strip = f'<path class="fill count" d="{counted}"/><path class="axis" d="M0 20H100"/>'
    return svg(100, "square", title, grid + paths + ideal), svg(20, "strip", f"faces by confidence, {title}", strip)


def _bar(one: Mapping[str, Any], low: float, high: float) -> str:
    left, width = 100 * one["low"] + 0.4, 100 * (one["high"] - one["low"]) - 0.8
    return f"M{left:.2f} {low:.2f}V{high:.2f}h{width:.2f}V{low:.2f}z"


def scatter(x: Sequence[float], y: Sequence[float], kinds: Sequence[str], title: str) -> Markup:
    """Draw points of several kinds on a square.

    Args:
        x, y: within 0..1, x to the right, y upward.
        kinds: the class of each point's path, such as ``c3 src``; kinds with ``src`` are drawn below the others.
    """
    paths: dict[str, list[str]] = {}
    for across, up, kind in zip(x, y, kinds, strict=True):
        paths.setdefault(kind, []).append(f"M{2 + 96 * across:.1f} {98 - 96 * up:.1f}h0")
    order = sorted(paths, key=lambda kind: "src" not in kind.split())
    parts = "".join(f'<path class="point {kind}" d="{"".join(paths[kind])}"/>' for kind in order)
    return svg(100, "square map", title, parts)
