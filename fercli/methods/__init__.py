"""The adaptation methods: one module each, and one line in `fercli.spec.registry`, which lists them without torch.

A method supplies losses and extra modules, but no training loop. See `fercli.methods.base` for the contract. Your own
methods are named ``module:Class`` in the spec.

- `base`: the contract, `Method`, its inputs and outputs;
- `losses`, `adversarial`, `alignment`: losses that methods share;
- `thresholds`: which pseudo labels count, and how much;
- `joint`: passes source and target through the network together;
- `graph`: the graph networks of AGRA;
- `agra_released`: released AGRA checkpoints;
- `pseudo_bank`: self-training heads, and the bank of their class-aware pseudo labels;
- `source_free`: code that methods without a source share;
- `sharpness`: perturbs the weights to where a loss is higher;
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
    """Return the class of a registered method, or of an external one (``module:Class``).

    Raises:
        SpecError: there is no such module or class, or it is not a `fercli.methods.base.Method`.
    """
    if name in METHODS:
        module, _, attribute = METHODS[name].partition(":")
        return getattr(importlib.import_module(module), attribute)
    from fercli.methods.base import Method

    found = import_from(name, "adapt.method")
    if not (isinstance(found, type) and issubclass(found, Method)):
        raise SpecError(f"adapt.method: {name} is not a method; derive it from fercli.methods.base.Method")
    return found


def departures_of(spec: Spec) -> list[str] | None:
    """List where a spec with ``faithful: published`` departs from the released code; None for any other spec."""
    if spec.faithful != "published":
        return None
    return list(departures(spec.model_dump(mode="json"), method_class(spec.adapt.method).published_options))


def method_in_file(name: str, path: Path) -> type[Method]:
    """Return the class of the method that a checkpoint or model file names.

    A file is data: external code runs only if the user names it too (`fercli.spec.plugins.trust`).

    Raises:
        FercliError: it is an external method that the user has not named.
        SpecError: as in `method_class`.
    """
    if name not in METHODS and not is_trusted(name):
        raise FercliError(
            f"{path} was adapted by {name}, which is code from outside fercli; a file alone cannot make it run",
            f"if you trust that code, give --method {name}",
        )
    return method_class(name)
