"""The one console: what fercli says, how it shows progress, and what scripts can read.

Three modes, set once by the command line: talkative (the default), ``--quiet`` (errors and warnings only) and
``--json`` (one JSON document on stdout at the end). Everything but results goes to stderr, so that stdout can be piped.
On a terminal progress is a live bar; elsewhere it is a plain line every few seconds.

Three rules hold for all of it:

- Names of files, cells of a csv and labels are data. Control characters in them are shown, never sent (`plain`).
- Signs that the output's encoding lacks are replaced (`fit_streams`): no result is lost to a terminal of ASCII.
- A stream that is closed or full ends no work. Remarks are dropped; results that could not be printed are reported when
  the command ends (`unprinted`).
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

from rich.console import Console, ConsoleOptions, RenderableType
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from fercli.durations import duration, rate

#: Seconds between two progress lines where there is no terminal to draw a bar on.
PLAIN_INTERVAL_S = 10.0

#: Columns assumed where the output is no terminal: a pipe has no width, and narrow tables would fold.
PLAIN_WIDTH = 120

#: What stands for a sign that the output's encoding lacks; any other is shown by its number, as Python writes it.
_STAND_INS = {
    **{"±": "+/-", "–": "-", "—": "-", "−": "-", "†": "*", "×": "x", "…": "...", "→": "->", "≥": ">=", "≤": "<="},
    **{"‘": "'", "’": "'", "“": '"', "”": '"', "°": " deg"},
}
#: The error handler of that name puts them in.
_ERRORS = "fercli.stand-in"


def _stand_in(problem: UnicodeError) -> tuple[str, int]:
    if not isinstance(problem, UnicodeEncodeError):
        raise problem
    signs = problem.object[problem.start : problem.end]
    return "".join(_STAND_INS.get(sign) or by_number(sign) for sign in signs), problem.end


def by_number(sign: str) -> str:
    """``\\u2603``; of a byte of a file's name that is not UTF-8, which Python keeps as a surrogate, ``\\xe9``."""
    if "\udc80" <= sign <= "\udcff":
        return f"\\x{ord(sign) - 0xDC00:02x}"
    return sign.encode("unicode_escape").decode()


codecs.register_error(_ERRORS, _stand_in)

#: What a terminal obeys instead of showing it: C0, DEL and C1; marks that are invisible or turn the direction of
#: writing, tags and line separators. Line feeds, which our own texts hold, stay. So do the two joiners (U+200C, U+200D)
#: that Persian, Hindi and emoji are written with. Half characters are the stream's (`fit_streams`).
_UNSHOWN = re.compile(
    "[\x00-\x09\x0b-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\U000e0000-\U000e007f]"
)


def plain(text: str) -> str:
    """Return a text that no terminal obeys: each control character is shown by its number, ESC as ``\\x1b``."""
    return _UNSHOWN.sub(lambda sign: by_number(sign[0]), text)


def brief(text: str, most: int = 80) -> str:
    """Return a text of unknown origin as a message can quote it: `plain`, in one line of at most `most` characters."""
    text = plain(text[: most + 1]).replace("\n", "\\n")
    return text if len(text) <= most else f"{text[: most - 3]}..."


#: What kept results from stdout, in the order of time.
_lost: list[OSError] = []


class _Stdout(io.FileIO):
    """File descriptor 1, which remembers that it failed: the error of a full disk does not say whose it is."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as failure:
            _lost.append(failure)
            raise


def fit_streams() -> None:
    """Let stdout and stderr take any text, whatever their encoding: see `_STAND_INS`. Bytes written to them stay.

    What the user chose by PYTHONIOENCODING, such as ``ascii:ignore``, stays too.
    """
    out = sys.stdout
    below = out.buffer if type(out) is io.TextIOWrapper else None
    if type(getattr(below, "raw", below)) is io.FileIO:  # python -u has nothing in between
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
    """The text as stdout will show it, so that a table's columns are as wide as what stands in them."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    return plain(text).encode(encoding, _ERRORS).decode(encoding)


class _Console(Console):
    """Rich's console, but for what is sent: no control character but rich's own (colours, the bar's cursor)."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=plain(segment.text))

    def on_broken_pipe(self) -> None:
        """Let the caller decide: rich would end the process in the middle of its work."""
        raise


class _Remarks:
    """The stderr of the moment, for what may be lost: nothing fails where it is closed or full, or its reader gone."""

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
    """Send to nowhere whatever a stream still holds and gets, so that Python's flush at its end does not fail again."""
    try:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
    except (OSError, ValueError, AttributeError):
        pass


_err = _Console(file=_Remarks(), highlight=False, emoji=False, soft_wrap=True)
_mode = {"quiet": False, "json": False, "no-warnings": False}
#: What was said, and is to be said once.
_said: set[str] = set()


def configure(quiet: bool = False, as_json: bool = False) -> None:
    """Set the mode for this process; what is said once may be said again from here on."""
    _said.clear()
    _mode.update({"quiet": quiet, "json": as_json, "no-warnings": False})


