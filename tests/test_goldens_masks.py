"""DETR with masks against the numbers that the original implementation gave for the same weights and inputs."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from golden import Golden, target
from opendetr.models.masks import MaskedDetector
from opendetr.presets import build_task, create, get_preset
from opendetr.recipe import Recipe
from opendetr.structures import Output
from opendetr.tasks import Task
from opendetr.training.optimizer import parameter_groups
from opendetr.weights import load_weights
from opendetr.weights.masks import DETR
from opendetr.weights.name_maps import our_name

_LOSSES = {"class": "loss_ce", "l1": "loss_bbox", "giou": "loss_giou", "mask": "loss_mask", "dice": "loss_dice"}


def _made(variant: str) -> tuple[Golden, Task, Output]:
    golden = Golden(f"detr/{variant}")
    model = create("detr-r50-panoptic").eval()
    assert isinstance(model, MaskedDetector)
    report = load_weights(model, golden.state())
    assert (report.layout, report.num_tensors) == ("official", len(golden["keys"]))
    task = build_task(get_preset("detr-r50-panoptic"), model, golden["num_classes"])
    return golden, task, model(golden.images())


@pytest.fixture(scope="module")
def run() -> tuple[Golden, Task, Output]:
    return _made("detr_resnet50_panoptic-sharp")


def _all_masks(model: MaskedDetector, output: Output) -> Tensor:
    """(B, Q, H, W)."""
    num_images, num_queries = output.final.boxes.shape[:2]
    image = torch.arange(num_images).repeat_interleave(num_queries)
    query = torch.arange(num_queries).repeat(num_images)
    return model.masks(output, image, query).unflatten(0, (num_images, num_queries))


def _close(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max().item() <= tolerance


def _official(losses: dict[str, Tensor]) -> dict[str, float]:
    """Our losses under the official names."""
    values = {}
    for name, official in _LOSSES.items():
        *before, final = losses[name].tolist()
        values |= {f"{official}_{layer}": value for layer, value in enumerate(before)} | {official: final}
    return values


def _check_losses(task: Task, losses: dict[str, Tensor], unweighted: dict[str, float], total: float) -> None:
    wanted = {name: value for name, value in unweighted.items() if name.startswith("loss")}
    assert _official(losses) == pytest.approx(wanted, rel=1e-4)
    assert task.total(losses).item() == pytest.approx(total, rel=1e-4)


def test_parameter_counts(run):
    golden, task, _ = run
    counts, parameters = golden["n_parameters"], list(task.model.parameters())
    assert sum(p.numel() for p in parameters) == counts["total"]
    assert sum(p.numel() for p in parameters if p.requires_grad) == counts["trainable"]


@torch.no_grad()
def test_masks(run):
    golden, task, output = run
    masks = _all_masks(task.model, output)
    slices = golden.arrays["pred_masks_slice"]
    _close(masks[:, : slices.shape[1]], slices, 5e-5)
    _close(masks.mean((2, 3)), golden.arrays["pred_masks_mean"], 5e-5)
    _close(masks.std((2, 3), correction=0), golden.arrays["pred_masks_std"], 5e-5)
    _close(output.final.logits, golden.arrays["pred_logits"], 2e-3)
    _close(output.final.boxes, golden.arrays["pred_boxes"], 1e-4)


@torch.no_grad()
def test_masks_of_weights_that_make_all_queries_alike():
    golden, task, output = _made("detr_resnet50_panoptic")
    masks = _all_masks(task.model, output)
    _close(output.final.logits, golden.arrays["pred_logits"], 2e-5)
    _close(masks[:, : golden.arrays["pred_masks_slice"].shape[1]], golden.arrays["pred_masks_slice"], 5e-5)
    _close(masks.mean((2, 3)), golden.arrays["pred_masks_mean"], 5e-5)


@torch.no_grad()
def test_losses(run):
    golden, task, output = run
    losses = task.losses(output, golden.masked_targets())
    _check_losses(task, losses, golden["losses_unweighted"], golden["total_loss"])


@torch.no_grad()
def test_losses_without_targets(run):
    golden, task, output = run
    with_objects, _ = golden.masked_targets()
    sizes = [each.size for each in golden.masked_targets()]
    empty = [target(torch.zeros(0), torch.zeros(0, 4), size) for size in sizes]
    cases = {"image1_without_targets": [with_objects, empty[1]], "no_targets_at_all": empty}
    for name, targets in cases.items():
        case = golden["criterion_cases"][name]
        _check_losses(task, task.losses(output, targets), case["unweighted"], case["total_weighted"])


def test_gradients_and_one_step(run):
    golden, task, _ = run
    task = copy.deepcopy(task)
    names = {our_name(name, DETR.official, ()): name for name, _ in golden["keys"]}
    task.total(_losses(golden, task)).backward()
    gradients = {names[name]: p.grad for name, p in task.model.named_parameters() if p.requires_grad}
    norms = {name: gradients[name].norm().item() for name in golden["grad_l2"]}
    assert norms == pytest.approx(golden["grad_l2"], rel=5e-3)
    total = torch.stack([gradient.norm() for gradient in gradients.values()]).norm().item()
    assert total == pytest.approx(golden["grad_l2_total"], rel=5e-3)
    frozen = {names[name] for name, p in task.model.named_parameters() if not p.requires_grad}
    assert frozen == set(golden["params_without_grad"]["frozen"])
    _take_a_step(golden, task, names)


def _losses(golden: Golden, task: Task) -> dict[str, Tensor]:
    return task.losses(task.model(golden.images()), golden.masked_targets())


def _take_a_step(golden: Golden, task: Task, names: dict[str, str]) -> None:
    """One step of the published recipe moves every parameter, and the loss, as far as the original's did."""
    expected: dict[str, Any] = golden["after_one_step"]
    recipe = Recipe()
    before = {name: parameter.detach().clone() for name, parameter in task.model.named_parameters()}
    groups = parameter_groups(task, recipe)
    numbers = sorted((len(group["params"]), sum(p.numel() for p in group["params"])) for group in groups)
    assert numbers == sorted(zip(expected["group_sizes"], expected["group_numel"], strict=True))
    trained = [parameter for group in groups for parameter in group["params"]]
    torch.nn.utils.clip_grad_norm_(trained, recipe.clip_norm)
    torch.optim.AdamW(groups).step()
    moved = {names[name]: (p.detach() - before[name]).norm().item() for name, p in task.model.named_parameters()}
    assert {name: moved[name] for name in expected["delta_l2"]} == pytest.approx(expected["delta_l2"], rel=5e-3)
    assert task.total(_losses(golden, task)).item() == pytest.approx(expected["total_loss"], rel=1e-3)


def test_a_mask_that_is_missing_is_named(run):
    golden, task, output = run
    targets = [replace(each, masks=None) for each in golden.masked_targets()]
    with pytest.raises(ValueError, match=r"image 0: its objects have no masks.*data\.masks"):
        task.losses(output, targets)
