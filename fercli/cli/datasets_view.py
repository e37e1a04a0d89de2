"""The output of `fercli datasets`: a dataset, or the check of one, as text and tables on stdout."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich import box
from rich.table import Table
from rich.text import Text

from fercli import console
from fercli.datasets import READERS
from fercli.datasets.check import EXAMPLES, Check
from fercli.datasets.protocol import WHOLE, describe, in_order
from fercli.expressions import EXPRESSIONS, UNLABELLED

if TYPE_CHECKING:
    from fercli.datasets import Reader
    from fercli.datasets.card import DatasetCard, Official


def show_all() -> None:
    """Print the table of all datasets, then where to apply for each one and its layout."""
    table = _grid(["name", "faces", "what", "split", "terms"], right=("faces",))
    for name, reader in READERS.items():
        if card := reader.card:
            table.add_row(Text(name, "bold"), card.size, card.about, card.split, card.licence)
    _fold_between_words(table)
    console.show(table, "", "?: not published, or not found; +: not all parts are counted")
    console.show("", "[bold]Where to apply, and the expected layout[/]")
    for name, reader in READERS.items():
        where = reader.card.apply if reader.card else "your own files"
        console.show("", *_pairs([(name, where), ("", reader.layout)], 10))
    console.show("", "For details of one, with its folder tree and counts per expression: fercli datasets show ck+")


def show_one(name: str, reader: Reader) -> None:
    """Print the description of one dataset, its expected folder tree, the reader's options and the official counts."""
    card = reader.card
    pairs = []
    if card:
        split = f"{card.split} ({card.split_note})" if card.split_note else card.split
        pairs = [
            ("what", card.about),
            ("apply", card.apply),
            ("terms", card.licence),
            ("split", split),
            ("paper", card.paper),
        ]
    console.show(_heading(name, card.title if card else "your own files"), *(["", *_pairs(pairs)] if pairs else []))
    console.show("", "[bold]Layout[/]", "", *(Text(f"  {line}".rstrip()) for line in reader.tree_lines))
    options = [
        (option if default is None or isinstance(default, list | tuple) else f"{option}={default}", values)
        for option, default, values in (entry.values() for entry in reader.describe_options())
    ]
    console.show("", "[bold]Options[/]", "", *_pairs(options))
    for official in card.releases if card else ():
        console.show(
            "", f"[bold]Official counts[/]{f' ({official.form})' if official.form else ''}", "", _official(official)
        )
    console.show("", f"To check a copy: fercli datasets check {name} FOLDER")


def show_check(check: Check, card: DatasetCard | None) -> None:
    """Print a check: a summary, the counts found and the official ones, what is left out, what is missing."""
    listing = check.listing
    subjects = f" of {check.subjects} subject{'s' if check.subjects > 1 else ''}" if check.subjects else ""
    files = "1 file" if check.images == 1 else f"{check.images:,} files"
    pairs = [
        ("folder", str(listing.root)),
        (
            "splits",
            describe(listing.adapt_splits, listing.score_splits, in_order({record.split for record in listing})),
        ),
        ("compared", _compared(check, card)),
    ]
    if check.unscored:
        pairs.insert(2, ("", f"no labelled face in {', '.join(check.unscored)}: nothing can be scored there"))
    console.show(_heading(listing.name, f"{len(listing):,} faces{subjects} in {files}"), "", *_pairs(pairs), "")
    console.show(_counts(check))
    if check.differences:
        console.show(
            "", f"[yellow]*[/] differs from the official count by the number shown ({check.differences} in total)"
        )
    if listing.left_out:
        width = max(len(f"{count:,}") for count in listing.left_out.values())
        reasons = [(f"{count:,}".rjust(width), reason) for reason, count in listing.left_out.items()]
        console.show("", "[bold]Left out[/]", "", *_pairs(reasons))
    if check.missing:
        names = [*check.missing[:EXAMPLES], *(["..."] if len(check.missing) > EXAMPLES else [])]
        where = ": are the images in another folder?" if len(check.missing) == check.images else ""
        console.show("", f"[bold yellow]Missing: {len(check.missing):,} of {files} listed[/]{where}", "")
        console.show(*_pairs([("", name) for name in names], 0))
    else:
        console.show("", "No listed file is missing.")


