"""The parameters and operations of a detector by part, and its speed.

An operation is a multiplication with its addition, as in the tables of the DETR papers, which call them FLOPs. Counted
are convolutions, linear layers and the products of attention; sampling of deformable attention is not.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from opendetr.inference import Predictor
from opendetr.presets import Preset
from opendetr.structures import ImageBatch
from opendetr.visualize import draw_bars

PARTS = {
    "backbone": "CNN",
    "encoder": "transformer encoder",
    "decoder": "transformer decoder",
    "heads": "classes, boxes and masks",
    "other": "projection to the transformer, learned queries",
}
"""The parts of a detector, each with its meaning."""


@dataclass(frozen=True)
class Published:
    """The paper's numbers for a model (Carion et al., 2020, table 1), and ours.

    Attributes:
        name: of the model in the catalogue.
        billions: billions of operations for an image, in the paper the mean over 100 images of COCO.
        frames: images per second on a V100.
        millions: millions of parameters.
        counted: billions of operations that `count_operations` gives for an image of `PUBLISHED_SIZE`.
    """

    name: str
    billions: float
    frames: float
    millions: float
    counted: float


PUBLISHED_SIZE = (800, 1066)
"""Height and width in pixels of most images of COCO val2017 in the published size."""
PUBLISHED = (
    Published("detr-r50", 86, 28, 41, 81.2),
    Published("detr-r50-dc5", 187, 12, 41, 173.3),
    Published("detr-r101", 152, 20, 60, 144.7),
    Published("detr-r101-dc5", 253, 10, 60, 236.7),
)
"""The four variants of the DETR paper."""


@dataclass(frozen=True)
class PartCost:
    """The cost of a part.

    Attributes:
        parameters: number of parameters.
        trained: number of parameters that are trained.
        operations: number of operations for one image.
    """

    parameters: int
    trained: int
    operations: int


@dataclass(frozen=True)
class Cost:
    """The cost of a detector.

    Attributes:
        parts: the cost of each of `PARTS`.
        size: height and width in pixels of the image that the operations are for.
        seconds_per_image: measured, of the model and its post-processing; None if it was not measured.
        device: the device of the measurement.
    """

    parts: dict[str, PartCost]
    size: tuple[int, int]
    seconds_per_image: float | None
    device: str

    @property
    def total(self) -> PartCost:
        """The cost of all parts together."""
        parts = self.parts.values()
        return PartCost(
            sum(part.parameters for part in parts),
            sum(part.trained for part in parts),
            sum(part.operations for part in parts),
        )


def analyse_cost(detector: Predictor, size: tuple[int, int], seconds_per_image: float | None = None) -> Cost:
    """Count the parameters and operations of a detector for an image of a size that the model gets."""
    operations = count_operations(detector.model, size)
    counts = {part: PartCost(*count_parameters(detector.model, part), operations.get(part, 0)) for part in PARTS}
    return Cost(counts, size, seconds_per_image, str(detector.device))


def count_parameters(model: nn.Module, part: str | None = None) -> tuple[int, int]:
    """The number of parameters of a part, by default of all, and of those that are trained."""
    chosen = [parameter for name, parameter in model.named_parameters() if part is None or part_of(name) == part]
    return _total(chosen), _total(parameter for parameter in chosen if parameter.requires_grad)


def _total(parameters: Iterable[nn.Parameter]) -> int:
    return sum(parameter.numel() for parameter in parameters)


def part_of(name: str) -> str:
    """The part that a parameter or module belongs to, by its name in the model."""
    words = name.split(".")
    for part in ("backbone", "encoder", "decoder"):
        if part in words:
            return part
    is_head = any(word.endswith(("head", "heads")) for word in words) or "attention" in words
    return "heads" if is_head else "other"


@torch.no_grad()
def count_operations(
    model: nn.Module, size: tuple[int, int], *, around: AbstractContextManager[object] | None = None
) -> dict[str, int]:
    """The operations of each part for one image of height and width `size`, without padding, and for one mask.

    Args:
        model: the detector.
        size: height and width in pixels of the image that the model gets.
        around: a context in which the image is made and the model runs, such as one without data.
    """
    device = next(model.parameters()).device
    with around or nullcontext(), sdpa_kernel(SDPBackend.MATH):  # fused attention is not counted on every device
        images = ImageBatch(torch.zeros(1, 3, *size, device=device), None, torch.tensor([size], device=device))
        with _Frozen(model):
            with FlopCounterMode(display=False) as counter:
                output = model(images)
            with FlopCounterMode(display=False) as of_masks:
                if output.masks is not None:
                    first = torch.zeros(1, dtype=torch.int64, device=device)
                    output.masks(first, first)
    parts = _by_part({name: sum(counts.values()) for name, counts in counter.get_flop_counts().items()})
    return parts | {"heads": parts.get("heads", 0) + of_masks.get_total_flops() // 2}


def _by_part(totals: dict[str, int]) -> dict[str, int]:
    """The operations of each part: each module's own, without those of the modules inside it.

    Args:
        totals: the floating point operations of each module, two for a multiplication with its addition, by its name
            after that of the model's class.
    """
    own = {name: count for name, count in totals.items() if name != "Global"}
    for name, count in totals.items():
        if name == "Global":
            continue
        outer = name
        while "." in outer:
            outer = outer.rpartition(".")[0]
            if outer in own:
                own[outer] -= count
                break
    parts: dict[str, int] = {}
    for name, count in own.items():
        part = part_of(name.partition(".")[2])
        parts[part] = parts.get(part, 0) + count // 2
    return parts


class _Frozen:
    """A context in which no parameter needs a gradient, which the counter of operations requires."""

    def __init__(self, model: nn.Module) -> None:
        self._parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]

    def __enter__(self) -> None:
        for parameter in self._parameters:
            parameter.requires_grad_(False)

    def __exit__(self, *error: object) -> None:
        for parameter in self._parameters:
            parameter.requires_grad_(True)


def input_size(preset: Preset, height: int, width: int) -> tuple[int, int]:
    """The height and width of the model's input for an image of a size."""
    return preset.data.evaluation_transform().output_shape(height, width, np.random.default_rng(0))


def draw_cost(cost: Cost) -> Image.Image:
    """Bars of the shares of the parts in parameters and operations."""
    total = cost.total
    shares = {
        "parameters": {name: part.parameters / max(total.parameters, 1) for name, part in cost.parts.items()},
        "operations": {name: part.operations / max(total.operations, 1) for name, part in cost.parts.items()},
    }
    return draw_bars(shares, "Share of each part in parameters and operations")
