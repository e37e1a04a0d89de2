"""Face boxes in a csv: which columns contain them, what their numbers mean, and whether they fit the images.

Columns are identified by name, in any order. Columns that look like a box but are not understood stop the run:
without its box, a face in an image with several faces could be confused with another.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fercli.datasets.parsing import number_in
from fercli.datasets.reader import Box, Record, WrongOption

#: Formats of a box's four numbers: left, top, right, bottom; or left, top, width, height.
FORMATS = ("corners", "size")
_ORDER = {"corners": ("left", "top", "right", "bottom"), "size": ("left", "top", "width", "height")}

#: The role of a column, by its name without separators and without the words in `_AFFIXES`.
_ROLES: dict[str, str] = {
    **dict.fromkeys(("left", "xmin", "minx", "xleft", "xtl", "tlx", "ulx", "topleftx", "xtopleft"), "left"),
    **dict.fromkeys(("ltx", "xstart", "startx"), "left"),
    **dict.fromkeys(("top", "ymin", "miny", "ytop", "ytl", "tly", "uly", "toplefty", "ytopleft"), "top"),
    **dict.fromkeys(("lty", "ystart", "starty", "upper"), "top"),
    **dict.fromkeys(("right", "xmax", "maxx", "xright", "xbr", "brx", "lrx", "bottomrightx", "xbottomright"), "right"),
    **dict.fromkeys(("rbx", "xend", "endx"), "right"),
    **dict.fromkeys(("bottom", "ymax", "maxy", "ybottom", "ybr", "bry", "lry", "bottomrighty"), "bottom"),
    **dict.fromkeys(("rby", "yend", "endy", "lower", "ybottomright"), "bottom"),
    **dict.fromkeys(("width", "w"), "width"),
    **dict.fromkeys(("height", "h"), "height"),
    **dict.fromkeys(("cx", "xc", "centerx", "xcenter", "centrex", "xcentre", "xmid", "midx"), "centre"),
    **dict.fromkeys(("cy", "yc", "centery", "ycenter", "centrey", "ycentre", "ymid", "midy"), "centre"),
}
#: The first of these names in a csv is the left (top) edge, the second is the right (bottom) edge.
_NUMBERED = {f"{axis}{number}": axis for axis in "xy" for number in ("", *range(5))}
_EDGES = {"x": ("left", "right"), "y": ("top", "bottom")}
#: Roles that locate a box. A width and a height alone are as often the image's as a face's.
_PLACES = ("left", "top", "right", "bottom", "centre")
#: Single letters count only as part of a complete box: r, g and b may be colours.
_LETTERS = {"l": "left", "t": "top", "r": "right", "b": "bottom"}

_BOX_WORDS = frozenset(
    ("bb", "bbox", "bboxes", "bndbox", "bounding", "boundingbox", "box", "boxes", "rect", "rectangle", "roi")
)
#: Words that may surround a role in the name of a face box.
_AFFIXES = _BOX_WORDS | frozenset(("face", "faces", "facial", "gt", "det", "detection", "px", "pixel", "pixels"))
#: Prefixes of names without separators: such words (``bboxx1``), or a single letter (``bx``).
_STARTS = re.compile(rf"(?:{'|'.join(sorted(_AFFIXES, key=len, reverse=True))})+|[a-z](?=[xywh]\d?$)")
#: Names of points in a list of landmarks: x_0 ... x_67 are not corners.
_MANY_POINTS = re.compile(r"[xy](?:[5-9]|\d\d+)")
_WORDS = re.compile(r"[\s_\-.:/()\[\]{}]+|(?<=[a-z0-9])(?=[A-Z])")
#: Cell values that mean no box is given.
_NOTHING = frozenset(("", "nan", "null", "none", "na", "n/a", "<na>"))

_EITHER = "corners (left, top, right, bottom) or a size (left, top, width, height)"
_NO_BOXES = "or set box_columns: '' to use no boxes"
#: How many images have their sizes compared with their boxes.
_PICTURES = 50
#: If no number exceeds this, the boxes are fractions of the image: in pixels, the faces would be too small.
_LARGEST_SHARE = 1.5


@dataclass(frozen=True)
class BoxColumns:
    """Where a row's box is and how to read it.

    Attributes:
        at: indices of the four columns in the order of the format, or the index of the single column that contains all
            four numbers; empty if the csv gives no boxes.
        format: ``corners`` or ``size``.
    """

    at: tuple[int, ...] = ()
    format: str = "corners"

    def read(self, row: Sequence[str]) -> tuple[str, Box | None]:
        """Return a row's box as written, ``left,top,right,bottom`` or ``left,top,width,height``, and its corners.

        Returns "" and None if the row gives no box. Raises ValueError if its box is not four numbers.
        """
        if not self.at:
            return "", None
        words = [row[i].strip() if i < len(row) else "" for i in self.at]
        if len(words) == 1:
            words = _split(words[0])
        if all(map(is_empty, words)):
            return "", None
        text = ",".join(words)
        numbers = [number_in(word) for word in words]
        if None in numbers:
            raise ValueError(f"not a box: {text}")
        left, top, right, bottom = numbers
        return text, (left, top, left + right, top + bottom) if self.format == "size" else (left, top, right, bottom)


def is_empty(text: str) -> bool:
    """Return whether a cell gives no number: it is empty, nan, NULL, ..."""
    return text.strip().lower() in _NOTHING


def is_box_name(name: str) -> bool:
    """Return whether a column has the name of a face box or of a part of one."""
    part = _part(name)
    return (part is not None and part[1] <= _AFFIXES) or _looks_single(name, ())


def find_box_columns(
    header: Sequence[str], rows: Sequence[Sequence[str]], form: str | None, others: Iterable[int], table: str
) -> BoxColumns:
    """Find the boxes by the names of the columns and the contents of the first rows.

    Args:
        header: names of all columns.
        rows: the first rows.
        form: the option box_format; None if it is not given.
        others: indices of columns known to contain something else.
        table: the csv's name, for messages.

    Raises WrongOption if columns look like a box but are not understood, and if there are several boxes.
    """
    others = set(others)
    named = {i: name for i, name in enumerate(header) if i not in others}
    many_points = any(_MANY_POINTS.fullmatch("".join(_words(name))) for name in named.values())
    groups: dict[frozenset[str], dict[int, str]] = {}
    for i, name in named.items():
        part = _part(name)
        if part and not (many_points and part[0] in _NUMBERED):
            groups.setdefault(part[1], {})[i] = part[0]
    boxes, halves = [], []
    for affix, group in groups.items():
        ordered = _ordered(group)
        if ordered and affix <= _AFFIXES:
            boxes.append(ordered)
        elif ordered or _looks_partial(affix, group):
            halves.append([i for i, part in group.items() if affix or part not in _LETTERS])
    parts = {i for group in groups.values() for i in group}
    single = [i for i in named if i not in parts and _looks_single(named[i], [row[i] for row in rows if i < len(row)])]
    if len(boxes) > 1:
        listed = "; ".join(_listed(header, box[0]) for box in boxes)
        raise WrongOption(
            f"{table} has {len(boxes)} boxes per row ({listed}); name the four columns of the face box with the "
            f"option box_columns, {_NO_BOXES}"
        )
    if boxes:
        at, its = boxes[0]
        return BoxColumns(at, form or its)
    if len(single) == 1 and form and not halves:
        return BoxColumns((single[0],), form)
    if len(single) == 1 and not halves:
        raise WrongOption(
            f"{table} has a column '{header[single[0]]}' that looks like a face box; set the option box_format to "
            f"say whether it contains {_EITHER}, {_NO_BOXES}"
        )
    suspects = sorted([*single, *(i for half in halves for i in half)])
    if any(_part(header[i])[0] == "centre" for half in halves for i in half):
        raise WrongOption(_centred(table, header, suspects))
    if suspects:
        raise WrongOption(
            f"{table} has columns that look like a face box but are not understood ({_listed(header, suspects)}); "
            f"name the four with the option box_columns and set box_format to corners or size, {_NO_BOXES}"
        )
    if form:
        raise WrongOption(
            f"option box_format is '{form}', but {table} has no box columns (it has: {', '.join(header)}); name them "
            "with the option box_columns"
        )
    return BoxColumns()


def chosen_box_columns(header: Sequence[str], at: Sequence[int], form: str | None, table: str) -> BoxColumns:
    """Return the columns that the option box_columns names: four, or one that contains all four numbers.

    If `form` is None, their names determine the format. Raises WrongOption if the names do not determine it,
    contradict the order, or name a box's centre.
    """
    if len(at) == 1:
        if form is None:
            raise WrongOption(
                f"option box_columns names the single column '{header[at[0]]}' of {table}; set box_format to say "
                f"whether it contains {_EITHER}"
            )
        return BoxColumns(tuple(at), form)
    parts = {i: part[0] for i in at if (part := _part(header[i]))}
    if "centre" in parts.values():
        raise WrongOption(_centred(table, header, at))
    ordered = _ordered(parts) if len(parts) == 4 else None
    if ordered and ordered[0] != tuple(at):
        raise WrongOption(
            f"option box_columns gives {_listed(header, at)}, but the order is left, top, right, bottom (or left, top, "
            f"width, height); give {_listed(header, ordered[0])}"
        )
    if form is None:
        last = {parts.get(i) for i in at[2:]}
        form = "size" if {"width", "height"} & last else "corners" if {"right", "bottom"} & last else None
        form = ordered[1] if ordered else form
    if form is None:
        # In a tight portrait, a width is a plausible right edge, so the images cannot show which it is.
        raise WrongOption(
            f"option box_columns names columns of {table} whose names do not show their meaning "
            f"({_listed(header, at)}); set box_format to say whether they are {_EITHER}"
        )
    return BoxColumns(tuple(at), form)


def check_boxes(root: Path, records: Sequence[Record], form: str, table: str) -> None:
    """Raise WrongOption if the boxes contradict the format.

    They do if many end before they begin (widths and heights read as corners), if they are fractions of the image, or
    if most extend beyond their image by more than a quarter of their size. They also do if many extend beyond their
    image but none would if read as corners. Sizes come from the headers of at most `_PICTURES` images that exist.

    Args:
        root: the dataset's folder.
        records: the records; those without a box are ignored.
        form: the format in which the boxes were read, ``corners`` or ``size``.
        table: the csv's name, for messages.
    """
    boxed = [record for record in records if record.box]
    good = [record for record in boxed if _is_box(record.box)]
    # A right edge of -1 or 0 means no box. A larger value may be a width.
    turned = [record for record in boxed if form == "corners" and not _is_box(record.box) and min(record.box[2:]) > 0]
    if (good or turned) and are_shares(v for r in boxed for v in _written(r.box, form)):
        raise WrongOption(
            f"{table}: the boxes are fractions of the image, not pixels (the first: {_first(boxed, form)}); multiply "
            f"them by the image's width and height, {_NO_BOXES}"
        )
    if len(turned) > 0.05 * (len(turned) + len(good)):
        raise WrongOption(
            f"{table}: read as corners (left, top, right, bottom), {len(turned)} of {len(boxed)} boxes end before they "
            f"begin (the first: {_first(turned, form)}); if the last two numbers are width and height, set box_format: "
            "size, otherwise name the columns in this order with box_columns"
        )
    _check_against_pictures(root, good, form, table)


def _check_against_pictures(root: Path, records: Sequence[Record], form: str, table: str) -> None:
    sizes = _picture_sizes(root, list(dict.fromkeys(record.path for record in records)))
    compared = [record for record in records if record.path in sizes]
    leaving = [record for record in compared if _leaves(record.box, sizes[record.path], 0.25)]
    most = 0.5
    cure = "boxes must be in pixels of the images listed; the options box_columns and box_format say how to read them"
    if form == "size":
        others = [(_written(record.box, form), sizes[record.path]) for record in compared]
        if all(_is_box(box) and not _leaves(box, its, 0.02) for box, its in others):
            leaving = [record for record in compared if _leaves(record.box, sizes[record.path], 0.05)]
            most = 0.1
            cure = "read as corners (left, top, right, bottom), all would fit; set box_format: corners"
    if len(leaving) > most * len(compared):
        width, height = sizes[leaving[0].path][0]
        raise WrongOption(
            f"{table}: {len(leaving)} of {len(compared)} boxes compared with their images extend beyond them "
            f"(the first: {_first(leaving, form)}, which has {width} x {height} pixels); {cure}"
        )


def _picture_sizes(root: Path, paths: Sequence[str]) -> dict[str, list[tuple[int, int]]]:
    """Return (width, height) of up to `_PICTURES` images spread over the list, by path, read from their headers only.

    An image that its EXIF orientation rotates by 90 degrees has both sizes, because its boxes may refer to either.
    """
    from PIL import Image

    # Look for ten times as many, because some of the listed images may be missing.
    step = max(1, len(paths) // (10 * _PICTURES))
    there = [path for path in paths[::step] if os.path.isfile(os.path.join(root, path))]
    sizes: dict[str, list[tuple[int, int]]] = {}
    for path in there[:: max(1, len(there) // _PICTURES)]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                with Image.open(os.path.join(root, path)) as picture:
                    sizes[path] = [picture.size]
                    # In a PNG, the orientation may come after the pixels.
                    if picture.format != "PNG" and picture.getexif().get(0x0112, 1) > 4:
                        sizes[path].append(picture.size[::-1])
            except Exception:
                continue  # a faulty image is reported when it is decoded
    return sizes


def _leaves(box: Box, sizes: Sequence[tuple[int, int]], share: float) -> bool:
    """Return whether a box exceeds all these image sizes by more than 2 pixels plus `share` of its own size."""
    left, top, right, bottom = box
    x, y = share * (right - left) + 2, share * (bottom - top) + 2
    return all(left < -x or top < -y or right > width + x or bottom > height + y for width, height in sizes)


def are_shares(numbers: Iterable[float]) -> bool:
    """Return whether coordinates look like fractions of the image, from 0 to 1, where pixels are expected."""
    return all(abs(number) <= _LARGEST_SHARE for number in numbers)


def _is_box(box: Box) -> bool:
    return box[2] > box[0] and box[3] > box[1]


def _written(box: Box, form: str) -> Box:
    """Return a box's four numbers as in the csv."""
    left, top, right, bottom = box
    return (left, top, right - left, bottom - top) if form == "size" else box


