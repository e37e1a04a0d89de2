"""The console: messages, progress, and output for scripts, all in one place.

The command line sets one of three modes: verbose (the default), ``--quiet`` (errors and warnings only) and ``--json``
(one JSON document on stdout at the end). Everything but results goes to stderr, so that stdout can be piped. On a
terminal, progress is a live bar; elsewhere it is a plain line every few seconds.

Three rules apply throughout:

- File names, csv cells and labels are data. Control characters in them are shown as text, never sent (`plain`).
- Characters that the output's encoding lacks are replaced (`fit_streams`): an ASCII terminal loses no result.
- A closed or full stream does not stop the work. Messages are dropped; results that could not be printed are reported
  when the command ends (`unprinted`).
"""

from __future__ import annotations

import codecs
import errno
import io
import json
import math
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import IO, Any

from rich.box import SIMPLE_HEAD
from rich.console import Console, ConsoleOptions, RenderableType
from rich.markup import escape
from rich.measure import Measurement
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from fercli.durations import duration, rate

#: Seconds between two progress lines where there is no terminal for a progress bar.
PLAIN_INTERVAL_S = 10.0

#: Columns assumed where the output is not a terminal: a pipe has no width, and a narrow default would fold tables.
PLAIN_WIDTH = 120

#: Replacements for characters that the output's encoding lacks; all others are shown as Python escape sequences.
_STAND_INS = {
    **{"±": "+/-", "–": "-", "—": "-", "−": "-", "†": "*", "×": "x", "…": "...", "→": "->", "≥": ">=", "≤": "<="},
    **{"‘": "'", "’": "'", "“": '"', "”": '"', "°": " deg"},
}
#: Name of the codec error handler that inserts them.
_ERRORS = "fercli.stand-in"


def _stand_in(problem: UnicodeError) -> tuple[str, int]:
    if not isinstance(problem, UnicodeEncodeError):
        raise problem
    signs = problem.object[problem.start : problem.end]
    return "".join(_STAND_INS.get(sign) or by_number(sign) for sign in signs), problem.end


def by_number(sign: str) -> str:
    """Return a character's escape sequence, such as ``\\u2603``.

    A byte of a file name that is not valid UTF-8, which Python keeps as a surrogate, becomes ``\\xe9``.
    """
    if "\udc80" <= sign <= "\udcff":
        return f"\\x{ord(sign) - 0xDC00:02x}"
    return sign.encode("unicode_escape").decode()


codecs.register_error(_ERRORS, _stand_in)

#: Characters that a terminal interprets instead of showing: C0, DEL and C1, marks that are invisible or change the
#: writing direction, tags, and line separators. Line feeds, which fercli's own messages contain, are kept. So are the
#: two joiners (U+200C, U+200D) that Persian, Hindi and emoji need. Lone surrogates are left to the stream
#: (`fit_streams`).
_UNSHOWN = re.compile(
    "[\x00-\x09\x0b-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\U000e0000-\U000e007f]"
)


def plain(text: str) -> str:
    """Return the text with each control character replaced by its escape sequence, such as ``\\x1b`` for ESC."""
    return _UNSHOWN.sub(lambda sign: by_number(sign[0]), text)


def brief(text: str, most: int = 80) -> str:
    """Return a text of unknown origin in a form that a message can quote.

    It is `plain`, on one line, and has at most `most` characters.
    """
    text = plain(text[: most + 1]).replace("\n", "\\n")
    return text if len(text) <= most else f"{text[: most - 3]}..."


#: The errors that kept results from stdout, oldest first.
_lost: list[OSError] = []


class _Stdout(io.FileIO):
    """File descriptor 1; it records its own write errors, since a full-disk error does not name the stream."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as failure:
            _lost.append(failure)
            raise


def fit_streams() -> None:
    """Let stdout and stderr accept any text, whatever their encoding (see `_STAND_INS`). Bytes pass unchanged.

    An error handler that the user set through PYTHONIOENCODING, such as ``ascii:ignore``, is kept.
    """
    out = sys.stdout
    below = out.buffer if type(out) is io.TextIOWrapper else None
    if type(getattr(below, "raw", below)) is io.FileIO:  # python -u has no buffer in between
        out.flush()
        raw = _Stdout(out.fileno(), "w", closefd=False)
        layer = raw if type(below) is io.FileIO else io.BufferedWriter(raw)
        how = {"line_buffering": out.line_buffering, "write_through": out.write_through}
        sys.stdout = io.TextIOWrapper(layer, out.encoding, out.errors, **how)
    for stream in (sys.stdout, sys.stderr):
        if getattr(stream, "errors", None) in ("strict", "surrogateescape", "backslashreplace"):
            reconfigure = getattr(stream, "reconfigure", None)
            if reconfigure is not None:
                reconfigure(errors=_ERRORS)


def _fitted(text: str) -> str:
    """Return the text as stdout will show it, so that a table's columns are as wide as their contents."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    return plain(text).encode(encoding, _ERRORS).decode(encoding)


