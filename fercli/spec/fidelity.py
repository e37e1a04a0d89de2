"""``faithful``: the settings of the released AGLRLS code that differ from fercli's defaults.

Source: github.com/yao-papercodes/AGLRLS, commit 85b875d, run side by side with this code. docs/faithful.md explains
each. The released values of a method's own options are in the method (`fercli.methods.base.Method.published_options`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

#: Key path -> its value under ``faithful: published`` if the spec does not set it.
PUBLISHED: dict[str, Any] = {
    "prepare.align": "box",
    "data.augment.crop": "released",
    "data.augment.randaugment": "released",
    "data.augment.shared_crop": True,
    "data.augment.swap_landmarks": False,
    "data.augment.move_landmarks": False,
    "data.validation": 0,
    "model.first_weights": "released",
    "train_source.late_rates": True,
    "train_source.select": "last",
    "adapt.carry_momentum": True,
}


def with_published(tree: Mapping[str, Any]) -> dict[str, Any]:
    """A spec's nested mapping with the missing keys of `PUBLISHED` added. A section that is not a mapping is kept."""
    filled = dict(tree)
    for path, value in PUBLISHED.items():
        _fill(filled, path.split("."), value)
    return filled


def _fill(tree: dict[str, Any], path: list[str], value: Any) -> None:
    key, *rest = path
    if not rest:
        tree.setdefault(key, value)
    elif isinstance(below := tree.get(key, {}), Mapping):
        tree[key] = dict(below)
        _fill(tree[key], rest, value)


def departures(resolved: Mapping[str, Any], options: Mapping[str, Any]) -> Iterator[str]:
    """Where a resolved spec differs from the released code, as ``data.validation 0.1 (published: 0)``.

    Args:
        resolved: the spec's nested mapping, with every key.
        options: the published options of its method, by their names in ``adapt.options``.
    """
    for path, value in {**PUBLISHED, **{f"adapt.options.{key}": value for key, value in options.items()}}.items():
        found: Any = resolved
        for key in path.split("."):
            found = found.get(key, value)  # a method's options that are not named have their defaults
        if found != value:
            yield f"{path} {_text(found)} (published: {_text(value)})"


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
