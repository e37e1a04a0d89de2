"""The report's small plots, as inline SVG: they take the page's colours, so they are right in light, dark and print.

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


def svg(height: int, kind: str, title: str, parts: str) -> Markup:
    """Return a plot 100 wide of class `kind`; `title` is escaped, `parts` (paths made here) are not."""
    opened = Markup(
        '<svg viewBox="0 0 100 {height}" preserveAspectRatio="none" role="img" class="{kind}"><title>{title}</title>'
    )
    return opened.format(height=height, kind=kind, title=title) + Markup(parts + "</svg>")


def lanes(before: Mapping[str, Any] | None, after: Mapping[str, Any] | None, title: str) -> Markup:
    """Draw two accuracies with their intervals on a scale from 0 to 100%, the one before above the one after.

    Args:
        before, after: {"accuracy": fraction or None, "interval": (low, high) fractions or None}; None leaves the lane
            empty.
        title: what a screen reader says.
    """
    parts = ['<path class="axis" d="M0 0V24M25 0V24M50 0V24M75 0V24M100 0V24"/>']
    for lane, y, kind in ((before, 7, "before"), (after, 17, "after")):
        if lane is None or lane["accuracy"] is None:
            continue
        if lane["interval"] is not None:
            low, high = lane["interval"]
            parts.append(f'<path class="whisker {kind}" d="M{100 * low:.2f} {y}H{100 * high:.2f}"/>')
        parts.append(f'<path class="dot {kind}" d="M{100 * lane["accuracy"]:.2f} {y}h0"/>')
    return svg(24, "lanes", title, "".join(parts))


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


def spread(
    values: Sequence[float], mean: float, sd: float | None, ticks: Sequence[float], reference: float | None, title: str
) -> Markup:
    """Draw scores of several seeds as faint dots, their mean as a dot and one deviation to each side as a bar.

    Args:
        values: fractions, one a seed.
        mean, sd: theirs; without a deviation there is no bar.
        ticks: from `axis`; bars are cut at its ends.
        reference: where to draw a dashed line, if anywhere.
        title: what a screen reader says.
    """

    def x(value: float) -> str:
        return f"{2 + 96 * min(1.0, max(0.0, (value - ticks[0]) / (ticks[-1] - ticks[0]))):.2f}"

    parts = ['<path class="axis" d="' + "".join(f"M{x(tick)} 0V20" for tick in ticks) + '"/>']
    if reference is not None:
        parts.append(f'<path class="mark before" d="M{x(reference)} 0V20"/>')
    if sd is not None:
        parts.append(f'<path class="whisker after" d="M{x(mean - sd)} 10H{x(mean + sd)}"/>')
    parts.extend(f'<path class="seed after" d="M{x(value)} 10h0"/>' for value in values)
    parts.append(f'<path class="dot after" d="M{x(mean)} 10h0"/>')
    return svg(20, "spread", title, "".join(parts))


def curve(name: str, points: Sequence[Point], chosen: int, from_zero: bool) -> dict[str, Any] | None:
    """Draw one quantity over the epochs.

    Args:
        name: what it is.
        points: (epoch, value) in order of epochs; an undefined value leaves a gap.
        chosen: the epoch to mark, where it is among them.
        from_zero: let the vertical axis begin at 0 (losses), where no value is negative.

    Returns:
        {"name", "svg", "top", "bottom" (ends of the vertical axis), "first", "last" (epochs), "chosen", "at_chosen",
        "final"}; None where no value is defined.
    """
    values = [value for _, value in points if value is not None]
    if not values:
        return None
    bottom, top = min(values), max(values)
    if from_zero and bottom >= 0:
        bottom = 0.0
    if top - bottom < 1e-12:
        bottom, top = bottom - 0.5 * (abs(bottom) or 1), top + 0.5 * (abs(top) or 1)
    first, last = points[0][0], points[-1][0]

    def x(epoch: int) -> float:
        return 2 + 96 * (epoch - first) / (last - first) if last > first else 50.0

    def y(value: float) -> float:
        return 4 + 52 * (top - value) / (top - bottom)

    parts = ['<path class="axis" d="M0 4H100M0 56H100"/>']
    if first <= chosen <= last:
        parts.append(f'<path class="mark" d="M{x(chosen):.2f} 0V60"/>')
    parts.extend(f'<path class="line" d="{path}"/>' for path in unbroken(points, x, y))
    at_chosen = next((value for epoch, value in points if epoch == chosen), None)
    if at_chosen is not None:
        parts.append(f'<path class="dot after" d="M{x(chosen):.2f} {y(at_chosen):.2f}h0"/>')
    title = f"{name}, epochs {first} to {last}"
    return {
        "name": name,
        "svg": svg(60, "curve", title, "".join(parts)),
        "top": top,
        "bottom": bottom,
        "first": first,
        "last": last,
        "chosen": chosen,
        "at_chosen": at_chosen,
        "final": values[-1],
    }


def unbroken(points: Sequence[Point], x: Any, y: Any) -> list[str]:
    """Return an SVG path for each unbroken run of defined values."""
    runs: list[list[str]] = [[]]
    for epoch, value in points:
        if value is None:
            runs.append([])
        else:
            runs[-1].append(f"{x(epoch):.2f} {y(value):.2f}")
    return ["M" + ("L".join(run) if len(run) > 1 else run[0] + "h0") for run in runs if run]


def training_curves(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Turn the results' ``history`` into panels, a stage at a time.

    Returns:
        A list of {"stage", "epochs" (how many), "chosen" (epoch), "rule" (that chose it), "losses": [panel], "scores":
        [panel]}; panels as `curve` gives them, and "decides" (whether this score chose the epoch).
    """
    used = {entry["folder"]: entry for entry in results["entries"]}
    stages = []
    for stage, rows in results["history"].items():
        if not rows:
            continue
        rule, chosen = used[stage]["selection"]["rule"], used[stage]["epoch"]
        panels: dict[str, list[dict[str, Any]]] = {"losses": [], "scores": []}
        for kind, found in panels.items():
            for name in dict.fromkeys(key for row in rows for key in row[kind]):
                if (kind, name) == ("scores", "last"):  # the number of the epoch
                    continue
                points = [(row["epoch"], row[kind].get(name)) for row in rows]
                panel = curve(name, points, chosen, from_zero=kind == "losses")
                if panel is not None:
                    found.append({**panel, "decides": kind == "scores" and name == rule})
        stages.append({"stage": stage, "epochs": len(rows), "chosen": chosen, "rule": rule, **panels})
    return stages
