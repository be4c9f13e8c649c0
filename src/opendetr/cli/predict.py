"""`opendetr predict`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from opendetr.cli.output import (
    Exit,
    JsonOption,
    ModelOption,
    WeightsOption,
    answer,
    command,
    progress_bar,
    say,
    write_json,
)

if TYPE_CHECKING:
    from opendetr.structures import Detections

_KEPT_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp"})
RESULTS_FILE = "predictions.json"


@command
def predict(
    sources: Annotated[list[str], typer.Argument(help="Pictures, folders, or patterns such as 'photos/*.jpg'.")],
    weights: WeightsOption = "detr-tiny",
    model: ModelOption = None,
    out: Annotated[Path, typer.Option(help="Where the pictures and predictions.json go.")] = Path("predictions"),
    min_score: Annotated[float, typer.Option(min=0, max=1, help="Leave out detections below this score.")] = 0.5,
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures that go through the model together.")] = 8,
    strict_no_object: Annotated[
        bool, typer.Option("--strict-no-object", help='Leave out queries whose best answer is "no object".')
    ] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    as_json: JsonOption = False,
) -> Exit:
    """Find objects in pictures: draws them, and writes them as COCO JSON.

    Examples:

        opendetr predict photo.jpg --weights runs/detr-tiny

        opendetr predict photos more/*.png --weights detr-r50 --out found --min-score 0.7
    """
    from opendetr.data.records import DataError
    from opendetr.predictor import find_pictures, load

    paths = list(dict.fromkeys(path for source in sources for path in find_pictures(source)))
    detector = load(weights, model=model, device=device, strict_no_object=strict_no_object)
    failures: list[str] = []
    found = _Found(out)
    with progress_bar("predicting") as progress:
        stream = detector.predict(paths, min_score=min_score, batch_size=batch_size, on_unreadable=failures.append)
        for detections in stream:
            found.add(detections)
            progress(len(found.images) + len(failures), len(paths))
    for failure in failures:
        say(f"skipped: {failure}")
    if not found.images:
        raise DataError(failures[0] if len(failures) == 1 else f"none of {len(paths)} pictures can be read")
    found.write(detector.categories.names, detector.categories.ids)
    if as_json:
        answer({"out": str(out), "failed": failures} | found.content)
    else:
        print(f"{len(found.rows)} objects in {len(found.images)} pictures: {out}")
    return Exit.SOME_FAILED if failures else Exit.DONE


class _Found:
    """Saves pictures as they come and keeps their detections for the end."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.images: list[dict[str, Any]] = []
        self.rows: list[dict[str, Any]] = []
        self.content: dict[str, Any] = {}
        self._names: set[str] = set()

    def add(self, detections: Detections) -> None:
        source = Path(str(detections.source))
        name = self._unique(source)
        self.folder.mkdir(parents=True, exist_ok=True)
        detections.plot().save(self.folder / name)
        height, width = detections.size
        image_id = len(self.images) + 1
        self.images.append(
            {"id": image_id, "file_name": str(source), "height": height, "width": width, "picture": name}
        )
        self.rows += detections.to_coco(image_id)

    def write(self, names: Iterable[str], ids: Iterable[int]) -> None:
        """Write `predictions.json`: COCO's tables; `annotations` alone is a COCO results file."""
        categories = [{"id": id_, "name": name} for id_, name in zip(ids, names, strict=True)]
        self.content = {"images": self.images, "categories": categories, "annotations": self.rows}
        write_json(self.folder / RESULTS_FILE, self.content)

    def _unique(self, source: Path) -> str:
        """The picture's own name, with a number where two folders have the same."""
        suffix = source.suffix if source.suffix.lower() in _KEPT_SUFFIXES else ".png"
        name, number = source.stem + suffix, 1
        while name.lower() in self._names:
            number += 1
            name = f"{source.stem}-{number}{suffix}"
        self._names.add(name.lower())
        return name
