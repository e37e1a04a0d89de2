"""Faces and contact sheets embedded in the quality report, as data: URIs."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from fercli.report.pictures import jpeg_uri


def sheet_uri(path: Path, limit: int) -> str | None:
    """Return a contact sheet as a data: URI of at most `limit` characters; None if missing or too large."""
    try:
        with Image.open(path) as file:
            sheet = file.convert("RGB")
    except (OSError, Image.DecompressionBombError):
        return None
    for width in (1280, 1024, 840, 640, 480):
        if width > sheet.width:
            continue
        height = max(1, round(sheet.height * width / sheet.width))
        uri = jpeg_uri(sheet.resize((width, height), Image.Resampling.LANCZOS), 62)
        if len(uri) <= limit:
            return uri
    return None
