"""`opendetr demo`."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from opendetr.cli.output import DEFAULT_MODEL, JsonOption, answer, command, number, progress_bar, say

if TYPE_CHECKING:
    from PIL import Image

    from opendetr.data.records import DetectionData, ImageRecord
    from opendetr.predictor import Predictor

    Pair = tuple[Image.Image, Image.Image]

PAGE = "index.html"
_SPLIT, _SEED = "val", 0  # training scenes are of another split, so that none of these was ever seen
_NUM_PICTURES = 12
_SHOWN_SCORE = 0.3


@command
def demo(
    out: Annotated[Path, typer.Option(help="Where the scenes and the page go.")] = Path("opendetr-demo"),
    images: Annotated[int, typer.Option(min=1, help="How many scenes to score on.")] = 300,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    as_json: JsonOption = False,
) -> None:
    """Draw unseen scenes, find the objects with the detector that comes with the package, and show how well it does.

    Examples:

        opendetr demo

        opendetr demo --out /tmp/demo --images 50 --json
    """
    from opendetr.data.formats import open_split
    from opendetr.data.scenes import write_scenes
    from opendetr.predictor import load
    from opendetr.report import write_report

    began = time.monotonic()
    detector = load(DEFAULT_MODEL, device=device)
    with progress_bar("drawing") as progress:
        write_scenes(out / "scenes", counts={_SPLIT: images}, seed=_SEED, progress=progress)
    data = open_split(out / "scenes", _SPLIT, masks="auto" if detector.has_masks else "none")
    say(f"{data.summary()}")
    with progress_bar("evaluating") as progress:
        scores = detector.evaluate(data, layers=True, progress=progress)
    size = sum(parameter.numel() for parameter in detector.model.parameters())
    facts = {
        "model": f"{DEFAULT_MODEL}, {size / 1e6:.1f} million parameters",
        "data": f"{len(data)} drawn scenes, {data.num_objects:,} objects, none of them seen in training",
        "AP by decoder layer": ", ".join(map(number, scores.per_layer)),
        "time": f"{1000 * scores.seconds_per_image:.0f} ms an image on {detector.device}",
    }
    pictures = list(_pictures(detector, data))
    quality = {name: of_class["PQ"] for name, of_class in scores.panoptic_per_class.items()}
    page = write_report(
        out / PAGE,
        "OpenDETR demo",
        scores.metrics,
        scores.per_class,
        pictures,
        panoptic_per_class=quality,
        facts=facts,
    )
    seconds = time.monotonic() - began
    if as_json:
        answer({"page": str(page), "images": len(data), "seconds": seconds, "metrics": scores.metrics,
                "per_class": scores.per_class, "per_layer": scores.per_layer,
                "seconds_per_image": scores.seconds_per_image})  # fmt: skip
    else:
        shown = (f"{name} {number(scores.metrics[name])}" for name in ("AP", "AP50", "PQ") if name in scores.metrics)
        print(f"{', '.join(shown)} on {len(data)} unseen scenes")
        print(page)


def _pictures(detector: Predictor, data: DetectionData) -> Iterator[tuple[str, Image.Image]]:
    """Truth beside prediction for scenes spread over the data; with panoptic maps, where the detector gives them."""
    from opendetr.visualize import contact_sheet

    chosen = data.images[:: max(1, len(data) // _NUM_PICTURES)][:_NUM_PICTURES]
    rows = [_with_boxes(detector, data, chosen)]
    if detector.has_masks:
        rows.append(_with_maps(detector, data, chosen))
    for record, *pairs in zip(chosen, *rows, strict=True):
        titles = ("truth", "prediction") * len(pairs)
        yield f"Scene {record.id}", contact_sheet([picture for pair in pairs for picture in pair], 2, titles)


def _with_boxes(detector: Predictor, data: DetectionData, chosen: Sequence[ImageRecord]) -> Iterator[Pair]:
    from opendetr.data.images import read_record
    from opendetr.visualize import draw_detections, draw_truth

    categories = data.categories
    stream = detector.predict([record.path for record in chosen], min_score=_SHOWN_SCORE)
    for record, found in zip(chosen, stream, strict=True):
        things = [each for each in record.objects if categories.isthing[categories.label_of_id(each.category_id)]]
        yield draw_truth(read_record(record), things, categories), draw_detections(found)


def _with_maps(detector: Predictor, data: DetectionData, chosen: Sequence[ImageRecord]) -> Iterator[Pair]:
    from opendetr.data.images import read_record
    from opendetr.data.masks import panoptic_truth
    from opendetr.visualize import draw_panoptic, draw_segments

    stream = detector.predict([record.path for record in chosen], panoptic=True)
    assert isinstance(stream, Iterator)  # of several pictures
    for record, found in zip(chosen, stream, strict=True):
        segments, info = panoptic_truth(record, data.categories)
        labels = {segment.id: segment.label for segment in info}
        truth = draw_segments(read_record(record), segments, labels, data.categories)
        yield truth, draw_panoptic(found)
