"""The parts of Lightning Fabric that are used. Imported only for training or scoring, as loading it takes a second.

Prediction on images (`fercli.predict.recognizer`) works without it.
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
    """Fabric's gradient scaling for float16, without its casts: the network casts itself, and landmarks stay exact."""

    def forward_context(self) -> AbstractContextManager:
        return nullcontext()

    def convert_input(self, data: Any) -> Any:
        return data

    def convert_output(self, data: Any) -> Any:
        return data


def precision_plugin(precision: str, device: str) -> Precision:
    """`Fabric`'s plugin for a resolved precision: only float16 needs one, for the scaling of gradients."""
    return _InsideTheNetwork(precision, device) if precision == "16-mixed" else Precision()
