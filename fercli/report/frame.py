"""What every page shows around its figures: title, date, run spec, environment."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import yaml

from fercli import durations
from fercli.evaluation.metrics import number


def frame(document: Mapping[str, Any]) -> dict[str, Any]:
    """Work out what every page shows, of a run and of a sweep: {"title", "created", "synthetic" (whether any data set
    is one), "spec" (YAML), "environment" (pairs of text)}. Whatever the document lacks is empty."""
    datasets = (document.get("datasets") or {}).values()
    return {
        "title": document.get("title") or "results",
        "created": _when(document.get("created")),
        "synthetic": bool(document.get("synthetic")) or any(about.get("synthetic") for about in datasets),
        "spec": _as_yaml(document.get("spec")),
        "environment": _environment(document.get("environment") or {}),
    }


def duration(value: Any) -> str:
    """Seconds as text; what is no number stays as it is."""
    seconds = number(value)
    return plain(value) if seconds is None else durations.duration(seconds)


def plain(value: Any) -> str:
    """Text of a value that may be None or a list of names."""
    if value is None:
        return ""
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def _environment(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows = []
    for key, value in values.items():
        if isinstance(value, Mapping):
            seconds = key.endswith("_s")
            rows += [
                (f"{key.removesuffix('_s')}: {name}", duration(one) if seconds else plain(one))
                for name, one in value.items()
            ]
        elif key.endswith("_s"):
            rows.append((key.removesuffix("_s"), duration(value)))
        else:
            rows.append((key, plain(value)))
    return rows


def _as_yaml(spec: Any) -> str:
    if not spec:
        return ""
    return yaml.safe_dump(json.loads(json.dumps(spec, default=str)), sort_keys=False, allow_unicode=True, width=100)


def _when(created: Any) -> str:
    try:
        moment = datetime.fromisoformat(str(created).replace("Z", "+00:00"))
    except ValueError:
        return plain(created)
    zone = moment.tzname() or ""
    return f"{moment.day} {moment:%B %Y, %H:%M} {zone}".strip()
