"""YAML as data: the only reader of specs, of values on the command line, and of the specs that runs have saved.

It builds plain values only (`yaml.SafeLoader`), and its memory and time are bounded. Every problem becomes one line
that says what is wrong and where.
"""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import yaml

from fercli.console import brief
from fercli.errors import SpecError

#: Bounds of a text: its bytes, the nesting depth of lists and mappings, and its characters after every alias
#: (``*name``) is replaced by what it refers to. The packaged specs have at most 6 kB and a depth of 5.
MAX_BYTES = 1 << 18
MAX_DEPTH = 32
MAX_EXPANDED = 4 * MAX_BYTES

_TOO_DEEP = f"lists and mappings are nested more than {MAX_DEPTH} deep"
_TOO_LARGE = "a number of more than 64 bits"
_KINDS = {"int": "an integer", "float": "a number", "bool": "true or false", "timestamp": "a date"}
#: Types that a value may have. ``!!binary`` and ``!!set`` would give others.
_PLAIN = (type(None), bool, int, float, str, list, dict, datetime.date)


class NotYAML(Exception):
    """A text is not YAML, or not YAML that is accepted here. The message is one line that says why.

    Attributes:
        line: line of the problem, from 1; None if unknown.
    """

    def __init__(self, why: str, line: int | None = None):
        super().__init__(brief(" ".join(why.split()), 200))
        self.line = line


class _Loader(yaml.SafeLoader):
    def __init__(self, text: bytes | str):
        super().__init__(text)
        self._above = 0
        self._sizes: dict[int, tuple[int, int]] = {}  # (characters, depth) of each complete node, by its id

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()
        if self._above > MAX_DEPTH:
            raise _refusal(_TOO_DEEP, event)
        self._above += 1
        node = super().compose_node(parent, index)
        self._above -= 1
        if not isinstance(event, yaml.AliasEvent):
            self._sizes[id(node)] = self._size(node)
        elif id(node) not in self._sizes:
            raise _refusal(f"*{event.anchor} refers to a value that contains it", event)
        return node

    def _size(self, node: yaml.Node) -> tuple[int, int]:
        if isinstance(node, yaml.ScalarNode):
            return 1 + len(node.value), 0
        pairs = isinstance(node, yaml.MappingNode)
        below = [self._sizes[id(one)] for item in node.value for one in (item if pairs else (item,))]
        size, depth = 1 + sum(size for size, _ in below), 1 + max((depth for _, depth in below), default=0)
        if size > MAX_EXPANDED:
            raise _refusal(f"more than {MAX_EXPANDED:,} characters after its aliases (*name) are expanded", node)
        if depth > MAX_DEPTH:
            raise _refusal(_TOO_DEEP, node)
        return size, depth

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            value = super().construct_object(node, deep)
        except yaml.YAMLError:
            raise
        except Exception:  # ValueError for 2024-99-99 and !!int abc, KeyError for !!bool abc, AttributeError, ...
            raise _refusal(_why(node), node) from None
        if not isinstance(value, _PLAIN):
            kind = node.tag.replace("tag:yaml.org,2002:", "!!")
            raise _refusal(f"a value of type {brief(kind)}, which no key accepts", node)
        if isinstance(value, int) and abs(value) >= 1 << 64:
            raise _refusal(_TOO_LARGE, node)
        if isinstance(value, str) and any(sign == "\0" or "\ud800" <= sign <= "\udfff" for sign in value):
            raise _refusal("a text with a zero byte (\\0) or half of a surrogate pair in it", node)
        return value


def _refusal(why: str, at: yaml.Node | yaml.Event) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=why, problem_mark=at.start_mark)


def _why(node: yaml.Node) -> str:
    kind = node.tag.replace("tag:yaml.org,2002:", "")
    text = brief(node.value) if isinstance(node.value, str) else "this"
    if kind == "int" and len(node.value) > 20:
        return _TOO_LARGE
    return f"{text or 'nothing'} is not {_KINDS.get(kind, f'a value of type {kind}')}; put words in quotes"


def read_yaml(text: bytes | str) -> Any:
    """Return the content of a YAML text: None, a boolean, number, text or date, or lists and mappings of these.

    Args:
        text: one document; bytes are UTF-8.

    Raises:
        NotYAML: it is not YAML, exceeds the bounds, or has an invalid value.
    """
    if len(text) > MAX_BYTES:
        raise NotYAML(f"larger than {MAX_BYTES >> 10} KiB, the limit for a spec")
    if isinstance(text, str) and any("\udc80" <= sign <= "\udcff" for sign in text):
        raise NotYAML("not in the terminal's encoding; if it is UTF-8, set PYTHONUTF8=1")
    try:
        return _Loader(text if isinstance(text, str) else text.decode("utf-8-sig")).get_single_data()
    except UnicodeDecodeError:
        raise NotYAML("not UTF-8; save it as UTF-8") from None
    except yaml.MarkedYAMLError as problem:
        mark = problem.problem_mark or problem.context_mark
        why = ", ".join(part for part in (problem.context, problem.problem) if part)
        raise NotYAML(why, mark.line + 1 if mark else None) from None
    except yaml.YAMLError as problem:  # control characters
        raise NotYAML(str(problem)) from None
    except (ValueError, OverflowError):
        raise NotYAML("\\U is followed by a number that is not a character code") from None


def read_yaml_file(path: Path) -> Any:
    """Return the content of a YAML file; see `read_yaml`.

    Raises:
        SpecError: it is not YAML or cannot be read; one line with the path and, if known, the line number.
    """
    try:
        with path.open("rb") as file:
            return read_yaml(file.read(MAX_BYTES + 1))
    except NotYAML as problem:
        where = "" if problem.line is None else f"line {problem.line}: "
        raise SpecError(f"{path} is not YAML that fercli reads: {where}{problem}") from None
    except (OSError, ValueError) as problem:
        raise SpecError(f"{path} cannot be read: {getattr(problem, 'strerror', None) or problem}") from None
