"""Docstrings used as the commands' help. ``python -OO`` drops them all."""

from __future__ import annotations

import ast
import inspect
import sys
import textwrap
from typing import Any


def docstring(of: Any) -> str:
    """Return the docstring of a class or function without its indentation; "" if it has none.

    If Python has dropped it (``-OO``), it is read from the source; the result is "" only if the source is missing too.
    """
    if of.__doc__ or sys.flags.optimize < 2:
        return inspect.cleandoc(of.__doc__ or "")
    try:
        return ast.get_docstring(ast.parse(textwrap.dedent(inspect.getsource(of))).body[0]) or ""
    except (OSError, TypeError, SyntaxError):
        return ""
