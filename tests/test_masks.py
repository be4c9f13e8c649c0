"""Masks around any member: the economical computation against the plain one, losses by hand, both ways of training."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from golden import weighted_total
from inputs import batch_for, run_model
from opendetr import distributed
from opendetr.categories import Categories
from opendetr.config import ConfigError, parse_assignment, replaced, to_dict
from opendetr.export.checkpoints import export_official
from opendetr.inference.predictor import load
from opendetr.losses import MaskCriterionConfig, MaskLoss, Normaliser
from opendetr.losses.class_terms import sigmoid_focal
from opendetr.models import masks as mask_models
from opendetr.models.masks import MaskedDetector, MaskHeadConfig
from opendetr.presets import (
    Preset,
    build_model,
    build_task,
    detector_alone,
    get_preset,
    list_models,
    miniature,
    name_with_masks,
    trained_from_nothing,
    with_frozen_detector,
)
from opendetr.recipe import Recipe
from opendetr.results import Detections
from opendetr.structures import Batch, ImageBatch, LazyMasks, Matches, Output, Target
from opendetr.tasks import MaskHeadTask, Task
from opendetr.training.events import Callback, StepTaken
from opendetr.training.freezing import freeze, train_mode
from opendetr.training.settings import check_mask_settings, set_up
from opendetr.training.starting_weights import load_transferred
from opendetr.training.trainer import Trainer
from opendetr.weights import ModelCard, WeightsError, load_weights, save_weights, transfer
from test_processes import in_processes

CLASSES = Categories.from_names(("cat", "dog", "sky"))
SIZES = ((64, 96), (48, 80))


def _around(name: str, **head: int) -> Preset:
    preset = miniature(name)
    return replace(preset, masks=MaskHeadConfig(enabled=True, **head), data=replace(preset.data, masks="auto"))


MEMBERS = {
    "detr": _around("detr-r50"),
    "dilated": _around("detr-r50-dc5"),
    "conditional": _around("conditional-detr-r50", num_heads=4),
    "single scale": _around("deformable-detr-r50-single-scale"),
    "stride 8": _around("deformable-detr-r50", level=1),
    "stride 16": _around("deformable-detr-r50-refine", level=2),
    "two stages": _around("deformable-detr-r50-two-stage"),
}
each = pytest.mark.parametrize("member", MEMBERS)
with_masks = pytest.mark.parametrize("name", [name for name in list_models() if get_preset(name).has_masks])


def _model(preset: Preset) -> MaskedDetector:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build_model(preset, len(CLASSES)).eval()
    assert isinstance(model, MaskedDetector)
    return model


def _images(seed: int = 1) -> ImageBatch:
    generator = torch.Generator().manual_seed(seed)
    return ImageBatch.from_images([torch.randn(3, *size, generator=generator) for size in SIZES])


def _target(size: tuple[int, int], num_objects: int, seed: int = 0) -> Target:
    """Rectangles, whose masks are the boxes themselves."""
    generator = torch.Generator().manual_seed(seed)
    height, width = size
    masks = torch.zeros(num_objects, height, width, dtype=torch.bool)
    boxes = torch.zeros(num_objects, 4)
    for index in range(num_objects):
        y, x = (int(torch.randint(side // 2, (), generator=generator)) for side in size)
        h, w = height // 3, width // 3
        masks[index, y : y + h, x : x + w] = True
        boxes[index] = torch.tensor([(x + w / 2) / width, (y + h / 2) / height, w / width, h / height])
    return Target(torch.arange(num_objects) % len(CLASSES), boxes, size, size, image_id=seed, masks=masks)


def _images_and_targets(*counts: int) -> tuple[ImageBatch, tuple[Target, ...]]:
    targets = tuple(_target(size, count, index) for index, (size, count) in enumerate(zip(SIZES, counts, strict=True)))
    return _images(), targets


def _batch(*counts: int) -> Batch:
    return Batch(*_images_and_targets(*counts), ("a", "b"))


def _plain_masks(model: MaskedDetector, output: Output, image: Tensor, query: Tensor) -> Tensor:
    """As the paper has it: every query with a copy of all that is shared."""
    level, head = model.level - model.first_level, model.head
    memory = output.memory[level].values[image]
    queries = model.attention.query(output.queries[-1, image, query]).unflatten(1, (model.attention.num_heads, -1))
    key = F.conv2d(memory, model.attention.key.weight[..., None, None], model.attention.key.bias)
    key = key.unflatten(1, queries.shape[1:])
    weights = torch.einsum("mad,madhw->mahw", queries / queries.shape[-1] ** 0.5, key)
    if output.memory[level].padding is not None:
        weights = weights.masked_fill(output.memory[level].padding[image][:, None], -torch.inf)
    weights = weights.flatten(1).softmax(1).view_as(weights)
    projected = model.detector.project_features(output.features)[level].values[image]
    x = torch.cat((projected, weights), 1)
    for index, (convolution, norm) in enumerate(zip(head.convolutions, head.norms, strict=True)):
        if index >= 2:
            finer = head.adapters[index - 2](output.features[model.level - index + 1].values[image])
            x = finer + F.interpolate(x, size=finer.shape[-2:], mode="nearest")
        x = norm(convolution(x)).relu()
    return head.out(x)[:, 0]


# --------------------------------------------------------------------------------------------------------------- masks


@each
@torch.no_grad()
def test_masks_are_those_of_the_plain_computation(member):
    model = _model(MEMBERS[member])
    output = model(_images())
    image, query = torch.tensor([1, 0, 0, 1, 0]), torch.tensor([3, 0, 7, 2, 0])
    masks = model.masks(output, image, query)
    assert masks.shape == (5, *output.features[0].values.shape[-2:])
    torch.testing.assert_close(masks, _plain_masks(model, output, image, query), atol=1e-5, rtol=1e-5)
    assert masks[0].std() > 1e-4 and not torch.allclose(masks[1], masks[2])


@each
@torch.no_grad()
def test_a_mask_does_not_depend_on_what_else_is_asked_for(member, monkeypatch):
    model = _model(MEMBERS[member])
    output = model(_images())
    count = output.final.boxes.shape[1]
    image, query = torch.arange(2).repeat_interleave(count), torch.arange(count).repeat(2)
    all_masks = model.masks(output, image, query)
    for chosen in (torch.tensor([count + 1]), torch.arange(2 * count - 1, 0, -5), torch.tensor([2, 2])):
        some = model.masks(output, image[chosen], query[chosen])
        torch.testing.assert_close(some, all_masks[chosen], atol=1e-5, rtol=0)
    monkeypatch.setattr(mask_models, "_CHUNK", 1)  # one by one
    torch.testing.assert_close(model.masks(output, image, query), all_masks, atol=1e-5, rtol=0)
    nothing = torch.zeros(0, dtype=torch.int64)
    assert model.masks(output, nothing, nothing).shape == (0, *all_masks.shape[1:])


@torch.no_grad()
def test_the_detector_answers_as_without_masks():
    for preset in MEMBERS.values():
        model = _model(preset)
        whole, alone = model(_images()), model.detector(_images())
        assert type(whole) is type(alone)
        assert torch.equal(whole.final.logits, alone.final.logits)
        assert torch.equal(whole.final.boxes, alone.final.boxes)


@torch.no_grad()
def test_an_image_that_is_all_padding_has_finite_masks():
    model = _model(MEMBERS["detr"])
    batch = _images()
    padding = torch.ones(2, *batch.pixels.shape[-2:], dtype=torch.bool)
    padding[0] = False
    output = model(ImageBatch(batch.pixels, padding, batch.sizes))
    assert model.masks(output, torch.tensor([0, 1]), torch.tensor([0, 0])).isfinite().all()


def test_attention_runs_over_heads_and_cells_together():
    attention = MEMBERS["detr"].masks.build(MEMBERS["detr"].model, 4, _model(MEMBERS["detr"]).scoring).attention
    padding = torch.tensor([False] * 6 + [True] * 2)
    weights = attention(torch.randn(3, 32), torch.randn(8, 32), padding)
    assert weights.shape == (3, 8, 8)
    torch.testing.assert_close(weights.sum((1, 2)), torch.ones(3))
    assert (weights[..., 6:] == 0).all()
    assert weights.sum(2).std() > 0.001  # heads need not have equal shares


@pytest.mark.parametrize(
    ("name", "assignment", "message"),
    [
        ("detr-tiny-panoptic", "masks.level=2", "masks.level: expected 3 for"),
        ("deformable-detr-tiny-panoptic", "masks.level=0", "masks.level: expected 1 to 3"),
        ("detr-tiny-panoptic", "masks.num_heads=0", "masks.num_heads: expected at least 1"),
        ("detr-tiny-panoptic", "model.transformer.width=8", "width of 8 is too small"),
        ("detr-tiny-panoptic", "masks.num_heads=7", "masks.num_heads: 7 does not divide the detector's width of 128"),
        ("detr-tiny", "masks.num_head=4", "did you mean masks.num_heads"),
    ],
)
def test_a_mask_head_that_does_not_fit_is_one_line(name, assignment, message):
    with pytest.raises(ConfigError, match=message):
        build_model(replaced(get_preset(name), parse_assignment(assignment)), 3)


def test_any_model_gets_masks_by_a_setting():
    settings = {"masks": {"enabled": True, "num_heads": 4}}
    preset = replaced(get_preset("conditional-detr-tiny"), settings)
    assert preset.masks == MaskHeadConfig(enabled=True, num_heads=4)
    assert isinstance(build_model(preset, 3), MaskedDetector)
    with pytest.raises(ConfigError, match=r"masks.num_heads is set, but the model has no mask head; set masks.enabled"):
        replaced(get_preset("conditional-detr-tiny"), parse_assignment("masks.num_heads=4"))


def test_a_mask_head_starts_as_published():
    """Xavier for the attention (Glorot and Bengio 2010), for convolutions He et al. 2015 with a slope of 1."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build_model(replaced(get_preset("detr-tiny-panoptic"), {"masks": {"attention_gain": 1.0}}), 3)
    for name, parameter in model.named_parameters():
        if not name.startswith(("attention.", "head.")):
            continue
        is_norm = ".norms." in name
        if parameter.ndim == 1:
            assert parameter.eq(1.0 if is_norm and name.endswith("weight") else 0.0).all(), name
            continue
        fan_in = parameter[0].numel()
        spread = (2 / (parameter.shape[0] + fan_in)) ** 0.5 if parameter.ndim == 2 else fan_in**-0.5
        assert parameter.std().item() == pytest.approx(spread, rel=5 / parameter.numel() ** 0.5), name
        assert parameter.abs().max() <= 3**0.5 * spread * 1.0001, name


