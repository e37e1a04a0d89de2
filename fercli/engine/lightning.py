"""What is used of Lightning Fabric. Imported where training or scoring begins, for it takes a second to load.

Answering images (`fercli.predict.recognizer`) does without.
"""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from lightning_fabric import Fabric
from lightning_fabric.plugins import environments
from lightning_fabric.plugins.precision import MixedPrecision, Precision
from lightning_fabric.strategies import DDPStrategy

__all__ = ["DDPStrategy", "Fabric", "environments", "precision_plugin"]

logging.getLogger("lightning_fabric").setLevel(logging.ERROR)


class _InsideTheNetwork(MixedPrecision):
    """Fabric's gradient scaling for float16, without its casts: the network has its own, and landmarks stay exact."""

    def forward_context(self) -> AbstractContextManager:
        return nullcontext()

    def convert_input(self, data: Any) -> Any:
        return data

    def convert_output(self, data: Any) -> Any:
        return data


def precision_plugin(precision: str, device: str) -> Precision:
    """What `Fabric` is told of a resolved precision: only float16 needs something of it, the scaling of gradients."""
    return _InsideTheNetwork(precision, device) if precision == "16-mixed" else Precision()
