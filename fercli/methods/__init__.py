"""The adaptation methods: one module each, and one line in `fercli.spec.registry`, which names them without torch.

A method supplies losses and extra modules, never a loop of its own. See `fercli.methods.base` for the contract.
Methods of your own are named ``module:Class`` in the spec.

- `base`: the contract, `Method`, its inputs and outputs;
- `losses`, `adversarial`, `alignment`: losses that methods share;
- `thresholds`: which pseudo labels count, and how much;
- `joint`: source and target through the network together;
- `graph`: the graph networks of AGRA;
- `agra_released`: released AGRA checkpoints;
- `pseudo_bank`: heads that teach themselves, and the bank of their class-aware pseudo labels;
- `source_free`: what methods without a source share;
- `sharpness`: the network at weights where a loss is worse;
- `source_only`, `aglrls`, `cglrl`, `dann`, `cdan`, `safn`, `mcd`, `swd`, `mcc`, `bnm`, `daln`, `fixmatch`, `agra`: one
  method each;
- `shot`, `aad`, `nrc`, `aglrls_sf`, `adabn`, `tent`, `sar`: one method each that needs no source.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING

from fercli.errors import FercliError, SpecError
from fercli.spec.fidelity import departures
from fercli.spec.plugins import import_from, is_trusted
from fercli.spec.registry import METHODS

if TYPE_CHECKING:
    from fercli.methods.base import Method
    from fercli.spec import Spec


def method_class(name: str) -> type[Method]:
    """The class of a registered method, or of one from outside (``module:Class``).

    Raises:
        SpecError: there is no such module or class, or it is no `fercli.methods.base.Method`.
    """
    if name in METHODS:
        module, _, attribute = METHODS[name].partition(":")
        return getattr(importlib.import_module(module), attribute)
    from fercli.methods.base import Method

    found = import_from(name, "adapt.method")
    if not (isinstance(found, type) and issubclass(found, Method)):
        raise SpecError(f"adapt.method: {name} is no method: derive it from fercli.methods.base.Method")
    return found


def departures_of(spec: Spec) -> list[str] | None:
    """Where a spec with ``faithful: published`` departs from the released code; None of any other spec."""
    if spec.faithful != "published":
        return None
    return list(departures(spec.model_dump(mode="json"), method_class(spec.adapt.method).published_options))


def method_in_file(name: str, path: Path) -> type[Method]:
    """The class of the method that a checkpoint or model file names.

    A file is data: code from outside runs only where the user names it too (`fercli.spec.plugins.trust`).

    Raises:
        FercliError: it is a method from outside that the user has not named.
        SpecError: as `method_class`.
    """
    if name not in METHODS and not is_trusted(name):
        raise FercliError(
            f"{path} was adapted by {name}, which is code from outside fercli, and a file cannot make it run",
            f"if you trust that code, name it yourself: --method {name}",
        )
    return method_class(name)
