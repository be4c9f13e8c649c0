"""Self-contained HTML pages: sections with tables, charts and images.

A page needs no scripts, network or other files. It follows the light or dark theme of the browser and fits phones.
Tables and charts that are wider than the window scroll by themselves, with the keyboard too.
"""

from __future__ import annotations

import base64
import io
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path

from PIL import Image

from opendetr.files import write_atomically

Section = tuple[str, str]
"""The heading and the HTML of a part of a page."""
_JPEG_QUALITY = 88
_LEAST_SCALE = 0.75  # of a chart in a narrow window, below which its texts are too small

_STYLE = """
:root { color-scheme: light dark; --paper: #fff; --card: #f6f7f9; --ink: #111827; --faint: #5b6472; --rule: #e3e6ea;
  --bar: #2563eb; --track: #e3e6ea }
@media (prefers-color-scheme: dark) { :root { --paper: #0f1319; --card: #181e27; --ink: #e8ebf0; --faint: #9aa4b2;
  --rule: #2a323e; --bar: #6ea0ff; --track: #2a323e } }
* { box-sizing: border-box }
body { margin: 0 auto; max-width: 76rem; padding: 2.5rem 1.25rem 4rem; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", sans-serif }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 1.25rem; text-wrap: balance }
h2 { font-size: 1.2rem; margin: 2.75rem 0 .9rem }
p, figcaption, .note { color: var(--faint) }
dl { display: flex; flex-wrap: wrap; gap: .4rem 2rem; margin: 0 }
dl div { display: flex; gap: .5rem }
dt { color: var(--faint) }
dd { margin: 0; overflow-wrap: anywhere; font-variant-numeric: tabular-nums }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: .8rem }
.tile { background: var(--card); border: 1px solid var(--rule); border-radius: .7rem; padding: .9rem 1.1rem }
.tile b { display: block; font-size: 2rem; line-height: 1.25; font-weight: 650; font-variant-numeric: tabular-nums }
.tile span { color: var(--faint); font-size: .85rem }
.columns { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); gap: 0 3rem;
  align-items: start }
table { border-collapse: collapse; width: 100%; font-size: .95rem }
th, td { text-align: left; font-weight: normal; padding: .38rem .75rem .38rem 0; border-bottom: 1px solid var(--rule);
  vertical-align: top }
th { white-space: nowrap; font-weight: 600 }
.meanings th { min-width: 4.25rem }
.classes { table-layout: fixed }
.classes th { width: 42%; white-space: normal; overflow-wrap: break-word }
td { color: var(--faint) }
td.number { width: 4rem; color: var(--ink); text-align: right; padding-right: 0; font-variant-numeric: tabular-nums }
td.wide { vertical-align: middle }
.scroll { overflow-x: auto }
.scroll:focus-visible { outline: 3px solid var(--bar); outline-offset: 2px }
div.scroll { margin: 0 0 1.5rem }
.values { width: auto }
.values td.number, .values thead th { width: auto; text-align: right; padding-left: 1.25rem; white-space: nowrap }
.values thead th:first-child { text-align: left; padding-left: 0 }
.values td.text { min-width: 9rem; padding-left: 1.25rem }
.values thead th.text { text-align: left }
.values tbody th { white-space: normal; overflow-wrap: break-word; min-width: 6rem }
.track { display: block; height: .6rem; border-radius: .3rem; background: var(--track); overflow: hidden }
.track i { display: block; height: 100%; background: var(--bar); border-radius: .3rem }
nav { display: flex; flex-wrap: wrap; gap: .3rem 1.25rem; margin: 1.25rem 0 0 }
a { color: var(--bar) }
figure { margin: 0 0 2.25rem }
.images { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 30rem), 1fr)); gap: .7rem 1rem;
  align-items: end }
.images p { margin: 0 0 .2rem; font-size: .85rem }
figure img { display: block; max-width: 100%; height: auto; border: 1px solid var(--rule); border-radius: .5rem }
@media (prefers-color-scheme: dark) { .chart img { filter: invert(.91) hue-rotate(180deg); border-color: #d5cdc1 } }
pre { background: var(--card); border: 1px solid var(--rule); border-radius: .5rem; padding: .9rem 1.1rem; margin: 0;
  font-size: .85rem; line-height: 1.45; overflow-x: auto }
figcaption { margin-top: .45rem; font-size: .9rem; overflow-wrap: anywhere }
""".strip()