def test_the_weights_of_attention_maps_begin_enlarged():
    with torch.random.fork_rng():
        spreads = []
        for gain in (1.0, 50.0):
            torch.manual_seed(0)
            model = build_model(replaced(miniature("detr-tiny-panoptic"), {"masks": {"attention_gain": gain}}), 3)
            assert isinstance(model, MaskedDetector)
            first = model.head.convolutions[0].weight
            spreads.append((model.head.of_attention().std(), first[:, : model.head.width].std()))
    torch.testing.assert_close(spreads[1][0], 50 * spreads[0][0])
    torch.testing.assert_close(spreads[1][1], spreads[0][1])


# -------------------------------------------------------------------------------------------------------------- losses


def test_losses_by_hand():
    """Pixel by pixel of the padded batch; masks are enlarged, not objects reduced."""
    generator = torch.Generator().manual_seed(0)
    masks, size = torch.randn(3, 5, 6, generator=generator), (17, 22)
    targets = [_target((17, 20), 2, 1), _target((13, 22), 2, 2)]
    image, object_index = torch.tensor([0, 0, 1]), torch.tensor([1, 0, 1])
    matches = Matches(torch.zeros(3), image, torch.tensor([4, 5, 6]), object_index)
    output = Output((None,), torch.zeros(0), (), (), masks=LazyMasks(lambda image, query: masks, size))
    losses = MaskLoss(MaskCriterionConfig())(output, targets, matches, Normaliser(4.0, 1.0))
    focal = overlap = 0.0
    for logits, where, index in zip(masks, image, object_index, strict=True):
        truth = torch.zeros(size)
        object_mask = targets[where].masks[index]
        truth[: object_mask.shape[0], : object_mask.shape[1]] = object_mask.float()
        large = F.interpolate(logits[None, None], size, mode="bilinear", align_corners=False)[0, 0]
        probability = large.sigmoid()
        focal += sigmoid_focal(large, truth).mean().item()
        overlap += (1 - (2 * (probability * truth).sum() + 1) / (probability.sum() + truth.sum() + 1)).item()
    assert losses["mask"].tolist() == pytest.approx([focal / 4])
    assert losses["dice"].tolist() == pytest.approx([overlap / 4])


