"""A self-contained HTML report of a detector: metrics, classes and images.

The page needs no scripts, network or other files. It follows the light or dark theme of the browser and fits phones.
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

from opendetr.evaluation.names import describe_metric
from opendetr.files import write_atomically

_HEADLINES = {
    "AP": "IoU 0.50 to 0.95",
    "AP50": "IoU 0.50",
    "AP75": "IoU 0.75",
    "AR100": "recall, 100 detections",
    "mask_AP": "masks, IoU 0.50 to 0.95",
    "PQ": "panoptic quality",
    "P@1": "expressions found, IoU 0.50",
    "R@1": "phrases found, IoU 0.50",
    "accuracy": "questions answered right",
    "majority": "always the most frequent answer",
}
_JPEG_QUALITY = 88

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
.columns { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); gap: 0 3rem }
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
.scroll { overflow-x: auto; margin: 0 0 1.5rem }
.values { width: auto }
.values td.number, .values thead th { width: auto; text-align: right; padding-left: 1.25rem; white-space: nowrap }
.values thead th:first-child { text-align: left; padding-left: 0 }
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
figcaption { margin-top: .45rem; font-size: .9rem; overflow-wrap: anywhere }
""".strip()


def write_report(
    path: str | os.PathLike[str],
    title: str,
    metrics: Mapping[str, float | None],
    per_class: Mapping[str, float | None],
    images: Sequence[tuple[str, Sequence[tuple[str, Image.Image]]]] = (),
    *,
    panoptic_per_class: Mapping[str, float | None] | None = None,
    facts: Mapping[str, object] | None = None,
) -> Path:
    """Write the report atomically: an existing file is replaced only when the new one is complete.

    Args:
        path: the file to write. Missing folders are created.
        title: the heading of the page.
        metrics: metrics in 0..1 by name; None is shown as "-". The report explains the metrics that
            `evaluation.names.describe_metric` knows.
        per_class: AP of each class in 0..1 by name; None for a class without objects.
        images: figures in the order to show: pairs of a caption and titled images, for example ground truth and
            prediction. They come before the metrics, side by side if the page is wide enough.
        panoptic_per_class: PQ of each class in 0..1 by name, if panoptic maps are evaluated.
        facts: further values shown below the heading, for example the model, the number of images and the time.

    Returns:
        The path of the file.

    Raises:
        OSError: the file cannot be written.
    """
    sections = [
        ("Images", images_section(images)),
        ("Scores", _tiles(metrics)),
        ("Metrics", _metrics_section(metrics)),
        ("AP by class", _classes_section(per_class)),
        ("PQ by class", _classes_section(panoptic_per_class or {})),
    ]
    return write_page(path, title, sections, facts=facts)


def write_page(
    path: str | os.PathLike[str],
    title: str,
    sections: Sequence[tuple[str, str]],
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


def _tiles(metrics: Mapping[str, float | None]) -> str:
    """The most important metrics in large digits."""
    tiles = (
        f'<div class="tile">{name}<b>{_number(metrics[name])}</b><span>{meaning}</span></div>'
        for name, meaning in _HEADLINES.items()
        if name in metrics
    )
    body = "".join(tiles)
    return f'<div class="tiles">{body}</div>' if body else ""


def _metrics_section(metrics: Mapping[str, float | None]) -> str:
    """All metrics with their meanings, in two columns."""
    rows = [
        f'<tr><th scope="row">{escape(name)}</th><td>{escape(describe_metric(name))}</td>'
        f'<td class="number">{_number(value)}</td></tr>'
        for name, value in metrics.items()
    ]
    return _columns(rows, "meanings")


def _classes_section(per_class: Mapping[str, float | None]) -> str:
    """The metric of each class with a bar, in descending order. Classes without a value are last."""
    ranked = sorted(per_class.items(), key=lambda item: -1.0 if item[1] is None else item[1], reverse=True)
    rows = [
        f'<tr><th scope="row">{escape(name)}</th><td class="wide">{_bar(value)}</td>'
        f'<td class="number">{_number(value)}</td></tr>'
        for name, value in ranked
    ]
    note = '<p class="note">"-": the dataset has no object of this class.</p>' if None in per_class.values() else ""
    return _columns(rows, "classes") + note


def _columns(rows: Sequence[str], style: str) -> str:
    """Table rows in two tables, side by side if the page is wide enough."""
    if not rows:
        return ""
    half = -(-len(rows) // 2)
    parts: Iterable[Sequence[str]] = (part for part in (rows[:half], rows[half:]) if part)
    tables = (f'<table class="{style}">{"".join(part)}</table>' for part in parts)
    return f'<div class="columns">{"".join(tables)}</div>'


def _bar(value: float | None) -> str:
    width = 0.0 if value is None else 100 * min(1.0, max(0.0, value))
    return f'<span class="track"><i style="width: {width:.1f}%"></i></span>'


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def images_section(figures: Sequence[tuple[str, Sequence[tuple[str, Image.Image]]]]) -> str:
    """Figures below each other: a caption and titled images each, as in `write_report`."""
    return "\n".join(_figure(caption, images) for caption, images in figures)


def chart_figure(chart: Image.Image, caption: str) -> str:
    """A chart with its caption. Its lines and texts stay sharp."""
    content = io.BytesIO()
    chart.convert("P", palette=Image.Palette.ADAPTIVE).save(content, "PNG", optimize=True)
    image = _image_element(content.getvalue(), "png", caption, chart.size)
    return f"<figure>{image}<figcaption>{escape(caption)}</figcaption></figure>"


def note(text: str) -> str:
    """A paragraph."""
    return f'<p class="note">{escape(text)}</p>'


def value_table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table: the first cell of each row is its name, the others are values.

    Numbers with a fraction are shown with three decimals, integers with separators, and None as "-".
    """
    line = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
    body = "".join(_table_row(row) for row in rows)
    return (
        f'<div class="scroll"><table class="values"><thead><tr>{line}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def _table_row(row: Sequence[object]) -> str:
    name, *values = row
    cells = "".join(f'<td class="number">{escape(_cell(value))}</td>' for value in values)
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


def _image_element(content: bytes, format_: str, text: str, size: tuple[int, int]) -> str:
    """An image inside the page, with a text that stands for it."""
    source = f"data:image/{format_};base64," + base64.b64encode(content).decode("ascii")
    return f'<img src="{source}" alt="{escape(text)}" width="{size[0]}" height="{size[1]}">'
