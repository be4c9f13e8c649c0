"""The page, the charts and the file of numbers of an analysis."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from PIL import Image

from opendetr.analysis.cost import PUBLISHED, Cost, draw_cost
from opendetr.analysis.errors import KINDS, draw_errors
from opendetr.analysis.intervals import Estimate, draw_intervals
from opendetr.analysis.layers import LayerScores, NoObjectScores, draw_layers
from opendetr.analysis.many import ManyOfOne, draw_many
from opendetr.analysis.objects import ObjectFacts, draw_objects
from opendetr.analysis.overview import Analysed, Analysis
from opendetr.analysis.queries import QueryFacts, draw_queries
from opendetr.evaluation import (
    Section,
    chart_figure,
    detection_sections,
    images_section,
    note,
    operation_charts,
    value_table,
    write_page,
)
from opendetr.files import json_value, write_atomically
from opendetr.visualize import save_image

PAGE, NUMBERS = "index.html", "analysis.json"
"""The names of the page and of the file with all numbers."""
_CHARTS = "charts"
_COCO = "COCO: 7 objects in an image, at most 63"


def draw_charts(analysed: Analysed, *, num_queries: int | None = 20) -> dict[str, Image.Image]:
    """The chart of each analysis by the name of its file; `num_queries` as in `draw_queries`."""
    analysis = analysed.analysis
    charts = {
        "ap": draw_intervals(analysis.intervals),
        "errors": draw_errors(analysis.errors),
        **operation_charts(analysis.operation),
        "layers": draw_layers(analysis.layers),
        "queries": draw_queries(analysed.collected.query_boxes, num_queries),
        "objects": draw_objects(analysis.objects),
        "cost": draw_cost(analysis.cost),
    }
    if analysis.many is not None and analysed.many_image is not None:
        charts |= {"many": draw_many(analysis.many), "many-image": analysed.many_image}
    return charts


def write_analysis(
    folder: str | Path,
    analysed: Analysed,
    *,
    num_queries: int | None = 20,
    sections: Sequence[Section] = (),
) -> Path:
    """Write the page, a PNG file of each chart and a JSON file of all numbers.

    Args:
        folder: the folder; it is created if missing, and files of the same names are replaced.
        analysed: the result of `analyse`.
        num_queries: number of queries that are drawn; None for all.
        sections: further parts of the page, shown first.

    Returns:
        The path of the page.

    Raises:
        OSError: a file cannot be written.
    """
    folder = Path(folder)
    charts = draw_charts(analysed, num_queries=num_queries)
    (folder / _CHARTS).mkdir(parents=True, exist_ok=True)
    for name, chart in charts.items():
        save_image(chart, folder / _CHARTS / f"{name}.png")
    content = json.dumps(json_value(analysed.analysis.to_dict()), indent=1, allow_nan=False)
    write_atomically(folder / NUMBERS, content)
    own = list(_sections(analysed, charts))
    return write_page(
        folder / PAGE, f"Analysis of {analysed.analysis.model}", [*sections, *own], facts=_facts(analysed)
    )


def _facts(analysed: Analysed) -> dict[str, object]:
    analysis, data = analysed.analysis, analysed.collected.data
    facts: dict[str, object] = {
        "data": f"{data.folder.name}, {data.split}: {data.size()}",
        "AP": with_interval(analysis.intervals.metrics["AP"]),
        "AP50": with_interval(analysis.intervals.metrics["AP50"]),
        "parameters": f"{analysis.cost.total.parameters / 1e6:.1f} million",
        "speed": _speed(analysis.cost),
    }
    if analysis.unreadable:
        facts["unreadable images"] = len(analysis.unreadable)
    return facts


def _speed(cost: Cost) -> str:
    seconds = cost.seconds_per_image
    return f"{1 / seconds:.1f} images per second on {cost.device}" if seconds else "-"


def with_interval(estimate: Estimate) -> str:
    """A metric with its interval as text: "0.412 (0.381 to 0.440)"."""
    if estimate.value is None:
        return "-"
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:.3f}"
    return f"{estimate.value:.3f} ({estimate.low:.3f} to {estimate.high:.3f})"


def _sections(analysed: Analysed, charts: Mapping[str, Image.Image]) -> Iterator[Section]:
    analysis = analysed.analysis
    resamples = analysis.intervals.resamples
    yield (
        "Certainty",
        note(
            "Another set of images of the same kind would give another AP. The interval contains the AP on all such "
            f"images with a probability of 95 % ({resamples:,} resamples of the images)."
        )
        + chart_figure(charts["ap"], "AP of all objects, by size and by class, with 95 % intervals"),
    )
    yield "Errors", _errors_section(analysis, charts)
    yield from detection_sections(analysed.collected, analysis.operation, charts)
    yield "Decoder layers", _layers_section(analysis.layers, charts)
    yield "No object", _no_object_section(analysis.no_object)
    yield "Queries", _queries_section(analysis.queries, charts)
    yield "Dataset", _objects_section(analysis.objects, charts)
    yield "Many of one class", _many_section(analysis.many, charts)
    yield "Cost", _cost_section(analysis.cost, charts)


def _errors_section(analysis: Analysis, charts: Mapping[str, Image.Image]) -> str:
    errors = analysis.errors
    by_size = (f"lost, {name}" for name in analysis.errors_by_size)
    head = ("kind", "meaning", "errors", "AP50 lost", *by_size, "AP50 after")
    rows = [
        (
            kind,
            meaning,
            errors.counts[kind],
            errors.lost[kind],
            *(each.lost[kind] for each in analysis.errors_by_size.values()),
            errors.fixed[kind],
        )
        for kind, meaning in KINDS.items()
    ]
    text = (
        'AP50 rises by the value in the column "AP50 lost" if only this kind of error is fixed; the columns by size '
        'are those of objects of this size only. "AP50 after" is AP50 after this kind and all above it are fixed. '
        "Kinds and rules are those of TIDE (Bolya et al., 2020). Most errors have low scores and cost little."
    )
    ends = value_table(
        ("", "AP50"),
        [
            ("with all errors", errors.ap50),
            ("without incorrect detections", (errors.ap50 or 0.0) + errors.false_positives),
            ("without missed objects", (errors.ap50 or 0.0) + errors.false_negatives),
        ],
    )
    return (
        note(text) + chart_figure(charts["errors"], "AP50 lost to each kind of error") + value_table(head, rows) + ends
    )


def _layers_section(layers: LayerScores, charts: Mapping[str, Image.Image]) -> str:
    columns = zip(layers.ap, layers.ap_nms, layers.ap50, layers.ap50_nms, layers.dropped, strict=True)
    rows = [(str(number), *values) for number, values in enumerate(columns, 1)]
    text = (
        "In the DETR paper, AP rises by 8.2 points from the first to the last decoder layer. NMS (IoU 0.5, within each "
        "class) improves the first layers, whose queries cannot yet see what the others predict, and harms the last."
    )
    head = ("decoder layer", "AP", "AP with NMS", "AP50", "AP50 with NMS", "dropped by NMS")
    return note(text) + chart_figure(charts["layers"], "AP after each decoder layer") + value_table(head, rows)


def _no_object_section(scores: NoObjectScores | None) -> str:
    if scores is None:
        return note('The model has a score for each class and no class "no object", so this rule does not apply to it.')
    text = (
        'A query whose most probable class is "no object" is kept with its second best class. AP does not punish '
        "detections with low scores, and the paper gains about 2 points."
    )
    rows = [
        ("kept with the second best class (published)", scores.ap, scores.ap50),
        (f"dropped ({scores.dropped:.0%} of the detections)", scores.ap_strict, scores.ap50_strict),
    ]
    return note(text) + value_table(('queries with "no object"', "AP", "AP50"), rows)


def _queries_section(queries: QueryFacts, charts: Mapping[str, Image.Image]) -> str:
    of_proposals = (
        "" if queries.learned else " The queries of this model are proposals of the encoder: query 0 is the best one."
    )
    text = (
        "Each point is the centre of the box that the query predicts in one image, with a high or a low score. In the "
        "DETR paper, each query specialises in areas and sizes, and almost all have a mode of image-sized boxes."
        f"{of_proposals}"
    )
    rows = [
        ("queries", queries.num_queries),
        ("queries of whose boxes at least 1 % are image-sized", f"{queries.image_sized_queries:.0%}"),
        ("queries that never fire in these images", queries.never_fires),
        ("most queries that fire in one image", queries.most_at_once),
        ("most objects in one image", queries.most_objects),
        ("99 % of the images have at most this many objects", queries.objects_99),
    ]
    return note(text) + chart_figure(charts["queries"], "Boxes by query") + value_table(("", "number"), rows)


def _objects_section(objects: ObjectFacts, charts: Mapping[str, Image.Image]) -> str:
    facts = value_table(
        ("", "number"),
        [
            ("images", objects.images),
            ("objects", objects.objects),
            (f"objects in an image, mean ({_COCO})", objects.per_image),
            ("objects in an image, most", objects.most_per_image),
            (f"of one class in an image, most ({objects.most_of_class_name})", objects.most_of_class),
            *((f"{name} objects", count) for name, count in objects.sizes.items()),
        ],
    )
    rows = [(name, count, objects.images_per_class[name]) for name, count in objects.per_class.items()]
    table = value_table(("class", "objects", "images"), rows)
    return facts + chart_figure(charts["objects"], "Objects per image") + table


def _many_section(many: ManyOfOne | None, charts: Mapping[str, Image.Image]) -> str:
    if many is None:
        return note("The images of this analysis are drawn, and the detector knows no class that can be drawn.")
    text = (
        "Images are drawn with up to 40 objects of one class, at most "
        f"{many.most_in_training} of which occur in a training scene. In the DETR paper, a model finds all of 24 "
        "giraffes although it was trained on images with at most 13: queries do not specialise in classes."
    )
    rows = zip(map(str, many.drawn), many.present, many.found, many.detected, strict=True)
    return (
        note(text)
        + chart_figure(charts["many"], "Objects found against objects present")
        + images_section([("Detections in an image of 24 drawn objects", [("detections", charts["many-image"])])])
        + value_table(("drawn", "visible", "found", "detections"), rows)
    )


def _cost_section(cost: Cost, charts: Mapping[str, Image.Image]) -> str:
    parts = {**cost.parts, "all": cost.total}
    rows = [(name, part.parameters / 1e6, part.trained / 1e6, part.operations / 1e9) for name, part in parts.items()]
    text = (
        f"Operations are multiplications with their additions, for one image of {cost.size[0]} x {cost.size[1]} "
        f"pixels, and one mask if the model has a mask head. Measured speed: {_speed(cost)}."
    )
    published = [(each.name, each.billions, each.counted, each.millions, each.frames) for each in PUBLISHED]
    return (
        note(text)
        + value_table(("part", "parameters in millions", "trained", "operations in billions"), rows)
        + chart_figure(charts["cost"], "Share of each part")
        + note("For comparison, the models of the DETR paper on COCO's images:")
        + value_table(
            ("model", "billions, paper", "counted at 800 x 1066", "parameters in millions", "images per second, V100"),
            published,
        )
    )