def _first(records: Sequence[Record], form: str) -> str:
    """Return, as text, the first record's box as in the csv and its image."""
    numbers = zip(_ORDER[form], _written(records[0].box, form), strict=True)
    return f"{', '.join(f'{role} {value:g}' for role, value in numbers)} in {records[0].path}"


def _listed(header: Sequence[str], at: Iterable[int]) -> str:
    return ", ".join(header[i] for i in at)


def _centred(table: str, header: Sequence[str], at: Sequence[int]) -> str:
    return (
        f"{table} gives boxes by their centre ({_listed(header, at)}), which is not supported; write left, top, "
        f"width and height in pixels instead, {_NO_BOXES}"
    )


def _words(name: str) -> list[str]:
    return [word.lower() for word in _WORDS.split(name) if word]


def _part(name: str) -> tuple[str, frozenset[str]] | None:
    """Return (role, words around it) of a column, or None if it has no role.

    The role may also be a name in `_NUMBERED` or `_LETTERS`.
    """
    words = _words(name)
    cuts = [(i, j) for i in range(len(words)) for j in range(len(words), i, -1)]
    for i, j in sorted(cuts, key=lambda cut: cut[0] - cut[1]):
        role = _role("".join(words[i:j]))
        if role and (i == 0 or j == len(words)):
            return role, frozenset(words[:i] + words[j:])
    joined = "".join(words)
    start = _STARTS.match(joined)
    role = _role(joined[start.end() :]) if start else None
    if not role:
        return None
    return role, frozenset(("box",) if len(start[0]) > 1 and start[0] not in _AFFIXES else (start[0],))


