"""A run spec as a file to edit: every key with its value and what it means, the rare ones commented out.

The words are those under each key in `fercli.spec.schema` and nowhere else.
Prose begins with ``# ``; a key commented out begins with ``#`` and its name, so that taking the ``#`` away puts it in.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Set
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import yaml
from pydantic.fields import FieldInfo

from fercli.spec import Section, Spec
from fercli.spec.fidelity import PUBLISHED
from fercli.spec.registry import METHODS, RULES
from fercli.spec.schema import Sweep
from fercli.version import __version__

#: Keys that most users set at one time or another; the others stand there commented out, at their defaults.
COMMON = frozenset(
    {
        *(
            "name",
            "paths.data",
            "paths.prepared",
            "paths.runs",
            "faithful",
            "data.source",
            "data.targets",
            "data.augment.flip",
        ),
        *("prepare.align", "prepare.workers", "model.backbone", "model.weights", "engine.device", "engine.seed"),
        *("train_source.batch", "train_source.epochs", "train_source.lr", "evaluate.title"),
        *("adapt.method", "adapt.batch", "adapt.epochs", "adapt.lr", "adapt.select"),
    }
)
#: Values that are checked elsewhere than in the field's type.
CHOICES = {"adapt.method": tuple(METHODS), "adapt.select": tuple(RULES)}
_WIDTH, _COLUMN = 120, 34


def to_template(spec: Spec) -> str:
    """The spec as YAML text that `fercli.spec.load` reads back as the same spec.

    Keys of `COMMON`, those that are not at their defaults and those whose defaults ``faithful`` changes are live, all
    others commented out.
    """
    lines = [
        f"# A run spec of fercli {__version__}. Keys commented out are at their defaults: take the # away to set them.",
        "# For one command alone: --set adapt.epochs=5. What a key may be is checked before anything is done.",
    ]
    live = COMMON | (PUBLISHED.keys() if spec.faithful == "published" else set())
    return "\n".join([*lines, *_lines(spec, "", "", live)]) + "\n"


def plain(text: str) -> str:
    """A key's words on one line, without the marks of reStructuredText."""
    text = re.sub(r" \(`fercli[^)]*\)", "", " ".join(text.split()))  # where to read on is for those who read the code
    return text.replace("``", "").replace("`", "")


def _lines(section: Section, prefix: str, indent: str, common: Set[str]) -> Iterator[str]:
    for name, field in type(section).model_fields.items():
        value, path, words = getattr(section, name), prefix + name, plain(field.description or "")
        default = None if field.is_required() else field.get_default(call_default_factory=True)
        if isinstance(value, Section) and default is not None:
            below = list(_lines(value, path + ".", indent + "  ", common))
            live = any(re.match(r" *\w", line) for line in below)
            if not indent:
                yield ""
            yield from _prose(words, indent)
            yield f"{indent}{'' if live else '#'}{name}:"
            yield from below
        elif isinstance(value, Sweep):
            yield from ["", *_prose(words, indent), f"{name}:", *_lines(value, path + ".", indent + "  ", common)]
        else:
            if not indent:
                yield ""
            live = path in common or field.is_required() or value != default
            yield from _leaf(f"{indent}{'' if live else '#'}{name}: ", value, _meaning(path, field, words))
            if path == "sweep":
                for key, inner in Sweep.model_fields.items():
                    yield from _prose(f"sweep.{key}: {plain(inner.description or '')}", "")


def _leaf(start: str, value: Any, meaning: str) -> Iterator[str]:
    """A key, its value, and the words behind it where they fit, else above it."""
    text = start + flow(value)
    indent = start[: len(start) - len(start.lstrip())]
    behind = f"{text:<{_COLUMN}}  # {meaning}"
    if len(behind) <= _WIDTH:
        yield behind
        return
    yield from _prose(meaning, indent)
    if len(text) > _WIDTH and isinstance(value, dict):  # never one at its default
        block = yaml.safe_dump(_as_data(value), sort_keys=False, width=_WIDTH)
        yield from (start.rstrip(), textwrap.indent(block.rstrip("\n"), indent + "  "))
    else:
        yield text


def _meaning(path: str, field: FieldInfo, words: str) -> str:
    """The key's words, and the values there are unless they have been named."""
    choices = values(path, field.annotation)
    missing = [choice for choice in choices if not re.search(rf"(?<![\w-]){re.escape(choice)}(?![\w-])", words)]
    return words.rstrip(".") + (f"; one of {', '.join(choices)}" if missing else "")


def values(path: str, annotation: Any) -> tuple[str, ...]:
    """Return the values that a key may have, where they can be listed: those of `CHOICES` or of a ``Literal``."""
    if path in CHOICES:
        return CHOICES[path]
    if get_origin(annotation) is Literal:
        return get_args(annotation)
    return next((found for one in get_args(annotation) if (found := values(path, one))), ())


def _prose(text: str, indent: str) -> Iterator[str]:
    start = f"{indent}# "
    yield from textwrap.wrap(text, _WIDTH, initial_indent=start, subsequent_indent=start, break_on_hyphens=False)


def flow(value: Any) -> str:
    """Return a value on one line of YAML."""
    text = yaml.safe_dump(_as_data(value), default_flow_style=True, sort_keys=False, width=float("inf"))
    return text.removesuffix("\n").removesuffix("\n...")


def _as_data(value: Any) -> Any:
    if isinstance(value, Section):
        return {key: _as_data(one) for key, one in value.model_dump(exclude_defaults=True).items()}
    if isinstance(value, dict):
        return {key: _as_data(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_as_data(one) for one in value]
    return str(value) if isinstance(value, Path) else value
