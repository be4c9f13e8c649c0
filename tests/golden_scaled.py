"""Goldens whose weights by rule are scaled group by group, and the checks that the members with such goldens share."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping

import pytest
import torch
from torch import Tensor

from golden import Golden, image, objects, rule, target
from opendetr.categories import coco_categories
from opendetr.postprocess import detect
from opendetr.structures import ImageBatch, Matches, Predictions, Target
from opendetr.weights.name_maps import Rows, our_name

_LOSSES = {"class": "loss_ce", "l1": "loss_bbox", "giou": "loss_giou"}


class ScaledGolden(Golden):
    """A golden with scaled weights: `weights.scales` holds (pattern, scale, offset), and the first match counts."""

    def state(self) -> dict[str, Tensor]:
        """The state dict under the official names; names that mean one tensor take the value of the first of them."""
        tied = self.record.get("tied_keys", {})
        return {name: self._value(tied.get(name, name), shape) for name, shape in self["state_dict"].items()}

    def _value(self, name: str, shape: list[int]) -> Tensor:
        scales = (
            (scale, offset) for pattern, scale, offset in self["weights"]["scales"] if re.fullmatch(pattern, name)
        )
        scale, offset = next(scales, (1.0, 0.0))
        return rule(name, shape) * scale + offset

    def images(self) -> ImageBatch:
        """The padded batch."""
        return ImageBatch.from_images([image(name, *sizes) for name, sizes in map(_call, self["inputs"]["images"])])

    def targets(self) -> list[Target]:
        """The objects of each image."""
        return [target(*objects(name, *sizes)) for name, sizes in map(_call, self["inputs"]["targets"])]


def _call(text: str) -> tuple[str, list[int]]:
    """ "image('image0', 96, 160, salt)" -> ("image0", [96, 160])."""
    name, *sizes = re.findall(r"'(\w+)'|\b(\d+)\b", text)
    return name[0], [int(size) for _, size in sizes]


def close(actual: Tensor, expected: Tensor, tolerance: float = 1e-4) -> None:
    """Same shape, and nowhere further apart than `tolerance`."""
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max().item() <= tolerance


def check_stages(golden: Golden, stages: Mapping[str, Tensor]) -> None:
    """Shape and statistics of what is between image and predictions."""
    assert stages.keys() == golden["stages"].keys()
    for name, expected in golden["stages"].items():
        assert list(stages[name].shape) == expected["shape"], name
        for statistic, value in _statistics(stages[name]).items():
            if statistic in expected:
                assert value == pytest.approx(expected[statistic], rel=1e-4, abs=1e-4), (name, statistic)


def _statistics(values: Tensor) -> dict[str, float]:
    values = values.double()
    spread = values.std(1).mean().item()
    return {"mean": values.mean().item(), "l2": values.norm().item(), "absmax": values.abs().max().item(),
            "std_over_queries": spread}  # fmt: skip


def pairs(matches: Matches, layer: int, num_images: int) -> list[list[list[int]]]:
    """Queries and targets of each image that were matched in a layer, as the goldens write them."""
    chosen = matches.of_layer(layer)
    images = [chosen.image == index for index in range(num_images)]
    return [[chosen.query[image].tolist(), chosen.target[image].tolist()] for image in images]


def official_losses(losses: Mapping[str, Tensor], weights: tuple[float, float, float] = (1, 1, 1)) -> dict[str, float]:
    """Our losses under the official names."""
    values = {}
    for (name, official), weight in zip(_LOSSES.items(), weights, strict=True):
        *before, final = (weight * losses[name]).tolist()
        values |= {f"{official}_{layer}": value for layer, value in enumerate(before)} | {official: final}
        if f"proposal_{name}" in losses:
            values[f"{official}_enc"] = weight * losses[f"proposal_{name}"].item()
    return values


def check_losses(losses: Mapping[str, Tensor], record: Mapping[str, Mapping[str, float]]) -> None:
    """Every loss, plain and, where the golden has it, weighted; not what the original only logs."""
    plain = {name: value for name, value in record["losses_unweighted"].items() if name.startswith("loss_")}
    assert official_losses(losses) == pytest.approx(plain, rel=1e-4)
    if "losses_weighted" in record:
        assert official_losses(losses, (2, 5, 2)) == pytest.approx(record["losses_weighted"], rel=1e-4)


def check_detections(golden: Golden, predictions: Predictions, sizes: list[list[int]]) -> None:
    """The published post-processing of COCO's classes."""
    found = detect(predictions, torch.tensor(sizes), coco_categories(), raw=True)
    for index, detections in enumerate(found):
        assert torch.equal(detections.labels, golden.arrays["post.labels"][index])
        close(detections.scores, golden.arrays["post.scores"][index], 1e-6)
        close(detections.boxes, golden.arrays["post.boxes"][index], 1e-3)


def check_start(
    own: Mapping[str, Tensor], stats: Mapping[str, list[float]], rows: Rows, normal: Collection[str], fixed: str = "$^"
) -> None:
    """A random start: constants exactly; random tensors by mean, standard deviation and range, within sampling error.

    Args:
        own: the model's state dict.
        stats: mean, standard deviation, lowest and highest of every official tensor.
        rows: the names of both.
        normal: official tensors that start normal, so that their range says nothing; the others start uniform.
        fixed: a pattern of official tensors that start as they are, without chance and without being constant.
    """
    for official, expected in stats.items():
        mean, spread, low, high = expected
        values = own[our_name(official, rows, own)].double()
        found = [values.mean().item(), values.std(correction=0).item(), values.min().item(), values.max().item()]
        if spread == 0 or re.fullmatch(fixed, official):
            assert found == pytest.approx(expected, abs=1e-5), official
            continue
        error = 5 * math.sqrt(2 / values.numel())  # of two samples
        assert abs(found[0] - mean) <= error * spread, official
        if values.numel() > 100:
            assert found[1] == pytest.approx(spread, rel=error), official
            assert official in normal or found[2:] == pytest.approx([low, high], rel=0.05), official


def joined(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of transformers, the three projections of an attention as the rows of one."""
    whole = {name: value for name, value in state.items() if not any(f".{part}_proj." in name for part in "qkv")}
    for name in state:
        if ".q_proj." in name:
            parts = [state[name.replace(".q_proj.", f".{part}_proj.")] for part in "qkv"]
            whole[name.replace(".q_proj.", ".in_proj_")] = torch.cat(parts)
    return whole