def test_each_loss_of_masks_has_its_weight():
    losses = {"class": torch.ones(3), "mask": torch.tensor([5.0]), "dice": torch.tensor([7.0])}
    assert weighted_total(MaskLoss(MaskCriterionConfig(mask_weight=2.0, dice_weight=3.0)), losses) == 31.0


@with_masks
def test_a_step_in_parts_is_the_same_step(name):
    """As with several processes: the batch is padded whole, and the losses divided by all its objects."""
    preset = trained_from_nothing(miniature(name))
    task = build_task(preset, _model(preset), len(CLASSES)).eval()
    batch = batch_for(task.model, *_images_and_targets(3, 1))
    normaliser = task.normaliser(batch.loss_counts)
    whole, parts = task(batch, normaliser), [task(part, normaliser) for part in batch.split(2)]
    assert whole.keys() == parts[0].keys() >= {"mask", "dice"}
    for loss, values in whole.items():
        torch.testing.assert_close(parts[0][loss] + parts[1][loss], values, atol=1e-5, rtol=1e-5)
    summed = task.total(parts[0]) + task.total(parts[1])
    torch.testing.assert_close(summed, task.total(whole), atol=1e-4, rtol=1e-5)


@with_masks
def test_every_layer_is_matched_once(name, monkeypatch):
    preset = miniature(name)
    task = build_task(preset, _model(preset), len(CLASSES)).eval()
    head_task = build_task(replace(preset, freeze_detector=True), task.model, len(CLASSES)).eval()
    matched: list[int] = []
    match = task.criterion.match

    def counted(output, targets):
        matched.append(len(output.layers))
        return match(output, targets)

    for each in (task, head_task):
        monkeypatch.setattr(each.criterion, "match", counted)
    batch = batch_for(task.model, *_images_and_targets(3, 1))
    losses = task(batch)
    proposals = [1] if task.model.has_proposals else []
    assert matched == [preset.model.transformer.decoder_layers, *proposals]
    matched.clear()
    alone = head_task(batch)
    assert matched == [1]  # where the detector is frozen, the last layer is all that is matched
    assert alone.keys() == {"mask", "dice"}
    assert all(torch.equal(losses[part], values) for part, values in alone.items())