class _Console(Console):
    """Rich's console, except that it sends no control characters but rich's own (colours, the bar's cursor)."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=plain(segment.text))

    def on_broken_pipe(self) -> None:
        """Leave the decision to the caller: rich would end the process in the middle of its work."""
        raise


class _Remarks:
    """The current stderr, for messages that may be lost: a closed or full stream or a missing reader is no error."""

    def write(self, text: str) -> None:
        self._try(lambda: sys.stderr.write(text))

    def flush(self) -> None:
        self._try(lambda: sys.stderr.flush())

    def __getattr__(self, name: str) -> Any:
        return getattr(sys.stderr, name)

    @staticmethod
    def _try(work: Callable[[], Any]) -> None:
        if sys.stderr is not None:
            try:
                work()
            except OSError:
                forget(sys.stderr)


def forget(stream: IO[Any] | None) -> None:
    """Redirect a stream to the null device, so that Python's flush at exit does not fail again.

    Buffered and later output of the stream is discarded.
    """
    try:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
    except (OSError, ValueError, AttributeError):
        pass


_err = _Console(file=_Remarks(), highlight=False, emoji=False, soft_wrap=True)
_mode = {"quiet": False, "json": False, "no-warnings": False}
#: Messages printed with `once`.
_said: set[str] = set()


def configure(quiet: bool = False, as_json: bool = False) -> None:
    """Set the mode for this process; messages printed with `once` may be printed again from here on."""
    _said.clear()
    _mode.update({"quiet": quiet, "json": as_json, "no-warnings": False})


def mute() -> None:
    """Print nothing but errors from this process: when several train together, only one prints messages."""
    _mode.update({"quiet": True, "json": False, "no-warnings": True})


def silent() -> bool:
    """Return whether progress and messages are switched off."""
    return _mode["quiet"] or _mode["json"]


@contextmanager
def hushed(warnings: bool = False) -> Iterator[None]:
    """Suppress messages and progress within the block, and warnings too with `warnings`; never errors."""
    before = dict(_mode)
    _mode.update({"quiet": True, "no-warnings": _mode["no-warnings"] or warnings})
    try:
        yield
    finally:
        _mode.update(before)


def say(text: str, style: str | None = None, once: bool = False) -> None:
    """Print a message on stderr, unless silent. Markup in it is not interpreted: a folder may have any name.

    Args:
        once: skip the message if the same one was printed with `once` since `configure`.
    """
    if not silent() and not (once and _is_said(text)):
        _err.print(plain(text), style=style, markup=False)


def warn(text: str, once: bool = False) -> None:
    """Print a warning on stderr: the user should know, but the work continues.

    It is also printed where messages are switched off, except in JSON mode. `once` is as in `say`.
    """
    if not (_mode["json"] or _mode["no-warnings"]) and not (once and _is_said(text)):
        _err.print(f"[bold yellow]warning:[/] {escape(plain(text))}")


def _is_said(text: str) -> bool:
    """Return whether a text was printed before, and record it as printed."""
    before = text in _said
    _said.add(text)
    return before


def error(text: str) -> None:
    """Print the one-line message of a failed command."""
    _err.print(f"[bold red]error:[/] {escape(plain(text))}")


def table(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], caption: str | None = None, left: int = 1
) -> None:
    """Print a table of results on stdout, unless silent. The first `left` columns are left-aligned, the rest right.

    If the first cell of a row begins with ``*``, the row is highlighted (the star itself is not printed). A table
    that is wider than the terminal goes without frames, so that its words have more room.
    """
    if silent():
        return
    title, caption = (_fitted(text or "") or None for text in (title, caption))
    drawn = Table(title=title, caption=caption, title_justify="left", caption_justify="left")
    for i, name in enumerate(columns):
        least = 0 if i < left else max(map(len, name.split()), default=0)  # no word of a number's heading is broken
        drawn.add_column(_fitted(name), justify="left" if i < left else "right", overflow="fold", min_width=least)
    for row in rows:
        cells = [escape(_fitted(str(cell))) for cell in row]
        strong = cells[0].startswith("*")
        if strong:
            cells[0] = cells[0][1:]
        drawn.add_row(*cells, style="bold" if strong else None)
    if _natural(drawn) > width():
        drawn.box, drawn.padding, drawn.show_edge = SIMPLE_HEAD, 0, False
    show(drawn)


def _natural(drawn: Table) -> int:
    """Return the columns that a table takes where nothing is wrapped."""
    wide = Console(width=10_000, file=io.StringIO())
    return Measurement.get(wide, wide.options, drawn).maximum


def show(*parts: RenderableType, even_silent: bool = False) -> None:
    """Print results on stdout, unless silent. Lines are not wrapped, so that they can be copied; tables fit `width`."""
    if silent() and not even_silent:
        return
    out = _Console(highlight=False, emoji=False, width=width())
    for part in parts:
        _on_stdout(lambda part=part: out.print(part, soft_wrap=isinstance(part, str | Text), crop=False))


def width() -> int:
    """Return the columns of stdout: the terminal's, or the value of COLUMNS, or `PLAIN_WIDTH`."""
    wide = sys.stdout is not None and sys.stdout.isatty()
    return Console().width if wide or "COLUMNS" in os.environ else PLAIN_WIDTH


