"""What every piece of HTML that Tuna leaves in a notebook must be."""

from __future__ import annotations

import re
from html.parser import HTMLParser

VOID = {"br", "hr", "img", "input", "meta"}


class Page(HTMLParser):
    """Parses a fragment; every tag must be closed in its turn."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert self._open == [], f"never closed: {self._open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(k, v or "") for k, v in attrs]
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open, f"</{tag}> closes nothing"
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def page(html: str) -> Page:
    """Parsed, after looking that it can stand anywhere: offline, on GitHub, on white and on black."""
    made = Page(html)
    assert not {"style", "script", "link", "iframe", "object", "img"} & set(made.tags)
    for name, value in made.attributes:
        assert name not in ("src", "href", "onclick", "onload", "onerror"), (name, value)
        assert "url(" not in value
        if name == "style":
            for colour in re.findall(r"(?:^|;)\s*(?:color|background(?:-color)?)\s*:\s*([^;]+)", value):
                # Black on black is what a dark page makes of a fixed black.
                assert colour.strip() == "inherit" or colour.strip().startswith("var(--"), colour
    return made
