"""`opendetr demo`."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from opendetr.cli.output import DeviceOption, JsonOption, command, folder_to_write, number, print_json, say

if TYPE_CHECKING:
    from PIL import Image

    from opendetr.data import DetectionData
    from opendetr.inference import Predictor

PAGE = "index.html"
_MODEL = "deformable-detr-tiny-panoptic"
_SPLIT, _SEED = "val", 0  # training scenes are of another split, so the detector has not seen these scenes
_NUM_SHOWN = 8
_TEXT = 1.6  # labels are legible where an image of the page is 360 pixels wide, as on a phone


@command
def demo(
    out: Annotated[Path, typer.Option(callback=folder_to_write, help="The folder for the scenes and the page.")] = Path(
        "opendetr-demo"
    ),
    images: Annotated[int, typer.Option(min=1, help="Number of scenes to evaluate on.")] = 300,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Evaluate the detector of the package on newly drawn scenes, and write a page with the results.

    Examples:

        opendetr demo

        opendetr demo --out /tmp/demo --images 50 --json
    """
    from opendetr.data.formats import open_split
    from opendetr.evaluation import write_report
    from opendetr.inference import load
    from opendetr.synthetic import write_scenes
    from opendetr.visualize import progress_bar

    began = time.monotonic()
    detector = load(_MODEL, device=device)
    with progress_bar("drawing") as progress:
        write_scenes(out / "scenes", counts={_SPLIT: images}, seed=_SEED, progress=progress)
    data = open_split(out / "scenes", _SPLIT, masks="auto" if detector.has_masks else "none")
    say(f"{data.size()}, not used in training")
    with progress_bar("evaluating") as progress:
        scores = detector.evaluate(data, layers=True, progress=progress)
    size = sum(parameter.numel() for parameter in detector.model.parameters())
    facts = {
        "model": f"{_MODEL}, {size / 1e6:.1f} million parameters",
        "data": f"{len(data)} drawn scenes, {data.num_objects:,} objects, not used in training",
        "AP by decoder layer": ", ".join(map(number, scores.per_layer)),
        "time": f"{1000 * scores.seconds_per_image:.0f} ms per image on {detector.device}",
    }
    images_shown = list(_images_shown(detector, data))
    quality = {name: of_class["PQ"] for name, of_class in scores.panoptic_per_class.items()}
    page = write_report(
        out / PAGE,
        "OpenDETR demo",
        scores.metrics,
        scores.per_class,
        images_shown,
        panoptic_per_class=quality,
        facts=facts,
    )
    seconds = time.monotonic() - began
    if as_json:
        print_json({"page": str(page), "images": len(data), "seconds": seconds, "metrics": scores.metrics,
                "per_class": scores.per_class, "per_layer": scores.per_layer,
                "seconds_per_image": scores.seconds_per_image})  # fmt: skip
    else:
        shown = (f"{name} {number(scores.metrics[name])}" for name in ("AP", "AP50", "PQ") if name in scores.metrics)
        print(f"{', '.join(shown)} on {len(data)} unseen scenes")
        print(page)


def _images_shown(detector: Predictor, data: DetectionData) -> Iterator[tuple[str, list[tuple[str, Image.Image]]]]:
    """Yield a caption and the images of ground truth and prediction, for scenes spread over the data."""
    from opendetr.inference import comparisons

    chosen = data.images[:: max(1, len(data) // _NUM_SHOWN)][:_NUM_SHOWN]
    for record, images in comparisons(detector, data, chosen, text=_TEXT):
        yield f"Scene {record.id}", images