def mute() -> None:
    """Let nothing but errors out of this process: of several that train together one speaks."""
    _mode.update({"quiet": True, "json": False, "no-warnings": True})


def silent() -> bool:
    """Tell whether progress and remarks are switched off."""
    return _mode["quiet"] or _mode["json"]


@contextmanager
def hushed(warnings: bool = False) -> Iterator[None]:
    """Keep remarks and progress of the block's work back, with `warnings` those too; errors never."""
    before = dict(_mode)
    _mode.update({"quiet": True, "no-warnings": _mode["no-warnings"] or warnings})
    try:
        yield
    finally:
        _mode.update(before)


def say(text: str, style: str | None = None, once: bool = False) -> None:
    """Print a remark on stderr, unless silent. What looks like markup in it is not: folders may be called anything.

    Args:
        once: leave it out where the same was said with `once` since `configure`.
    """
    if not silent() and not (once and _is_said(text)):
        _err.print(plain(text), style=style, markup=False)


def warn(text: str, once: bool = False) -> None:
    """Print what the user should know though the work goes on; also where remarks are switched off, but for JSON.

    `once` is as that of `say`.
    """
    if not (_mode["json"] or _mode["no-warnings"]) and not (once and _is_said(text)):
        _err.print(f"[bold yellow]warning:[/] {escape(plain(text))}")


def _is_said(text: str) -> bool:
    """Whether a text was asked for before; it is from now on."""
    before = text in _said
    _said.add(text)
    return before


def error(text: str) -> None:
    """Print the one line a failed command leaves."""
    _err.print(f"[bold red]error:[/] {escape(plain(text))}")


def table(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], caption: str | None = None, left: int = 1
) -> None:
    """Print a table of results on stdout, unless silent. The first `left` columns are left-aligned, the rest right.

    A first cell that begins with ``*`` marks a row to stand out (the star itself is not printed).
    """
    if silent():
        return
    title, caption = (_fitted(text or "") or None for text in (title, caption))
    drawn = Table(title=title, caption=caption, title_justify="left", caption_justify="left")
    for i, name in enumerate(columns):
        drawn.add_column(_fitted(name), justify="left" if i < left else "right", overflow="fold")
    for row in rows:
        cells = [escape(_fitted(str(cell))) for cell in row]
        strong = cells[0].startswith("*")
        if strong:
            cells[0] = cells[0][1:]
        drawn.add_row(*cells, style="bold" if strong else None)
    show(drawn)


def show(*parts: RenderableType, even_silent: bool = False) -> None:
    """Print results on stdout, unless silent: lines in one piece, to be copied whole; the rest as wide as `width`."""
    if silent() and not even_silent:
        return
    out = _Console(highlight=False, emoji=False, width=width())
    for part in parts:
        _on_stdout(lambda part=part: out.print(part, soft_wrap=isinstance(part, str | Text), crop=False))


def width() -> int:
    """Columns of stdout: the terminal's, or what COLUMNS says, or `PLAIN_WIDTH`."""
    wide = sys.stdout is not None and sys.stdout.isatty()
    return Console().width if wide or "COLUMNS" in os.environ else PLAIN_WIDTH


def write(text: str) -> None:
    """Print a text for other programs on stdout as it is, silent or not."""
    _on_stdout(lambda: (sys.stdout.write(text), sys.stdout.flush()))


def result(document: dict[str, Any]) -> None:
    """Print the command's result as JSON on stdout, in ``--json`` mode only. What is not finite becomes null."""
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
    """Return what kept results from stdout since the last call, and let nothing that is still to be written fail again.

    The command has done its work then, and its files are written.
    """
    if sys.stdout is not None:
        _on_stdout(sys.stdout.flush)
    failure = _lost[0] if _lost else None
    _lost.clear()
    return failure


def finite(value: Any) -> Any:
    """The same nested document with null for NaN and infinity, which JSON does not have."""
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
    """Progress of one long piece of work; get one from `progress`."""

    def __init__(self, description: str, total: int, done: int, live: Progress | None, plain: bool):
        self._description, self._total, self._done = description, total, done
        self._started_at = self._printed_at = time.monotonic()
        self._start_done = done
        self._live, self._plain = live, plain
        self._task = live.add_task(description, total=total, completed=done, note="") if live else None

    def advance(self, amount: int = 1, note: str | None = None) -> None:
        """Count `amount` more as done; `note` (losses, counts) is shown behind the bar."""
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
        if done:  # before that nobody knows how long a piece takes
            parts.append(rate(done, spent))
        if done and self._done < self._total:
            parts.append(f"{duration((self._total - self._done) * spent / done)} left")
        _err.print(", ".join([*parts, note] if note else parts), markup=False)


@contextmanager
def progress(description: str, total: int, done: int = 0) -> Iterator[Bar]:
    """Show progress of `total` pieces of work, `done` of them finished already (a resumed run).

    Yields a `Bar`. A live bar with rate and time left on a terminal, a plain line every `PLAIN_INTERVAL_S` seconds
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
