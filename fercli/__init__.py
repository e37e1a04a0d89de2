"""fercli: cross-domain facial expression recognition, from images to an adapted model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fercli.version import __version__

if TYPE_CHECKING:
    from fercli.predict.recognizer import Recognizer

__all__ = ["Recognizer", "__version__"]


def __getattr__(name: str) -> Any:
    # Loaded on first use: it needs torch, and `import fercli` must stay light.
    if name == "Recognizer":
        from fercli.predict.recognizer import Recognizer

        return Recognizer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
