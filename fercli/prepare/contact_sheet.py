"""contact-sheet.jpg: an overview of a prepared store, to look at before training on it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from fercli.datasets.reader import Listing, Record
from fercli.expressions import EXPRESSIONS, UNLABELLED
from fercli.faces.extract import decode_source, read_source
from fercli.faces.images import Unreadable
from fercli.files import replacing
from fercli.spec import Prepare
from fercli.store import read_array, subsample

#: File name. A store can be used without it.
PICTURE = "contact-sheet.jpg"

#: Tiles in a row, and the most rows for a class and for the rejected records.
COLUMNS, CLASS_ROWS, REJECTED_ROWS = 12, 1, 3

_TILE, _GAP, _CAPTION, _HEADING = 168, 6, 32, 30
_PAPER, _INK, _FAINT, _ALERT = (250, 250, 248), (30, 30, 30), (120, 120, 120), (176, 42, 42)
#: Image-left eye, image-right eye, nose tip, image-left and image-right mouth corner.
_COLOURS = ((255, 196, 0), (0, 214, 255), (90, 255, 90), (255, 92, 205), (255, 120, 60))


def draw_contact_sheet(folder: Path, rows: Sequence[dict[str, Any]], listing: Listing, options: Prepare) -> None:
    """Write contact-sheet.jpg into a folder that contains a store's arrays.

    There is a band per class. It shows faces spread evenly over the manifest, with their landmarks, the windows of the
    local crops (in the landmark's colour) and the inner square that the network receives. The rejected records follow,
    each with its reason.

    Args:
        folder: contains faces.npy and landmarks.npy.
        rows: the manifest, in order.
        listing: the dataset, used to find the rejected images.
        options: sizes of faces and crops.
    """
    faces = read_array(folder / "faces.npy", mapped=True)
    landmarks = read_array(folder / "landmarks.npy", mapped=True)
    kept = [(i, row) for i, row in enumerate(r for r in rows if r["status"] != "rejected")]
    rejected = [(i, row) for i, row in enumerate(rows) if row["status"] == "rejected"]
    bands: list[tuple[str, list[Image.Image]]] = []
    for label in (*range(len(EXPRESSIONS)), UNLABELLED):
        members = [(i, row) for i, row in kept if int(row["label"]) == label]
        if members:
            name = "unlabelled" if label == UNLABELLED else EXPRESSIONS[label]
            shown = [members[k] for k in subsample(len(members), COLUMNS * CLASS_ROWS)]
            tiles = [_tile(_drawn_face(faces[i], landmarks[i], options), *_caption(row)) for i, row in shown]
            bands.append((f"{name}: {len(members)} kept{_some(shown, members)}", tiles))
    if rejected:
        reasons = Counter(row["reason"] for _, row in rejected).most_common(3)
        most = "; ".join(f"{count} {reason}" for reason, count in reasons)
        shown = [rejected[k] for k in subsample(len(rejected), COLUMNS * REJECTED_ROWS)]
        tiles = [
            _tile(_thumbnail(listing.records[i], listing.root), row["id"], row["reason"], True) for i, row in shown
        ]
        bands.append((f"rejected: {len(rejected)}{_some(shown, rejected)} ({most})", tiles))
    counts = Counter(row["status"] for row in rows)
    title = f"{listing.name}: {len(kept)} of {len(rows)} records kept"
    parts = ", ".join(f"{counts[s]} {s}" for s in ("found", "retried", "given", "mean-landmarks") if counts[s])
    note = "Synthetic: procedural faces, not the dataset. " if listing.synthetic else ""
    with replacing(folder / PICTURE) as file:
        _compose(f"{title} ({parts})", note + _LEGEND, bands).save(file, "JPEG", quality=88)


_LEGEND = (
    "Dots: the five landmarks. Coloured squares: the local crops around them. White square: the network's input. "
    "Outside it: the margin for jitter. Number: the detector's score, from 0 to 1."
)


def _some(shown: Sequence[Any], all_of_them: Sequence[Any]) -> str:
    return f", {len(shown)} shown" if len(shown) < len(all_of_them) else ""


def _caption(row: dict[str, Any]) -> tuple[str, str]:
    score = f" {float(row['score']):.2f}" if row["score"] else ""
    how = f"retried: {row['reason']}" if row["status"] == "retried" else row["status"]
    return str(row["id"]), how + score


def _drawn_face(face: np.ndarray, landmarks: np.ndarray, options: Prepare) -> Image.Image:
    zoom = _TILE / options.side
    picture = Image.fromarray(np.asarray(face)).resize((_TILE, _TILE), Image.Resampling.BICUBIC)
    pen = ImageDraw.Draw(picture)
    inner = (options.margin * zoom, (options.margin + options.size) * zoom - 1)
    pen.rectangle((inner[0], inner[0], inner[1], inner[1]), outline=(255, 255, 255))
    half = options.crop_size / options.crop_zoom / 2 * zoom
    for (x, y), colour in zip((np.asarray(landmarks, float) + 0.5) * zoom, _COLOURS, strict=True):
        pen.rectangle((x - half, y - half, x + half, y + half), outline=colour)
        pen.ellipse((x - 3, y - 3, x + 3, y + 3), fill=colour, outline=(0, 0, 0))
    return picture


def _thumbnail(record: Record, root: Path) -> Image.Image | None:
    try:
        picture = Image.fromarray(decode_source(record, root, read_source(record, root)).pixels)
    except Unreadable:
        return None
    picture.thumbnail((_TILE, _TILE))
    zoom = min(_TILE / picture.width, _TILE / picture.height)
    return picture.resize((max(1, round(picture.width * zoom)), max(1, round(picture.height * zoom))))


def _tile(picture: Image.Image | None, first: str, second: str, alert: bool = False) -> Image.Image:
    tile = Image.new("RGB", (_TILE, _TILE + _CAPTION), _PAPER)
    pen = ImageDraw.Draw(tile)
    if picture is None:
        pen.rectangle((0, 0, _TILE - 1, _TILE - 1), fill=(230, 230, 228))
        pen.line((60, 60, _TILE - 60, _TILE - 60), fill=_FAINT, width=3)
        pen.line((60, _TILE - 60, _TILE - 60, 60), fill=_FAINT, width=3)
    else:
        tile.paste(picture, ((_TILE - picture.width) // 2, (_TILE - picture.height) // 2))
    pen.text((0, _TILE + 1), _fitted(first, keep_end=True), font=_font(12), fill=_FAINT)
    pen.text((0, _TILE + 15), _fitted(second), font=_font(12), fill=_ALERT if alert else _INK)
    return tile


def _fitted(text: str, keep_end: bool = False) -> str:
    """Return the text cut to a tile's width. Names keep their end, which tells more than the beginning."""
    text = text.encode("utf-8", "replace").decode()
    text = text[-100:] if keep_end else text[:100]  # far wider than a tile: a name may have thousands of letters
    font = _font(12)
    if font.getlength(text) <= _TILE:
        return text
    while text and font.getlength(text + "...") > _TILE:
        text = text[1:] if keep_end else text[:-1]
    return "..." + text if keep_end else text + "..."


@lru_cache(maxsize=8)
def _font(size: int) -> Any:
    return ImageFont.load_default(size)


def _compose(title: str, legend: str, bands: Sequence[tuple[str, list[Image.Image]]]) -> Image.Image:
    step, row_height = _TILE + _GAP, _TILE + _CAPTION + _GAP
    heights = [_HEADING + row_height * -(-len(tiles) // COLUMNS) for _, tiles in bands]
    sheet = Image.new("RGB", (COLUMNS * step + _GAP, 64 + sum(heights) + _GAP), _PAPER)
    pen = ImageDraw.Draw(sheet)
    pen.text((_GAP, 8), title, font=_font(24), fill=_INK)
    pen.text((_GAP, 40), legend, font=_font(14), fill=_FAINT)
    y = 64
    for (heading, tiles), height in zip(bands, heights, strict=True):
        pen.text((_GAP, y + 6), heading, font=_font(18), fill=_INK)
        for k, tile in enumerate(tiles):
            sheet.paste(tile, (_GAP + k % COLUMNS * step, y + _HEADING + k // COLUMNS * row_height))
        y += height
    return sheet