# ------------------------------------------------------------------------------------------------------------ training


class _OneBatch:
    """The same two images in every step."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch

    def __len__(self) -> int:
        return 1

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        return iter([self.batch][start:])


def _trained(preset: Preset, folder, steps: int, **recipe: object) -> tuple[Task, list[float]]:
    """The task after some steps on one batch, and the sum of "mask" and "dice" before and after."""
    task = build_task(preset, _model(preset), len(CLASSES))
    assert isinstance(task, Task)
    settings = {"learning_rate": 3e-3, "backbone_learning_rate": 3e-3, "clip_norm": 1.0, "schedule": "cosine",
                "freeze": preset.recipe.freeze, "max_steps": steps, "num_evaluations": 1}  # fmt: skip
    batch = _batch(3, 1)
    losses = [_mask_loss(task, batch)]
    Trainer(task, _OneBatch(batch), Recipe(**settings | recipe), folder, device="cpu").train()
    return task, [*losses, _mask_loss(task, batch)]


def _mask_loss(task: Task, batch: Batch) -> float:
    task.eval()
    with torch.no_grad():
        losses = task(batch)
    return (losses["mask"] + losses["dice"]).item()


@pytest.mark.parametrize("name", ["detr-tiny-panoptic", "deformable-detr-tiny-panoptic"])
def test_detector_and_masks_learn_jointly(tmp_path, name):
    task, losses = _trained(trained_from_nothing(miniature(name)), tmp_path, steps=40)
    assert losses[1] < 0.85 * losses[0]
    assert all(parameter.isfinite().all() for parameter in task.parameters())


class _Losses(Callback):
    """Writes the losses and the gradient's norm of every step."""

    def __init__(self, folder: Path) -> None:
        self._path, self._steps = folder / "losses.json", []

    def on_step(self, event: StepTaken) -> None:
        self._steps.append({**event.losses, "gradient": event.gradient_norm})
        self._path.write_text(json.dumps(self._steps))


