"""Weights and inputs by rule: a golden file holds names, shapes and results; their numbers are made here."""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from opendetr.losses import LossTerm, SetCriterion
from opendetr.structures import ImageBatch, Output, Target

FOLDER = Path(__file__).parent / "goldens"


def _generator(name: str) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(zlib.crc32(name.encode())))


def rule(name: str, shape: list[int]) -> Tensor:
    """The value of the parameter or buffer with this official name."""
    values = _generator(name).standard_normal(tuple(shape), dtype=np.float32)
    leaf = name.rsplit(".", 1)[-1]
    if leaf == "running_var":
        values = 1.0 + 0.1 * np.abs(values)
    elif leaf == "running_mean" or "bias" in leaf:
        values = 0.1 * values
    elif len(shape) >= 2:
        values = values / np.float32(math.sqrt(np.prod(shape[1:])))
    else:
        values = 1.0 + 0.1 * values
    return torch.from_numpy(np.asarray(values, dtype=np.float32))


def image(name: str, height: int, width: int) -> Tensor:
    """A normalised image (3, h, w)."""
    return torch.from_numpy(_generator(name).standard_normal((3, height, width), dtype=np.float32))


def objects(name: str, count: int, num_classes: int) -> tuple[Tensor, Tensor]:
    """Labels (n,) and boxes (n, 4) cxcywh in 0..1."""
    generator = _generator(name)
    labels = generator.integers(0, num_classes, count)
    sizes = generator.uniform(0.05, 0.5, (count, 2))
    centers = generator.uniform(sizes / 2, 1 - sizes / 2)
    return torch.from_numpy(labels), torch.from_numpy(np.concatenate([centers, sizes], 1).astype(np.float32))


def target(labels: Tensor, boxes: Tensor, size: tuple[int, int] = (1, 1)) -> Target:
    """A target with only what losses read."""
    return Target(labels.long(), boxes.float(), size, size, 0)


class Golden:
    """One golden: its JSON under `[...]`, its arrays as tensors under `.arrays[...]`."""

    def __init__(self, name: str) -> None:
        record: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text())
        self.record = record | record.get("scalars", {})
        with np.load(FOLDER / f"{name}.npz") as arrays:
            self.arrays = {key: torch.from_numpy(arrays[key]) for key in arrays}

    def __getitem__(self, key: str) -> Any:
        return self.record[key]

    def state(self) -> dict[str, Tensor]:
        """The state dict under the official names."""
        gains = self["gains"]
        state = {key: rule(key, shape) * gains.get(key, 1.0) for key, shape in self["keys"]}
        return state | {key: self.arrays[f"override/{key}"] for key in self["overrides"]}

    def images(self) -> ImageBatch:
        """The padded batch."""
        return ImageBatch.from_images([image(i["name"], i["h"], i["w"]) for i in self["inputs"]["images"]])

    def targets(self) -> list[Target]:
        """The objects of each image."""
        rows = self["inputs"]["targets"]
        return [target(*objects(row["name"], row["n"], row["num_classes"])) for row in rows]

    def masked_targets(self) -> list[Target]:
        """The objects of each image with their masks, which the arrays hold as bits."""
        sizes = [(image["h"], image["w"]) for image in self["inputs"]["images"]]
        return [
            replace(found, size=size, masks=self._bits(f"target{index}_masks_packed", size))
            for index, (found, size) in enumerate(zip(self.targets(), sizes, strict=True))
        ]

    def _bits(self, name: str, size: tuple[int, int]) -> Tensor:
        """Rows of bits as masks (n, h, w) bool."""
        bits = np.unpackbits(self.arrays[name].numpy(), axis=1, count=size[0] * size[1])
        return torch.from_numpy(bits).bool().unflatten(1, size)


def set_losses(criterion: SetCriterion, output: Output, targets: Sequence[Target]) -> dict[str, Tensor]:
    """The set loss of an output, matched and normalised by itself."""
    normaliser = criterion.normaliser([len(target) for target in targets], output.final.logits.shape[1])
    return criterion(output, targets, criterion.match(output, targets), normaliser)


def weighted_total(term: LossTerm, losses: Mapping[str, Tensor]) -> Tensor:
    """The weighted sum of a term's losses over names and layers."""
    return torch.stack([weight * losses[name].sum() for name, weight in term.weights.items()]).sum()
