"""fercli train-source"""

from __future__ import annotations

from typing import Any

import click

from fercli import console
from fercli.cli.options import read_spec, restart_option, source_option, spec_options
from fercli.durations import duration


@click.command("train-source")
@spec_options
@source_option
@restart_option
def command(spec_file, overrides, quiet, as_json, sources, restart):
    """Train the global-local network on the labelled source.

    If it is stopped, run the same command again to resume from the last checkpoint.

    \b
    Examples:
      fercli train-source
      fercli train-source --source raf-db --set model.backbone=ir18
    """
    from fercli.engine.stages import train_source

    outcome = train_source(read_spec(spec_file, overrides, quiet, as_json, sources), restart)
    console.say(f"source model: {told(outcome)}")
    console.result({"train_source": outcome})


def told(outcome: dict[str, Any]) -> str:
    """Return a line with the best checkpoint, its epoch and score, and the training time of this call, if any."""
    took = duration(outcome["seconds"]) if outcome["trained_steps"] else "already trained"
    score = "" if outcome["score"] is None else f" {outcome['score']:.4f}"
    chosen = f"epoch {outcome['epoch']}, {outcome['rule']}{score}"
    if "kept" in outcome:
        chosen = f"the starting model is kept because {outcome['kept']}"
    return f"{outcome['folder']}/best.ckpt, {chosen}, {took}"
