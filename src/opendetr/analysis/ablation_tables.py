"""The tables and the chart of an ablation study, with the numbers of the papers beside the measured ones.

Measured AP is in 0..1. Published numbers are in the unit of the papers, AP times 100.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from PIL import Image

from opendetr.analysis.ablation_runs import LAST, METRICS, Study
from opendetr.analysis.ablations import BASELINE, YOLO, YOLO_PARTS, Published, Setting
from opendetr.files import json_value, write_atomically
from opendetr.visualize import draw_bars, save_image

TABLE_FILES = ("table.json", "table.md", "table.png")
NOT_RESOLVED = "not resolved"
_DETR = "none: the loss matches queries with objects"
_DIGITS = 6  # metrics are stored with fewer; further ones are rounding of the computation
_FURTHER = ("AP50", "AP_S", "AP_M", "AP_L")


def tables(study: Study) -> dict[str, Any]:
    """The rows of both tables, from the results that exist.

    Returns:
        "spread": the largest minus the smallest AP of the baseline's seeds; None with fewer than two. "ablations": a
        row for each setting of the scale but the comparison. "detectors": a row for each compared detector. Values that
        do not exist yet are None. A difference below twice the spread, or without a spread, is not resolved.
    """
    settings = study.scale.settings
    base = study.results(settings[0])
    assert settings[0].name == BASELINE
    aps = [result["median"]["AP"] for result in base if result["median"]["AP"] is not None]
    spread = max(aps) - min(aps) if len(aps) > 1 else None
    reference = statistics.mean(aps) if aps else None
    ablations = [
        _ablation(setting, study.results(setting), reference, spread) for setting in settings if not setting.compared
    ]
    compared = [_detector(setting, study.results(setting)) for setting in settings if setting.compared]
    detectors = [_detector(settings[0], base), *compared, *(_published_detector(*row) for row in YOLO)]
    about = {"scale": study.scale.name, "images": study.images, "data": study.dataset.resolve().name}
    return json_value(about | {"spread": spread, "ablations": ablations, "detectors": detectors})


def resolved(difference: float | None, spread: float | None) -> bool:
    """Whether a difference to the baseline is at least twice the spread of the baseline."""
    if difference is None or spread is None:
        return False
    return round(abs(difference), _DIGITS) >= round(2 * spread, _DIGITS)


def _mean(results: Sequence[Mapping[str, Any]], value: Callable[[Mapping[str, Any]], float | None]) -> float | None:
    """The mean of a value over the seeds; None if there are none."""
    known = [found for found in map(value, results) if found is not None]
    return statistics.mean(known) if known else None


def _ablation(
    setting: Setting, results: Sequence[Mapping[str, Any]], reference: float | None, spread: float | None
) -> dict[str, Any]:
    """A row: the median of the last ten evaluations, averaged over the seeds."""
    metrics = {name: _mean(results, lambda result, name=name: result["median"][name]) for name in METRICS}  # type: ignore[misc]
    difference = None if metrics["AP"] is None or reference is None else metrics["AP"] - reference
    is_base = setting.name == BASELINE
    return {
        "setting": setting.name,
        "group": setting.group,
        "title": setting.title,
        "runs": len(results),
        "parameters": _mean(results, lambda result: result["parameters"]),
        **metrics,
        "difference": None if is_base else difference,
        "resolved": None if is_base or difference is None else resolved(difference, spread),
        "layers": results[0].get("layers") if results and is_base else None,
        "layers_nms": results[0].get("layers_nms") if results and is_base else None,
        "published": _published(setting.published),
    }


def _detector(setting: Setting, results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A row: the last evaluation, averaged over the seeds."""
    is_detr = setting.name == BASELINE
    published = Published(42.0, source="DETR paper, 500 epochs", further=_DETR_500) if is_detr else setting.published
    return {
        "setting": setting.name,
        "title": "DETR" if is_detr else setting.title,
        "designed": _DETR if is_detr else setting.designed,
        "runs": len(results),
        "images": _mean(results, lambda result: result["images"]),
        "parameters": _mean(results, lambda result: result["parameters"]),
        "operations": _mean(results, lambda result: result["operations"]),
        "seconds_per_image": _mean(results, lambda result: result["seconds_per_image"]),
        **{name: _mean(results, lambda result, name=name: result["last"][name]) for name in METRICS},  # type: ignore[misc]
        "nms": _mean(results, lambda result: result["nms"]),
        "no_nms": _mean(results, lambda result: result["no_nms"]),
        "published": _published(published),
    }


_DETR_500 = {"AP50": 62.4, "AP_S": 20.5, "AP_M": 45.8, "AP_L": 61.1}


def _published_detector(title: str, published: Published) -> dict[str, Any]:
    """A row of a detector that was not trained here."""
    measured = ("images", "parameters", "operations", "seconds_per_image", *METRICS, "nms", "no_nms")
    about = {"setting": None, "title": title, "designed": YOLO_PARTS, "runs": 0}
    return about | dict.fromkeys(measured) | {"published": _published(published)}


def _published(published: Published | None) -> dict[str, Any] | None:
    if published is None:
        return None
    further = {name: published.further.get(name) for name in _FURTHER}
    return {"AP": published.ap, "difference": published.difference, **further, "source": published.source}


# ------------------------------------------------------------------------------------------------------------- writing


