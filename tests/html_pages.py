"""Parse the pages that the project writes."""

from __future__ import annotations

from html.parser import HTMLParser

UNPAIRED = {"meta", "img", "br", "input", "!doctype"}


class Page(HTMLParser):
    """Collects a page's text, attributes and open elements."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.words: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.tags: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes += attrs
        if tag not in UNPAIRED:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style" and data.strip():
            self.words.append(data.strip())