def write_page(
    path: str | os.PathLike[str],
    title: str,
    sections: Iterable[Section],
    *,
    facts: Mapping[str, object] | None = None,
) -> Path:
    """Write a page of sections atomically, in the style of all pages, with links to the sections.

    Args:
        path: the file to write. Missing folders are created.
        title: the heading of the page.
        sections: the heading and the HTML of each section. Sections without content are left out.
        facts: values shown below the heading.

    Returns:
        The path of the file.

    Raises:
        OSError: the file cannot be written.
    """
    shown = {heading: section for heading, section in sections if section}
    parts = [_facts_section(facts or {}), _links(shown)]
    parts += [f'<h2 id="{_anchor(heading)}">{escape(heading)}</h2>\n{section}' for heading, section in shown.items()]
    content = "\n".join(part for part in parts if part)
    page = f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>
{_STYLE}
</style>
</head>
<body>
<h1>{escape(title)}</h1>
{content}
</body>
</html>
"""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, page, sync=True)
    return path


def _facts_section(facts: Mapping[str, object]) -> str:
    items = (f"<div><dt>{escape(name)}</dt><dd>{escape(str(value))}</dd></div>" for name, value in facts.items())
    return f"<dl>{''.join(items)}</dl>" if facts else ""


def _links(headings: Iterable[str]) -> str:
    """Links to all sections; none for a single one."""
    links = [f'<a href="#{_anchor(heading)}">{escape(heading)}</a>' for heading in headings]
    return f"<nav>{''.join(links)}</nav>" if len(links) > 1 else ""


def _anchor(heading: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", heading.lower()).strip("-")


def images_section(figures: Sequence[tuple[str, Sequence[tuple[str, Image.Image]]]]) -> str:
    """Figures below each other: a caption and titled images each, as in `write_report`."""
    return "\n".join(_figure(caption, images) for caption, images in figures)


def chart_figure(chart: Image.Image | Path, caption: str) -> str:
    """A chart, or a PNG file of one, with its caption. Its lines and texts stay sharp. "" if there is no such file."""
    if isinstance(chart, Path):
        if not chart.exists():
            return ""
        content = chart.read_bytes()
        with Image.open(chart) as opened:
            size = opened.size
    else:
        buffer, size = io.BytesIO(), chart.size
        chart.convert("P", palette=Image.Palette.ADAPTIVE).save(buffer, "PNG")
        content = buffer.getvalue()
    image = _scrolling(_image_element(content, "png", caption, size, least=_LEAST_SCALE), caption)
    return f'<figure class="chart">{image}<figcaption>{escape(caption)}</figcaption></figure>'


def note(text: str) -> str:
    """A paragraph."""
    return f'<p class="note">{escape(text)}</p>'


def value_table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table: the first cell of each row is its name, the others are values.

    Numbers with a fraction are shown with three decimals, integers with separators, and None as "-". Columns of words
    begin at the left.
    """
    rows = [list(row) for row in rows]
    texts = [any(_is_text(row[index]) for row in rows) for index in range(len(head))]
    line = "".join(
        f'<th scope="col"{_TEXT if is_text and index else ""}>{escape(name)}</th>'
        for index, (name, is_text) in enumerate(zip(head, texts, strict=True))
    )
    body = "".join(_table_row(row, texts) for row in rows)
    table = f'<table class="values"><thead><tr>{line}</tr></thead><tbody>{body}</tbody></table>'
    return _scrolling(table, ", ".join(filter(None, head)))


def text_block(text: str, label: str) -> str:
    """A text whose lines and spaces are kept, such as a file of settings."""
    return f'<pre tabindex="0" role="region" aria-label="{escape(label)}">{escape(text)}</pre>'


def _scrolling(content: str, label: str) -> str:
    """Something that may be wider than the window, with a label; the arrow keys move it."""
    return f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(label)}">{content}</div>'


_TEXT, _NUMBER = ' class="text"', ' class="number"'


def _is_text(value: object) -> bool:
    """Whether the cells of a column are words, which begin at the left; numbers, also with a unit, end at the right."""
    return isinstance(value, str) and any(map(str.isalpha, value))


def _table_row(row: Sequence[object], texts: Sequence[bool]) -> str:
    name, *values = row
    cells = "".join(
        f"<td{_TEXT if is_text else _NUMBER}>{escape(_cell(value))}</td>"
        for value, is_text in zip(values, texts[1:], strict=True)
    )
    return f'<tr><th scope="row">{escape(_cell(name))}</th>{cells}</tr>'


def _cell(value: object) -> str:
    if isinstance(value, float):
        return "-" if math.isnan(value) else f"{value:.3f}"
    if isinstance(value, int):
        return f"{value:,}"
    return "-" if value is None else str(value)


def _figure(caption: str, images: Sequence[tuple[str, Image.Image]]) -> str:
    """Images below their titles, side by side, with a caption."""
    parts = "".join(f"<div><p>{escape(title)}</p>{_embedded(image, caption, title)}</div>" for title, image in images)
    return f'<figure><div class="images">{parts}</div><figcaption>{escape(caption)}</figcaption></figure>'


def _embedded(image: Image.Image, caption: str, title: str) -> str:
    """An image, embedded as JPEG."""
    content = io.BytesIO()
    image.convert("RGB").save(content, "JPEG", quality=_JPEG_QUALITY, subsampling=0, optimize=True)
    return _image_element(content.getvalue(), "jpeg", f"{caption}: {title}", image.size)


def _image_element(content: bytes, format_: str, text: str, size: tuple[int, int], least: float = 0.0) -> str:
    """An image inside the page, with a text that stands for it; in a narrow window not below a share of its width."""
    style = f' style="min-width: {round(least * size[0])}px"' if least else ""
    source = f"data:image/{format_};base64," + base64.b64encode(content).decode("ascii")
    return f'<img src="{source}" alt="{escape(text)}" width="{size[0]}" height="{size[1]}"{style}>'
