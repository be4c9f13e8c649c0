"""`opendetr demo`."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from opendetr.cli.output import DeviceOption, JsonOption, command, folder_to_write, number, print_json, say

if TYPE_CHECKING:
    from opendetr.data import DetectionData, ImageRecord
    from opendetr.inference import Predictor, TitledImages

PAGE = "index.html"
_MODEL, _TEXT_MODEL = "deformable-detr-tiny-panoptic", "mdetr-tiny"
# The scenes of other splits than "train" are not used in training, and those of "test" choose no checkpoint either.
_SPLIT, _TEXT_SPLIT, _SEED = "val", "test", 0
_NUM_SHOWN = 8  # scenes
_TEXT_SHOWN = 6  # scenes, each with its expression, caption and question
_LABELS = 1.6  # labels are legible where an image of the page is 360 pixels wide, as on a phone


@command
def demo(
    out: Annotated[Path, typer.Option(callback=folder_to_write, help="The folder for the scenes and the page.")] = Path(
        "opendetr-demo"
    ),
    images: Annotated[int, typer.Option(min=1, help="Number of scenes to evaluate on.")] = 300,
    text: Annotated[
        bool, typer.Option("--text", help="Evaluate the model that detects what a text names, and answers questions.")
    ] = False,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Evaluate a model of the package on newly drawn scenes, and write a page with the results.

    Examples:

        opendetr demo

        opendetr demo --text --out text-demo

        opendetr demo --out /tmp/demo --images 50 --json
    """
    began = time.monotonic()
    page, headline, record = (_text_demo if text else _detector_demo)(out, images, device)
    if as_json:
        print_json({"page": str(page), "images": images, "seconds": time.monotonic() - began, **record})
    else:
        print(headline)
        print(page)


def _detector_demo(out: Path, images: int, device: str) -> tuple[Path, str, dict[str, Any]]:
    """Make the page of the detector. Returns its path, a line with the main results, and all results."""
    from opendetr.analysis import attention_section
    from opendetr.data import spread
    from opendetr.data.formats import open_split
    from opendetr.evaluation import dataset_detections, images_section, report_sections, write_page
    from opendetr.inference import load
    from opendetr.synthetic import write_scenes
    from opendetr.visualize import progress_bar

    detector = load(_MODEL, device=device)
    with progress_bar("drawing") as progress:
        write_scenes(out / "scenes", counts={_SPLIT: images}, seed=_SEED, progress=progress)
    data = open_split(out / "scenes", _SPLIT, masks="auto" if detector.has_masks else "none")
    say(f"{data.size()}, not used in training")
    with progress_bar("evaluating") as progress:
        scores = detector.evaluate(data, layers=True, progress=progress)
    facts = {
        "model": _model(_MODEL, detector),
        "data": f"{len(data)} drawn scenes, {data.num_objects:,} objects, not used in training",
        "time": f"{1000 * scores.seconds_per_image:.0f} ms per image on {detector.device}",
    }
    shown = spread(data.images, _NUM_SHOWN)
    sections = [
        ("Attention", attention_section(detector, data, shown)),
        ("Images", images_section(_images_shown(detector, data, shown))),
        *report_sections(scores, dataset_detections(scores, data)),
    ]
    page = write_page(out / PAGE, "OpenDETR demo", sections, facts=facts)
    names = [name for name in ("AP", "AP50", "PQ") if name in scores.metrics]
    record = {"metrics": scores.metrics, "per_class": scores.per_class, "per_layer": scores.per_layer,
            "seconds_per_image": scores.seconds_per_image}  # fmt: skip
    return page, f"{_values(scores.metrics, names)} on {len(data)} unseen scenes", record


def _text_demo(out: Path, images: int, device: str) -> tuple[Path, str, dict[str, Any]]:
    """Make the page of the model that takes text; the results are those of `_detector_demo`."""
    from opendetr.analysis import attention_section
    from opendetr.data import spread
    from opendetr.data.formats import open_split
    from opendetr.evaluation import blank_expressions, dataset_detections, images_section, report_sections, write_page
    from opendetr.inference import load
    from opendetr.synthetic import write_captioned_scenes
    from opendetr.visualize import progress_bar

    detector = load(_TEXT_MODEL, device=device)
    with progress_bar("drawing") as progress:
        write_captioned_scenes(out / "scenes", counts={_TEXT_SPLIT: images}, seed=_SEED, progress=progress)
    data = open_split(out / "scenes", _TEXT_SPLIT)
    say(f"{images} scenes with an expression, a caption and a question each, not used in training")
    with progress_bar("evaluating") as progress:
        scores = detector.evaluate(data, progress=progress)
    with progress_bar("evaluating with a blank text") as progress:
        blank = detector.metrics(blank_expressions(data), progress=progress)
    facts = {
        "model": _model(_TEXT_MODEL, detector),
        "data": f"{images} drawn scenes with an expression, a caption and a question each, not used in training",
        "P@1 with a blank instead of the expression": number(blank["P@1"]),
        "time": f"{1000 * scores.seconds_per_image:.0f} ms per text on {detector.device}",
    }
    scenes = {record.path for record in spread(data.images, _TEXT_SHOWN)}
    shown = [record for record in data.images if record.path in scenes]
    sections = [
        ("Attention", attention_section(detector, data, shown)),
        ("Images", images_section(_images_shown(detector, data, shown))),
        *report_sections(scores, dataset_detections(scores, data)),
    ]
    page = write_page(out / PAGE, "OpenDETR demo: objects from words", sections, facts=facts)
    record = {"metrics": scores.metrics, "blank": blank, "seconds_per_image": scores.seconds_per_image}
    headline = _values(scores.metrics, ["P@1", "R@1", "accuracy"])
    return page, f"{headline} on {images} unseen scenes; P@1 with a blank text {number(blank['P@1'])}", record


def _model(name: str, detector: Predictor) -> str:
    size = sum(parameter.numel() for parameter in detector.model.parameters())
    return f"{name}, {size / 1e6:.1f} million parameters"


def _values(metrics: Mapping[str, float | None], names: Iterable[str]) -> str:
    return ", ".join(f"{name} {number(metrics[name])}" for name in names)


def _images_shown(
    detector: Predictor, data: DetectionData, records: Iterable[ImageRecord]
) -> list[tuple[str, TitledImages]]:
    """A caption and the images of ground truth and prediction, for each record."""
    from opendetr.inference import comparisons

    shown = comparisons(detector, data, records, text=_LABELS)
    return [(f"Scene {record.path.stem.lstrip('0') or 0}", images) for record, images in shown]