def write(text: str) -> None:
    """Print a text for other programs on stdout unchanged, silent or not."""
    _on_stdout(lambda: (sys.stdout.write(text), sys.stdout.flush()))


def result(document: dict[str, Any]) -> None:
    """Print the command's result as JSON on stdout, in ``--json`` mode only. NaN and infinity become null."""
    if _mode["json"]:
        write(json.dumps(finite(document), indent=2, default=str) + "\n")


def _on_stdout(work: Callable[[], Any]) -> None:
    try:
        if sys.stdout is None:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        work()
    except OSError as failure:
        _lost.append(failure)
        if sys.stdout is not None:
            forget(sys.stdout)


def unprinted() -> OSError | None:
    """Return the error that kept results from stdout since the last call, and prevent further write errors.

    It is called once the command has done its work and written its files.
    """
    if sys.stdout is not None:
        _on_stdout(sys.stdout.flush)
    failure = _lost[0] if _lost else None
    _lost.clear()
    return failure


def finite(value: Any) -> Any:
    """Return the same nested document with None for NaN and infinity, which JSON lacks."""
    if isinstance(value, dict):
        return {key: finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


class _RateColumn(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if not speed else rate(speed, 1), style="cyan")


class Bar:
    """Progress of one long task; get one from `progress`."""

    def __init__(self, description: str, total: int, done: int, live: Progress | None, plain: bool):
        self._description, self._total, self._done = description, total, done
        self._started_at = self._printed_at = time.monotonic()
        self._start_done = done
        self._live, self._plain = live, plain
        self._task = live.add_task(description, total=total, completed=done, note="") if live else None

    def advance(self, amount: int = 1, note: str | None = None) -> None:
        """Count `amount` more as done; `note` (losses, counts) is shown after the bar."""
        self._done += amount
        note = note and plain(note)
        if self._live is not None:
            fields = {} if note is None else {"note": escape(note)}
            self._live.update(self._task, advance=amount, **fields)
        elif self._plain:
            now = time.monotonic()
            if now - self._printed_at >= PLAIN_INTERVAL_S:
                self._printed_at = now
                self._print_plain(now, note)

    def _print_plain(self, now: float, note: str | None) -> None:
        parts = [f"{self._description}: {self._done}/{self._total}"]
        done, spent = self._done - self._start_done, now - self._started_at
        if done:  # before that, the time per item is unknown
            parts.append(rate(done, spent))
        if done and self._done < self._total:
            parts.append(f"{duration((self._total - self._done) * spent / done)} left")
        _err.print(", ".join([*parts, note] if note else parts), markup=False)


@contextmanager
def progress(description: str, total: int, done: int = 0) -> Iterator[Bar]:
    """Show progress over `total` items, `done` of which are already finished (a resumed run).

    Yields a `Bar`: a live bar with rate and remaining time on a terminal, a plain line every `PLAIN_INTERVAL_S` seconds
    elsewhere, nothing when silent.
    """
    description = plain(description)
    if silent() or not _err.is_terminal:
        yield Bar(description, total, done, live=None, plain=not silent())
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        _RateColumn(),
        TimeRemainingColumn(compact=True),
        TextColumn("[dim]{task.fields[note]}"),
    )
    with Progress(*columns, console=_err) as live:
        yield Bar(description, total, done, live=live, plain=False)
