"""What every page shows around its figures: title, date, run spec, environment."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

import yaml

from fercli.durations import duration


def frame(document: Mapping[str, Any]) -> dict[str, Any]:
    """Work out what every page shows, of a run and of a sweep: {"title", "created", "synthetic" (whether any data set
    is one), "spec" (YAML), "environment" (pairs of text)}."""
    created = datetime.fromisoformat(document["created"])
    return {
        "title": document["title"],
        "created": f"{created.day} {created:%B %Y, %H:%M} {created.tzname()}",
        "synthetic": document["synthetic"],
        "spec": yaml.safe_dump(document["spec"], sort_keys=False, allow_unicode=True, width=100),
        "environment": _environment(document["environment"]),
    }


def _environment(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Each value as text; ``time_s`` holds seconds by stage."""
    times = values.get("time_s", {})
    return [
        *((key, str(value)) for key, value in values.items() if key != "time_s"),
        *((f"time: {stage}", duration(seconds)) for stage, seconds in times.items()),
    ]