class _Shared(_OneBatch):
    """Each process has its share of the batch."""

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        shares = self.batch.split(distributed.world_size())
        return iter([shares[distributed.rank()]][start:])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("frozen", [False, True], ids=["jointly", "frozen detector"])
def test_two_processes_learn_as_one(tmp_path, frozen):
    """Three objects in the one's image, none in the other's, and images of different sizes.

    Weights are not compared: a bias before a group norm of single channels has no gradient but rounding, which Adam
    makes as large as any other.
    """
    preset = miniature("deformable-detr-tiny-panoptic")
    preset = with_frozen_detector(preset) if frozen else preset
    recipe = Recipe(batch_size=2, max_steps=4, freeze=preset.recipe.freeze, learning_rate=1e-3, clip_norm=0.1)

    def work(folder: Path) -> None:
        task = build_task(preset, _model(preset), len(CLASSES))
        Trainer(task, _Shared(_batch(3, 0)), recipe, folder, callbacks=[_Losses(folder)], device="cpu").train()

    assert in_processes(2, lambda: work(tmp_path / "two")) == [0, 0]
    work(tmp_path / "one")
    two, one = (json.loads((tmp_path / folder / "losses.json").read_text()) for folder in ("two", "one"))
    assert len(one) == len(two) == 4
    for ours, theirs in zip(two, one, strict=True):
        assert {"mask", "dice", "gradient"} <= ours.keys() == theirs.keys()
        assert ours == {name: pytest.approx(values, rel=1e-4, abs=1e-5) for name, values in theirs.items()}
    assert one[0]["dice"] != one[3]["dice"]


@pytest.mark.parametrize("name", ["detr-r50-panoptic", "deformable-detr-tiny-panoptic"])
def test_masks_learn_around_a_frozen_detector(tmp_path, name):
    preset = with_frozen_detector(miniature(name))
    before = {name: value.clone() for name, value in _model(preset).state_dict().items()}
    task, losses = _trained(preset, tmp_path, steps=40)
    assert isinstance(task, MaskHeadTask)
    assert losses[1] < 0.85 * losses[0]
    for key, value in task.model.state_dict().items():
        assert torch.equal(value, before[key]) == key.startswith("detector."), key


def test_a_frozen_detector_is_not_trained_through():
    """It answers as in evaluation, keeps nothing for a backward pass, and only what the masks need is scored."""
    preset = with_frozen_detector(miniature("detr-r50-panoptic"))
    assert preset.model.transformer.dropout > 0
    assert (preset.recipe.epochs, preset.recipe.step_at) == (25, 0.6)
    task = build_task(preset, _model(preset), len(CLASSES))
    freeze(task, preset.recipe.freeze)
    train_mode(task)
    assert (
        task.training and task.model.head.training and not any(part.training for part in task.model.detector.modules())
    )
    seen: list[Output] = []
    task.model.detector.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    losses, again = task(_batch(3, 1)), task(_batch(3, 1))
    assert losses.keys() == {"mask", "dice"}
    assert torch.equal(losses["mask"], again["mask"])  # no dropout
    assert not seen[0].queries.requires_grad and not seen[0].memory[0].values.requires_grad
    task.total(losses).backward()
    with_gradient = {name.split(".")[1] for name, each in task.named_parameters() if each.grad is not None}
    assert with_gradient == {"attention", "head"}