def missing_line(check: Check) -> str:
    """Return one line that says how many of the listed images are missing."""
    name, first = check.listing.name, console.brief(check.missing[0], 300)
    if len(check.missing) < check.images:
        return f"{name}: {len(check.missing):,} of {check.images:,} listed files are missing: {first}, ..."
    return (
        f"{name}: none of the {check.images:,} listed files is in {check.listing.root} (the first: {first}); "
        "are the images in another folder?"
    )


def _compared(check: Check, card: DatasetCard | None) -> str:
    if check.listing.synthetic:
        return "with nothing: these are procedural faces drawn by fercli, not the dataset"
    if check.official is None:
        return "with nothing: no official counts are known" if card else "with nothing: these are your own files"
    return f"with the official counts{f' ({check.official.form})' if check.official.form else ''}"


def _counts(check: Check) -> Table:
    """Return a table with a row per expression and a column per split; cells read found / official."""
    splits = [*check.splits, WHOLE]
    if len(splits) == 2 and check.expected(WHOLE) is None:
        splits = splits[:1]
    rows: list[tuple[str, int | None]] = [(name, label) for label, name in enumerate(EXPRESSIONS)]
    rows.append(("total", None))
    if check.found(WHOLE, UNLABELLED):
        rows.append(("unlabelled", UNLABELLED))

    def cell(split: str, label: int | None) -> Text:
        found = check.found(split, label)
        expected = None if label == UNLABELLED else check.expected(split, label)
        if expected is None:
            return Text(f"{found:,}")
        both = Text(f"{found:,} / {expected:,}")
        return both if found == expected else Text(f"* {found - expected:+,}  ", "yellow").append_text(both)

    below = "found" if check.differences is None else "found / official"
    table = _grid(["", *(f"{split}\n{below}" for split in splits)])
    for name, label in rows:
        table.add_row(name, *(cell(split, label) for split in splits), style="bold" if label is None else None)
    return table


def _official(official: Official) -> Table:
    def text(count: int | None) -> str:
        return "?" if count is None else f"{count:,}"

    splits = in_order(official.splits)
    table = _grid(["", *splits])
    for label, name in enumerate(EXPRESSIONS):
        table.add_row(name, *(text(official.count(split, label)) for split in splits))
    table.add_row("total", *(text(official.total(split)) for split in splits), style="bold")
    return table


def _grid(titles: Sequence[str], right: Sequence[str] | None = None) -> Table:
    """Return a table without a frame; the columns in `right` (default: all but the first) hold numbers."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    for i, title in enumerate(titles):
        number = i > 0 if right is None else title in right
        table.add_column(title, justify="right" if number else "left", no_wrap=number or i == 0, overflow="fold")
    return table


def _fold_between_words(table: Table) -> None:
    """Make each column as wide as its longest word, and give the remaining width to long texts.

    Otherwise rich would fold within words. If the width is too small even for the longest words, the table is left
    unchanged.
    """
    cells = [[str(cell) for cell in column.cells] for column in table.columns]
    longest = [max(len(word) for cell in column for word in cell.split()) for column in cells]
    room = console.width() - sum(longest) - 2 * len(longest) + 1
    if room < 0:
        return
    wanted = [max(map(len, column)) - word for column, word in zip(cells, longest, strict=True)]
    order = sorted(range(len(cells)), key=lambda i: wanted[i])
    for done, i in enumerate(order):
        more = min(wanted[i], room // (len(order) - done))
        table.columns[i].width = longest[i] + more
        room -= more


def _pairs(pairs: Sequence[tuple[str, str]], width: int | None = None) -> list[Text]:
    """Return lines with a word in `width` columns (default: the longest word) and a text wrapped beside it.

    Addresses in the text are not broken.
    """
    width = max(len(word) for word, _ in pairs) if width is None else width
    indent = width + 4 if width else 2
    lines = []
    for word, text in pairs:
        room = max(console.width() - indent - 1, 20)
        wrapped = textwrap.wrap(console.plain(text), room, break_long_words=False, break_on_hyphens=False) or [""]
        for i, part in enumerate(wrapped):
            lines.append(Text(f"  {word if i == 0 else '':{width}}".ljust(indent), "cyan").append(part, "default"))
    return lines


def _heading(name: str, text: str) -> Text:
    return Text(name, "bold cyan").append(f"  {text}", "default")
