"""The docstrings that are the commands' help. ``python -OO`` drops them all."""

from __future__ import annotations

import ast
import inspect
import sys
import textwrap
from typing import Any


def docstring(of: Any) -> str:
    """The docstring of a class or function itself, without its indentation; "" where it has none.

    Where Python has dropped it (``-OO``) it is read from the source, and is "" only where there is no source either.
    """
    if of.__doc__ or sys.flags.optimize < 2:
        return inspect.cleandoc(of.__doc__ or "")
    try:
        return ast.get_docstring(ast.parse(textwrap.dedent(inspect.getsource(of))).body[0]) or ""
    except (OSError, TypeError, SyntaxError):
        return ""