def test_freezing_names_the_parts_of_the_detector_too():
    task = build_task(miniature("detr-tiny-panoptic"), _model(miniature("detr-tiny-panoptic")), len(CLASSES))
    with pytest.raises(ConfigError, match=r"there are detector, backbone.*attention, head"):
        freeze(task, ["tail"])
    freeze(task, ["detector.backbone.body.layer2", "encoder"])


# ------------------------------------------------------------------------------------------------------------- weights


@with_masks
@pytest.mark.parametrize("layout", ["opendetr", "official"])
def test_a_detector_is_enough_to_start_from(tmp_path, name, layout):
    preset = miniature(name)
    plain = detector_alone(preset)
    torch.manual_seed(1)
    detector, model = build_model(plain, len(CLASSES)), _model(preset)
    state = detector.state_dict()
    if layout == "official":
        export_official(detector, plain, tmp_path / "official.pth")
        state = torch.load(tmp_path / "official.pth", weights_only=True)["model"]
    before = {key: value.clone() for key, value in model.state_dict().items()}
    report = transfer(model, state, CLASSES, CLASSES)
    assert report.new_parts == ("attention", "head")
    classes = "classes: 3 kept (cat, dog, sky), 0 new, 0 dropped; " if model.class_rows else ""
    assert str(report) == f"{classes}new and random: attention, head"
    expected = detector.state_dict()
    for key, value in model.state_dict().items():
        own = before[key] if key.startswith(report.new_parts) else expected[key.removeprefix("detector.")]
        of_proposals = "proposal_class_head" in key  # of which the first row alone is used
        assert torch.equal(value[:1], own[:1]) if of_proposals else torch.equal(value, own), key
    with pytest.raises(WeightsError, match=r"missing attention\.query\.weight"):
        load_weights(model, state)


@with_masks
@pytest.mark.parametrize("layout", ["opendetr", "official"])
def test_a_model_with_a_mask_head_is_enough_for_its_detector(tmp_path, name, layout):
    preset = miniature(name)
    torch.manual_seed(1)
    model, detector = _model(preset), build_model(detector_alone(preset), len(CLASSES))
    state = model.state_dict()
    if layout == "official":
        export_official(model, preset, tmp_path / "official.pth")
        state = torch.load(tmp_path / "official.pth", weights_only=True)["model"]
    report = transfer(detector, state, CLASSES, CLASSES)
    classes = "classes: 3 kept (cat, dog, sky), 0 new, 0 dropped; " if model.class_rows else ""
    assert str(report) == f"{classes}skipped: the mask head"
    images = ImageBatch.from_images([torch.randn(3, *size) for size in SIZES])
    with torch.no_grad():
        one, other = run_model(detector.eval(), images).final, run_model(model.eval(), images).final
    assert torch.equal(one.logits, other.logits)
    assert torch.equal(one.boxes, other.boxes)


@pytest.mark.parametrize(("name", "one_class_a_query"), [("detr-tiny", True), ("deformable-detr-tiny", False)])
def test_a_file_with_a_mask_head_opens_as_its_detector_for_things(tmp_path, name, one_class_a_query):
    preset, categories = miniature(f"{name}-panoptic"), replace(CLASSES, isthing=(True, True, False))
    torch.manual_seed(2)
    model = build_model(preset, len(categories))
    parameters = dict(model.named_parameters())
    for rows, spread in ((model.class_rows, 3.0), (model.query_rows, 30.0)):  # so that queries differ
        for row in rows:
            torch.nn.init.normal_(parameters[row], std=spread)
    path = tmp_path / "model.safetensors"
    save_weights(path, model, ModelCard(to_dict(preset), categories, {}))
    whole, alone = load(path, device="cpu"), load(path, model=name, device="cpu")
    assert (whole.preset.name, whole.has_masks) == (f"{name}-panoptic", True)
    assert (alone.preset.name, alone.has_masks, alone.preset.data.masks) == (name, False, "none")
    assert alone.preset.model == whole.preset.model
    image = torch.rand(3, 64, 64)
    every, things = (each.predict(image, min_score=0.0) for each in (whole, alone))
    assert "sky" in every.names and "sky" not in things.names
    expected = {row for row in _rows(every) if row[0] != "sky"}
    assert len(expected) >= 5
    assert expected <= set(_rows(things))  # with the scores that the whole gives
    assert expected == set(_rows(things)) or not one_class_a_query
    with pytest.raises(ConfigError, match=f"holds {name}-panoptic, not detr-r50; leave the model out"):
        load(path, model="detr-r50", device="cpu")
    with pytest.raises(ConfigError, match=f"{name}: is a model of the catalogue, not detr-r50; leave the model out"):
        load(name, model="detr-r50", device="cpu")


