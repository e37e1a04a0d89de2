"""What a finished training stage says of itself."""

from __future__ import annotations

from typing import Any

from fercli.durations import duration


def told(outcome: dict[str, Any]) -> str:
    """Name the best checkpoint, its epoch and score, and the time that this call trained, if it did."""
    took = duration(outcome["seconds"]) if outcome["trained_steps"] else "already trained"
    return f"{outcome['folder']}/best.ckpt, epoch {outcome['epoch']}, {outcome['rule']} {outcome['score']:.4f}, {took}"