def _role(word: str) -> str | None:
    return word if word in _NUMBERED or word in _LETTERS else _ROLES.get(word)


def _ordered(parts: Mapping[int, str]) -> tuple[tuple[int, ...], str] | None:
    """Return the four columns in the order of a format, and the format; None if they are not exactly one box."""
    roles: dict[str, list[int]] = {}
    for axis, edges in _EDGES.items():
        chain = sorted((i for i, part in parts.items() if _NUMBERED.get(part) == axis), key=lambda i: parts[i])
        for edge, i in zip((*edges, *["too many"] * len(chain)), chain, strict=False):
            roles.setdefault(edge, []).append(i)
    for i, part in parts.items():
        if part not in _NUMBERED:
            roles.setdefault(_LETTERS.get(part, part), []).append(i)
    if "centre" in roles or "too many" in roles:
        return None
    for form, order in _ORDER.items():
        if all(len(roles.get(role, ())) == 1 for role in order):
            return tuple(roles[role][0] for role in order), form
    return None


def _looks_partial(affix: frozenset[str], parts: Mapping[int, str]) -> bool:
    """Return whether columns that are not a complete box look like parts of one."""
    places = [part for part in parts.values() if part in _PLACES or part in _NUMBERED]
    if affix & _BOX_WORDS:
        return True
    return affix <= _AFFIXES and len(places) > (0 if "face" in affix else 1)


def _looks_single(name: str, cells: Sequence[str]) -> bool:
    """Return whether a column seems to contain a whole box, by its name or by four numbers in each cell."""
    words = [word for word in _words(name) if not word.isdecimal()]
    if words and set(words) <= _AFFIXES and set(words) & _BOX_WORDS:
        return True
    cells = [cell for cell in cells if not is_empty(cell)]
    return bool(cells) and all(len(found := _split(cell)) == 4 and None not in map(number_in, found) for cell in cells)


def _split(cell: str) -> list[str]:
    """Return the words of a list in a cell: ``[10, 20, 110, 140]``, ``10 20 110 140``, ``(10, 20) (110, 140)``."""
    return [word for word in re.split(r"[\s,;|()\[\]{}]+", cell) if word]