def _rows(found: Detections) -> list[tuple]:
    """Name, box and score of every detection."""
    return list(zip(found.names, *found.boxes.T.tolist(), found.scores.tolist(), strict=True))


def test_masks_are_not_left_out_in_silence():
    preset = miniature("detr-tiny-panoptic")
    model = _model(preset)
    state = {key: value for key, value in model.state_dict().items() if "head.out" not in key}
    with pytest.raises(WeightsError, match=r"missing head\.out\.weight; missing head\.out\.bias"):
        transfer(model, state, CLASSES, CLASSES)
    with pytest.raises(WeightsError, match="these weights include a mask head, but the model has none"):
        load_weights(build_model(detector_alone(preset), len(CLASSES)), model.state_dict())


# ------------------------------------------------------------------------------------------------------------ settings


def _saved(folder, given: str | Preset):
    preset = miniature(given) if isinstance(given, str) else given
    folder.mkdir()
    path = folder / "model.safetensors"
    save_weights(path, build_model(preset, len(CLASSES)), ModelCard(to_dict(preset), CLASSES, {}))
    return path


def _set_up(tmp_path, model, weights, *, freeze_detector=True, config=None):
    setup, origin = set_up(tmp_path, model, weights, config, freeze_detector=freeze_detector)
    check_mask_settings(setup.preset, origin)
    return setup.preset


def test_what_a_frozen_detector_is_wrapped_in(tmp_path):
    plain = _saved(tmp_path / "plain", "detr-tiny")
    masked = _saved(tmp_path / "masked", "deformable-detr-tiny-panoptic")
    preset = _set_up(tmp_path, None, plain)
    assert (preset.name, preset.model, preset.freeze_detector) == (
        "detr-tiny-panoptic", miniature("detr-tiny").model, True,
    )  # fmt: skip
    assert preset.masks == get_preset("detr-tiny-panoptic").masks
    assert preset.data.image_size == miniature("detr-tiny").data.image_size != get_preset("detr-tiny").data.image_size
    assert preset.recipe.epochs == 25
    (tmp_path / "own.yaml").write_text("recipe: {epochs: 3, freeze: []}", encoding="utf-8")
    shorter = _set_up(tmp_path, None, plain, config=tmp_path / "own.yaml")
    assert (shorter.recipe.epochs, shorter.freeze_detector) == (3, True)
    assert _set_up(tmp_path, None, masked).name == "deformable-detr-tiny-panoptic"
    settings = {"masks": {"enabled": True, "level": 3}, "data": {"masks": "instances", "side_multiple": 8}}
    by_setting = replaced(miniature("conditional-detr-tiny"), settings)
    again = _set_up(tmp_path, None, _saved(tmp_path / "set", by_setting))
    assert (again.name, again.masks, again.data.masks) == ("conditional-detr-tiny", by_setting.masks, "instances")
    assert again.data.side_multiple == 8
    assert _set_up(tmp_path, "detr-tiny-panoptic", plain, freeze_detector=False).recipe.freeze == ()
    assert not _set_up(tmp_path, None, plain, freeze_detector=False).has_masks
    assert _set_up(tmp_path, None, "published").name == "deformable-detr-tiny-panoptic"


@pytest.mark.parametrize(
    ("model", "weights", "expected", "has_head"),
    [
        (None, "published", "deformable-detr-tiny", False),  # though the file in the package has a mask head
        ("deformable-detr-tiny-panoptic", "published", "deformable-detr-tiny-panoptic", True),
        (None, "masked", "detr-tiny-panoptic", True),
        ("detr-tiny", "masked", "detr-tiny", False),
        ("detr-tiny-panoptic", "masked", "detr-tiny-panoptic", True),
    ],
)
def test_a_mask_head_that_is_not_asked_for_is_left_out(tmp_path, model, weights, expected, has_head):
    source = _saved(tmp_path / "run", "detr-tiny-panoptic") if weights == "masked" else weights
    preset = _set_up(tmp_path, model, source, freeze_detector=False)
    assert (preset.name, preset.has_masks) == (expected, has_head)