def write_tables(study: Study) -> dict[str, Any]:
    """Write the tables of a study as JSON and Markdown, and their chart, to its folder. Returns their content."""
    content = tables(study)
    json_file, markdown_file, chart_file = (study.folder / name for name in TABLE_FILES)
    write_atomically(json_file, json.dumps(content, indent=1) + "\n")
    write_atomically(markdown_file, markdown(content))
    save_image(draw_study(content), chart_file)
    return content


def markdown(content: Mapping[str, Any]) -> str:
    """Both tables as Markdown."""
    spread = content["spread"]
    rule = "The baseline has too few runs to tell which differences are more than chance."
    if spread is not None:
        rule = f"The baseline's runs spread over {spread:.3f} AP. A difference below twice that is {NOT_RESOLVED}."
    length = "the epochs of each recipe" if content["images"] is None else f"{content['images']:,} images a run"
    lines = [
        f"Scale {content['scale']}, data {content['data']}, {length}. AP of published results is times 100.",
        "",
        "## Ablations",
        "",
        f"The median of the last {LAST} evaluations. {rule}",
        "",
        *_rows(_ABLATION_COLUMNS, content["ablations"]),
        *_layer_lines(content["ablations"][0]),
        "",
        "## Detectors",
        "",
        "The last evaluation.",
        "",
        *_rows(_DETECTOR_COLUMNS, content["detectors"]),
    ]
    return "\n".join(lines) + "\n"


def _layer_lines(baseline: Mapping[str, Any]) -> list[str]:
    """AP of the baseline after each of its decoder layers, if it is known."""
    if baseline["layers"] is None:
        return []
    layers, with_nms = (", ".join(map(_number, baseline[name])) for name in ("layers", "layers_nms"))
    text = f"The first run of the baseline after each of its decoder layers: AP {layers}; with NMS {with_nms}."
    return ["", f"{text} In the DETR paper, AP rises by 8.2 over six layers, and NMS only helps the first ones."]


def _rows(columns: Mapping[str, Callable[[Mapping[str, Any]], str]], rows: Sequence[Mapping[str, Any]]) -> list[str]:
    cells = [list(columns), ["---"] * len(columns), *([cell(row) for cell in columns.values()] for row in rows)]
    return [f"| {' | '.join(line)} |" for line in cells]


def _number(value: float | None, form: str = ".3f") -> str:
    return "-" if value is None else format(value, form)


def _millions(value: float | None) -> str:
    return "-" if value is None else f"{value / 1e6:.2f} M"


def _billions(value: float | None) -> str:
    return "-" if value is None else f"{value / 1e9:.2f} G"


def difference_text(row: Mapping[str, Any]) -> str:
    """The difference of a row to the baseline, or that it is not resolved."""
    if row["difference"] is None:
        return "-"
    text = f"{row['difference']:+.3f}"
    return text if row["resolved"] else f"{text}, {NOT_RESOLVED}"


def _of_paper(name: str, form: str) -> Callable[[Mapping[str, Any]], str]:
    return lambda row: "-" if row["published"] is None else _number(row["published"][name], form)


def _source(row: Mapping[str, Any]) -> str:
    return "-" if row["published"] is None else row["published"]["source"]


def _metric(name: str) -> Callable[[Mapping[str, Any]], str]:
    return lambda row: _number(row[name])


_METRIC_COLUMNS = {name: _metric(name) for name in ("AP", "AP50", "AP_S", "AP_M", "AP_L")}
_ABLATION_COLUMNS: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "setting": lambda row: row["setting"],
    "group": lambda row: row["group"],
    "what it is": lambda row: row["title"],
    "runs": lambda row: str(row["runs"]),
    "parameters": lambda row: _millions(row["parameters"]),
    **_METRIC_COLUMNS,
    "difference": difference_text,
    "published AP": _of_paper("AP", ".1f"),
    "published difference": _of_paper("difference", "+.1f"),
    "published by": _source,
}
_DETECTOR_COLUMNS: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "detector": lambda row: row["title"],
    "designed parts": lambda row: row["designed"],
    "runs": lambda row: str(row["runs"]),
    "images": lambda row: _number(row["images"], ",.0f"),
    "parameters": lambda row: _millions(row["parameters"]),
    "operations": lambda row: _billions(row["operations"]),
    "seconds an image": lambda row: _number(row["seconds_per_image"], ".4f"),
    **_METRIC_COLUMNS,
    "AP with NMS": _metric("nms"),
    "AP without NMS": _metric("no_nms"),
    "published AP": _of_paper("AP", ".1f"),
    **{f"published {name}": _of_paper(name, ".1f") for name in _FURTHER},
    "published by": _source,
}


def draw_study(content: Mapping[str, Any]) -> Image.Image:
    """Bars of the AP of every setting and detector, measured and published."""
    rows = [*content["ablations"], *content["detectors"][1:]]
    names = [row["setting"] or row["title"] for row in rows]
    published = [row["published"]["AP"] if row["published"] else None for row in rows]
    series = {
        f"here ({content['scale']})": {name: row["AP"] for name, row in zip(names, rows, strict=True)},
        "published (COCO)": {
            name: None if value is None else value / 100 for name, value in zip(names, published, strict=True)
        },
    }
    return draw_bars(series, "AP of all settings and detectors")
