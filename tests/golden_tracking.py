"""Goldens of the trackers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from golden import Golden, image, rule
from opendetr.models import Detector
from opendetr.presets import Preset, get_preset
from opendetr.structures import ImageBatch
from opendetr.tasks import COUNT
from opendetr.weights.name_maps import Rows, our_name


class TrackingGolden(Golden):
    """A golden whose weights are by rule, times `scale`; tied names take the value of another one."""

    def state(self) -> dict[str, Tensor]:
        """The state dict under the official names."""
        keys, tied, scale = self["keys"], self["tied"], self["scale"]
        return {name: rule(tied.get(name, name), shape) * scale.get(name, 1.0) for name, shape in keys.items()}

    def images(self, key: str) -> list[Tensor]:
        """The images (3, h, w) that an input lists."""
        calls = (re.fullmatch(r"image\('(\w+)', (\d+), (\d+), salt\)", text) for text in self["inputs"][key])
        return [image(call[1], int(call[2]), int(call[3])) for call in calls if call]

    def frames(self, key: str) -> list[ImageBatch]:
        """The same as batches of one image each."""
        return [ImageBatch.from_images([image]) for image in self.images(key)]

    def preset(self, name: str) -> Preset:
        """The preset with the sizes of the golden."""
        config, preset = self["config"], get_preset(name)
        transformer = replace(
            preset.model.transformer,
            width=config["hidden_dim"],
            num_heads=config["nheads"],
            ffn_width=config["dim_feedforward"],
            encoder_layers=config["enc_layers"],
            decoder_layers=config["dec_layers"],
            dropout=config["dropout"],
        )
        return replace(preset, model=replace(preset.model, transformer=transformer, num_queries=config["num_queries"]))


def published_names(preset: Preset) -> dict[str, Any]:
    """The settings of a preset under the official names."""
    model, transformer, criterion = preset.model, preset.model.transformer, preset.criterion
    return {
        "backbone": f"resnet{model.backbone.depth}", "dilation": model.backbone.dilation,
        "num_feature_levels": transformer.num_levels, "enc_n_points": transformer.num_points,
        "dec_n_points": transformer.num_points, "with_box_refine": model.refine, "two_stage": False,
        "hidden_dim": transformer.width, "nheads": transformer.num_heads, "dim_feedforward": transformer.ffn_width,
        "enc_layers": transformer.encoder_layers, "dec_layers": transformer.decoder_layers,
        "num_queries": model.num_queries, "num_classes": len(preset.published_categories()),
        "focal_alpha": criterion.classification.alpha, "cls_loss_coef": criterion.class_weight,
        "bbox_loss_coef": criterion.l1_weight, "giou_loss_coef": criterion.giou_weight,
        "set_cost_class": criterion.matcher.class_cost, "set_cost_bbox": criterion.matcher.l1_cost,
        "set_cost_giou": criterion.matcher.giou_cost,
    }  # fmt: skip


def gradient_faults(model: Detector, expected: Mapping[str, float | None], rows: Rows) -> list[str]:
    """The parameters whose gradient differs in norm from that of the original, or exists only in one of them."""
    parameters = dict(model.named_parameters())
    faults = []
    for official, norm in expected.items():
        gradient = parameters[our_name(official, rows, parameters)].grad
        found = None if gradient is None else gradient.norm().item()
        if (found is None) != (norm is None) or (norm is not None and abs(found - norm) > 1e-3 * norm + 1e-6):
            faults.append(f"{official}: {found}, expected {norm}")
    return faults


def normalised(losses: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The losses of a task whose divisor is known after the forward pass, divided by it as the trainer does."""
    divisor = losses[COUNT].clamp(min=1.0)
    return {name: values / divisor for name, values in losses.items() if name != COUNT}