@pytest.mark.parametrize(
    ("model", "weights", "message"),
    [
        (None, "none", "a frozen detector needs trained weights"),
        ("detr-tiny-panoptic", "imagenet", "a frozen detector needs trained weights"),
        ("detr-tiny", "saved", "detr-tiny: has no mask head to train"),
        ("deformable-detr-tiny-panoptic", "saved", "holds detr-tiny, not deformable-detr-tiny-panoptic"),
    ],
)
def test_what_cannot_be_frozen_is_one_line(tmp_path, model, weights, message):
    source = _saved(tmp_path / "run", "detr-tiny") if weights == "saved" else weights
    with pytest.raises(ConfigError, match=message) as caught:
        _set_up(tmp_path, model, source)
    assert "\n" not in str(caught.value)


def test_a_frozen_detector_must_know_the_classes(tmp_path):
    path = _saved(tmp_path / "run", "detr-tiny")
    preset = _set_up(tmp_path, None, path)
    model = build_model(preset, len(CLASSES))
    assert load_transferred(model, path, preset, CLASSES).endswith("new and random: attention, head")
    others = Categories.from_names(("cat", "sea", "sky"))
    with pytest.raises(ConfigError, match="a frozen detector cannot learn sea; train it on this data first"):
        load_transferred(model, path, preset, others)
    with_stuff = replace(others, isthing=(True, False, True))
    with pytest.raises(ConfigError, match=r"cannot learn sea; set data\.masks to instances, or"):
        load_transferred(model, path, preset, with_stuff)


def test_a_family_without_masks_in_the_catalogue():
    assert name_with_masks("detr-r50") == "detr-r50-panoptic" == name_with_masks("detr-r50-panoptic")
    with pytest.raises(ConfigError, match="conditional-detr-r50: the catalogue has no version with a mask head"):
        name_with_masks("conditional-detr-r50")


def test_a_mask_head_wants_masks_to_be_read():
    preset = get_preset("detr-tiny-panoptic")
    check_mask_settings(preset, "none")
    with pytest.raises(ConfigError, match=r"set data\.masks to auto"):
        check_mask_settings(replace(preset, data=replace(preset.data, masks="none")), "none")
    frozen = replace(preset, freeze_detector=True)
    with pytest.raises(ConfigError, match="a frozen detector needs trained weights"):
        check_mask_settings(frozen, "none")


def test_half_precision_stays_below_16_megabytes(tmp_path):
    for name in ("detr-tiny-panoptic", "deformable-detr-tiny-panoptic"):
        model = build_model(get_preset(name), 133)
        save_weights(tmp_path / name, model, ModelCard({}, CLASSES, {}), half=True)
        assert (tmp_path / name).stat().st_size < 16e6


def test_each_stage_of_the_head_halves_the_width():
    head = build_model(get_preset("detr-tiny-panoptic"), 3).head
    widths = [convolution.out_channels for convolution in head.convolutions]
    assert widths == [136, 64, 32, 16, 8]


@with_masks
@pytest.mark.parametrize("size", [(1, 1), (2, 3), (4, 4)])
@pytest.mark.parametrize("training", [False, True])
def test_the_smallest_images_have_masks(name, size, training):
    """A group of the head's norms may have a single value."""
    model = build_model(miniature(name), len(CLASSES)).train(training)
    output = run_model(model, ImageBatch.from_images([torch.randn(3, *size)]))
    for queries in ([0], [0, 1], []):
        masks = output.masks(torch.zeros(len(queries), dtype=torch.int64), torch.tensor(queries, dtype=torch.int64))
        assert masks.shape[0] == len(queries)
        assert masks.isfinite().all()
    output.masks(torch.tensor([0]), torch.tensor([0])).sum().backward()
    assert all(each.grad.isfinite().all() for each in model.head.parameters())
