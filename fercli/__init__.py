"""fercli: cross-domain facial expression recognition, from photographs to an adapted model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fercli.recognizer import Recognizer

__version__ = "0.2.0"
__all__ = ["Recognizer", "__version__"]


def __getattr__(name: str) -> Any:
    # Loaded when it is asked for: it needs torch, and `import fercli` must stay light.
    if name == "Recognizer":
        from fercli.recognizer import Recognizer

        return Recognizer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
