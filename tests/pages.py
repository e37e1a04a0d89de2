"""A strict reader of HTML pages for tests."""

from __future__ import annotations

from html.parser import HTMLParser

VOID = {"meta", "link", "br", "img", "input", "hr"}


class Page(HTMLParser):
    """Reads a page strictly enough to catch unclosed tags, and keeps what the tests need."""

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.headings: list[str] = []
        self.rows: list[tuple[dict[str, str | None], str]] = []
        self.tables: list[str] = []
        self.text = ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "h2":
            self.headings.append("")
        if tag == "tr":
            self.rows.append((dict(attributes), ""))
        if tag == "table":
            self.tables.append("")

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data):
        self.text += data
        if "h2" in self.open:
            self.headings[-1] += data
        if "tr" in self.open:
            self.rows[-1] = (self.rows[-1][0], self.rows[-1][1] + data)
        if "table" in self.open:
            self.tables[-1] += data

    def assert_self_contained(self, text: str):
        """The page loads nothing and runs nothing, and every link leads to a place within it."""
        assert "url(" not in text and "@import" not in text and "http://" not in text and "https://" not in text
        for tag, attributes in self.elements:
            assert tag not in ("script", "iframe", "object", "embed", "base")
            assert not {"srcset", "onload", "onclick"} & set(attributes)
            assert (attributes.get("src") or "data:image/").startswith("data:image/")
            assert (attributes.get("href") or "#").startswith(("#", "data:,"))
        ids = [attributes["id"] for _, attributes in self.elements if "id" in attributes]
        assert len(ids) == len(set(ids))
        assert {attributes["href"][1:] for tag, attributes in self.elements if tag == "a"} <= set(ids)
