"""A panoptic map from detr-r50-panoptic at 800x1066, compared with DetrForSegmentation of transformers.

Both have the same weights. These are random, except the biases of the classes: they are set so that 20 of the 100
queries pass. Time is that of one image, from the normalised pixels to the map. Memory is the growth of a fresh process
over the model and the image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from opendetr.bench.figure import Figure
from opendetr.bench.measuring import in_fresh_process, interleaved, peak_bytes_above
from opendetr.categories import coco_panoptic_categories
from opendetr.export import export_huggingface
from opendetr.inference import load
from opendetr.postprocess import candidates, image_masks
from opendetr.presets import build_model, get_preset
from opendetr.scoring import SoftmaxNoObject
from opendetr.structures import ImageBatch

_HEIGHT, _WIDTH = 800, 1066
_PASSING = 20
_CLASS = 1  # a thing, so that no two segments are merged

Run = Callable[[], Any]


def measure(repeats: int) -> Iterator[Figure]:
    """Yield seconds, then memory."""
    contestants: dict[str, Callable[[Path], Run]] = {"opendetr": _ours, "transformers": _theirs}
    with TemporaryDirectory() as parent:
        folder = Path(parent) / "model"
        _write(folder)
        runs = {name: contestant(folder) for name, contestant in contestants.items()}
        seconds = interleaved(runs, repeats)
        yield Figure.of_seconds("one image", seconds, expected=3.0)
        peaks = [
            in_fresh_process(_peak_bytes, contestant, folder, torch.get_num_threads())
            for contestant in contestants.values()
        ]
        yield Figure.of_bytes("memory, one image", peaks[0], "transformers", peaks[1], expected=3.0)


def _pixels() -> Tensor:
    return torch.randn(1, 3, _HEIGHT, _WIDTH, generator=torch.Generator().manual_seed(0))


def _write(folder: Path) -> None:
    """Write the model in the layout that both load."""
    torch.manual_seed(0)
    preset, categories = get_preset("detr-r50-panoptic"), coco_panoptic_categories()
    model = build_model(preset, len(categories)).eval()
    bias = model.get_parameter(model.class_rows[1])
    with torch.inference_mode():
        logits = model(ImageBatch.from_images(list(_pixels()))).final.logits[0]
    lead, _ = (logits[:, _CLASS] - logits[:, -1]).sort(descending=True)
    middle = (lead[_PASSING - 1] + lead[_PASSING]) / 2
    with torch.no_grad():
        bias[_CLASS] += 30.0  # over all other classes
        bias[-1] += 30.0 + middle - torch.tensor(model.scoring.panoptic_score).logit()
    export_huggingface(model, preset, categories, folder)


def _ours(folder: Path) -> Run:
    detector = load(folder, device="cpu")
    model, images = detector.model, ImageBatch.from_images(list(_pixels()))
    sizes = torch.tensor([[_HEIGHT, _WIDTH]])

    @torch.inference_mode()
    def run() -> Any:
        output = model(images)
        found = candidates(output.final, detector.categories)
        assert len(found[0]) == _PASSING
        return image_masks(output, images, sizes, found=found)[0].panoptic(detector.categories)

    return run


def _theirs(folder: Path) -> Run:
    from transformers import DetrForSegmentation, DetrImageProcessor

    model = DetrForSegmentation.from_pretrained(folder).eval()
    processor, pixels = DetrImageProcessor.from_pretrained(folder), _pixels()
    mask = torch.ones(1, _HEIGHT, _WIDTH, dtype=torch.int64)

    @torch.inference_mode()
    def run() -> Any:
        output = model(pixel_values=pixels, pixel_mask=mask)
        return processor.post_process_panoptic_segmentation(
            output, threshold=SoftmaxNoObject.panoptic_score, label_ids_to_fuse=set(), target_sizes=[(_HEIGHT, _WIDTH)]
        )

    return run


def _peak_bytes(contestant: Callable[[Path], Run], folder: Path, num_threads: int) -> int:
    torch.set_num_threads(num_threads)
    return peak_bytes_above(contestant(folder))
