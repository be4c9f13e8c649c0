"""The convolutional detectors that DETR is compared with."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from typing import Any, cast

import pytest
import torch
from torch import Tensor
from torchvision.ops import box_iou

import opendetr
from miniature_runs import train_miniature, write_blocks
from opendetr.boxes import cxcywh_to_xyxy, xyxy_to_cxcywh
from opendetr.config import ConfigError, replaced, to_dict
from opendetr.models import BaselineConfig, BaselineDetector, BaselineOutput
from opendetr.presets import (
    build_model,
    build_task,
    get_preset,
    list_baselines,
    list_models,
    miniature,
    preset_from_dict,
    trained_from_nothing,
)
from opendetr.scoring import Sigmoid
from opendetr.structures import Batch, ImageBatch, Target
from opendetr.tasks import BaselineTask
from opendetr.training import Callback, StepTaken, resume, train
from opendetr.weights import WeightsError

KINDS = ["faster-rcnn-tiny", "faster-rcnn-plus-tiny", "retinanet-tiny", "ssd-tiny"]
each_kind = pytest.mark.parametrize("name", KINDS)
NUM_CLASSES = 3
COLOURS = torch.tensor([[2.0, -1, -1], [-1, 2, -1], [-1, -1, 2]])  # of the classes


def small(name: str, **model: Any) -> BaselineTask:
    """A miniature with trained batch norm, always with the same random weights."""
    preset = replaced(trained_from_nothing(miniature(name)), {"model": model})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return cast(BaselineTask, build_task(preset, build_model(preset, NUM_CLASSES), NUM_CLASSES))


def image_with(size: tuple[int, int], *objects: tuple[int, tuple[int, int, int, int]]) -> tuple[Tensor, Target]:
    """An image (3, h, w) with rectangles of (class, (x0, y0, x1, y1)), and its target."""
    height, width = size
    pixels, boxes = torch.zeros(3, height, width), []
    for label, (x0, y0, x1, y1) in objects:
        pixels[:, y0:y1, x0:x1] = COLOURS[label][:, None, None]
        boxes.append([(x0 + x1) / 2 / width, (y0 + y1) / 2 / height, (x1 - x0) / width, (y1 - y0) / height])
    labels = torch.tensor([label for label, _ in objects], dtype=torch.int64)
    return pixels, Target(labels, torch.tensor(boxes).reshape(-1, 4), size, size, image_id=0)


def batch_of(*images: tuple[Tensor, Target]) -> Batch:
    pixels, targets = zip(*images, strict=True)
    return Batch(ImageBatch.from_images(pixels), targets)


# Of different sizes, so each is padded on one side.
TWO = batch_of(
    image_with((64, 96), (0, (8, 8, 40, 40)), (1, (56, 24, 88, 56))),
    image_with((96, 64), (2, (16, 8, 48, 40)), (0, (20, 56, 52, 88))),
)


def test_the_catalogue_does_not_list_them():
    assert not set(list_baselines()) & set(list_models())
    for name in list_baselines():
        preset = get_preset(name)
        assert preset.name == name
        assert preset_from_dict(to_dict(preset)) == preset
        assert preset.recipe.optimizer == "sgd"


@pytest.mark.parametrize(
    ("name", "num_classes", "published"), [("faster-rcnn-r50", 90, 41_755_286), ("retinanet-r50", 91, 34_014_999)]
)
def test_parameters_of_torchvision(name, num_classes, published):
    with torch.device("meta"):
        model = build_model(get_preset(name), num_classes)
    assert sum(parameter.numel() for parameter in model.parameters()) == published


@pytest.mark.parametrize("size", ["tiny", "r50"])
def test_they_have_the_backbone_of_detr(size):
    detr = replace(get_preset(f"detr-{size}").model.backbone, dilation=False)  # type: ignore[type-var]
    for name in list_baselines():
        if name.endswith(size):
            assert get_preset(name).model.backbone == detr


@each_kind
@pytest.mark.parametrize("objects", [True, False])
def test_losses_and_gradients_are_finite(name, objects):
    empty = image_with((64, 96)), image_with((96, 64))
    task = small(name)
    losses = task(TWO if objects else batch_of(*empty))
    count = losses.pop("count")
    total = task.total(losses)
    total.backward()
    assert total.isfinite()
    assert count >= 0
    gradients = {key: each.grad for key, each in task.named_parameters() if each.requires_grad}
    assert [key for key, gradient in gradients.items() if gradient is None or not gradient.isfinite().all()] == []


@each_kind
def test_every_size_gives_detections_in_the_image(name):
    model = small(name).model.eval()
    for sizes in [((1, 1),), ((1, 97),), ((33, 65), (64, 31))]:
        images = ImageBatch.from_images([torch.randn(3, *size) for size in sizes])
        with torch.no_grad():
            final = model(images).final
        assert final.logits.shape == (len(sizes), model.num_queries, NUM_CLASSES)
        assert final.logits.isfinite().all()
        corners = cxcywh_to_xyxy(final.boxes)
        assert corners.min() >= -1e-6
        assert corners.max() <= 1 + 1e-6


@pytest.mark.parametrize(
    ("name", "steps"),
    # RetinaNet begins with scores of 0.01, and needs more steps than a test has.
    [
        ("ssd-tiny", 60),
        *(pytest.param(f"faster-rcnn{kind}-tiny", 150, marks=pytest.mark.slow) for kind in ("", "-plus")),
    ],
)
def test_overfit(name, steps):
    """Boxes are in the frame of the unpadded image, labels are not shifted, and padding hardly matters."""
    torch.manual_seed(0)
    task = small(name)
    optimizer = torch.optim.AdamW(task.parameters(), 2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps)
    for _ in range(steps):
        losses = task(TWO)
        count = losses.pop("count")
        (task.total(losses) / count).backward()
        torch.nn.utils.clip_grad_norm_(task.parameters(), 10.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    model = task.model.eval()
    sizes = TWO.images.sizes.tolist()
    alone = [ImageBatch.from_images([TWO.images.pixels[index, :, :h, :w]]) for index, (h, w) in enumerate(sizes)]
    with torch.no_grad():
        padded = model(TWO.images).final
        unpadded = [model(image).final for image in alone]
    for index, target in enumerate(TWO.targets):
        of_image = (padded.logits[index], padded.boxes[index]), (unpadded[index].logits[0], unpadded[index].boxes[0])
        for logits, boxes in of_image:
            scores, labels = logits.sigmoid().max(-1)
            for label, box in zip(target.labels, target.boxes, strict=True):
                overlaps = box_iou(cxcywh_to_xyxy(boxes), cxcywh_to_xyxy(box[None]))[:, 0]
                best = int((scores * (overlaps > 0.5)).argmax())
                assert overlaps[best] > 0.5
                assert labels[best] == label
                assert scores[best] > 0.2


def certain_of(logits: Tensor, label: int, num_background: int) -> Tensor:
    """Logits (..., C) that are certain of one class."""
    certain = torch.full_like(logits, -20.0)
    certain[..., label + num_background] = 20.0
    return certain


@pytest.mark.parametrize("name", ["retinanet-tiny", "ssd-tiny"])
@pytest.mark.parametrize("label", range(NUM_CLASSES))
def test_an_anchor_becomes_a_detection_of_its_class(name, label):
    task = small(name, anchor_size=12)
    model = cast(BaselineDetector, task.model).train()
    output = cast(BaselineOutput, model(TWO.images))
    anchors = model.network.anchor_generator(output.image_list, output.levels)[0]
    chosen = 3 * 60  # an anchor at the edge of an image, so that its box is clipped
    logits = torch.full((2, len(anchors), NUM_CLASSES + model.num_background), -20.0)
    logits[..., 0] = 0.0 if model.num_background else -20.0
    logits[:, chosen] = certain_of(logits[:, chosen], label, model.num_background)
    predicted = {"cls_logits": logits, "bbox_regression": torch.zeros(2, len(anchors), 4)}
    model.network.head.forward = lambda levels: predicted
    with torch.no_grad():
        final = model.eval()(TWO.images).final
    scores, labels = final.logits.sigmoid().max(-1)
    assert (scores > 0.99).sum(1).tolist() == [1, 1]
    for index, (height, width) in enumerate(TWO.images.sizes.tolist()):
        best = scores[index].argmax()
        assert labels[index, best] == label
        limits = torch.tensor([width, height, width, height])
        expected = torch.minimum(anchors[chosen].clamp(min=0), limits)
        torch.testing.assert_close(cxcywh_to_xyxy(final.boxes[index, best]) * limits, expected, atol=1e-3, rtol=0)
    # An object of this class in the place of this anchor is what such predictions are right about.
    right, wrong = (
        task.losses(output, targets_with(anchors[chosen], truth))["class"]
        for truth in (label, (label + 1) % NUM_CLASSES)
    )
    assert right < wrong / 2


def targets_with(box: Tensor, label: int) -> list[Target]:
    """Targets of `TWO` with one object, whose box is given in pixels."""
    targets = []
    for height, width in TWO.images.sizes.tolist():
        relative = xyxy_to_cxcywh(box[None] / torch.tensor([width, height, width, height]))
        targets.append(Target(torch.tensor([label]), relative, (height, width), (height, width), image_id=0))
    return targets


@pytest.mark.parametrize("label", range(NUM_CLASSES))
def test_a_proposal_becomes_a_detection_of_its_class(label):
    task = small("faster-rcnn-tiny")
    model = cast(BaselineDetector, task.model).train()
    heads = model.network.roi_heads
    boxes = torch.tensor([[10.0, 20.0, 50.0, 60.0]])
    model.network.rpn.forward = lambda images, levels, targets=None: (
        [boxes, boxes],
        {"loss_objectness": torch.zeros(()), "loss_rpn_box_reg": torch.zeros(())},
    )

    def predict(features: Tensor) -> tuple[Tensor, Tensor]:
        outputs = NUM_CLASSES + 1
        return certain_of(torch.zeros(len(features), outputs), label, 1), torch.zeros(len(features), 4 * outputs)

    heads.box_predictor.forward = predict
    with torch.no_grad():
        final = model.eval()(TWO.images).final
    scores, labels = final.logits.sigmoid().max(-1)
    assert (scores > 0.99).sum(1).tolist() == [1, 1]
    for index, (height, width) in enumerate(TWO.images.sizes.tolist()):
        best = scores[index].argmax()
        assert labels[index, best] == label
        limits = torch.tensor([width, height, width, height])
        torch.testing.assert_close(cxcywh_to_xyxy(final.boxes[index, best]) * limits, boxes[0], atol=1e-3, rtol=0)
    output = cast(BaselineOutput, model.train()(TWO.images))
    losses = [task.losses(output, targets_with(boxes[0], truth)) for truth in (label, (label + 1) % NUM_CLASSES)]
    assert losses[0]["class"] < 1e-3 < losses[1]["class"]
    assert losses[0]["box"] < 1e-3


@each_kind
def test_nms_can_be_switched_off(name):
    images = ImageBatch.from_images([torch.randn(3, 96, 96, generator=torch.Generator().manual_seed(1))])
    plain, without = small(name, num_queries=100), small(name, num_queries=100, nms=1.0)
    for task in (plain, without):
        model = cast(Any, task.model).eval()
        heads = model.network.roi_heads if hasattr(model.network, "roi_heads") else model.network
        heads.score_thresh = 0.0
    with torch.no_grad():
        found = plain.model(images).final
        all_found = without.model(images).final
        cast(BaselineDetector, plain.model).set_nms(1.0)
        switched = plain.model(images).final
    assert torch.equal(switched.logits, all_found.logits)
    kept = cxcywh_to_xyxy(found.boxes[0][found.logits[0].max(-1).values > -100])
    labels = found.logits[0].argmax(-1)[: len(kept)]
    same = labels[:, None] == labels[None]
    overlaps = box_iou(kept, kept).fill_diagonal_(0.0)
    assert overlaps[same].max() <= 0.5 + 1e-4
    every = cxcywh_to_xyxy(all_found.boxes[0])
    assert box_iou(every, every).fill_diagonal_(0.0).max() > 0.5


@each_kind
def test_micro_batches_have_the_losses_of_the_whole(name):
    """Apart from the random samples of Faster R-CNN, whose number is the same in every image."""
    if name.startswith("faster"):
        pytest.skip("its samples are random")
    task = small(name)
    task.model.backbone.eval()  # batch norms use their running statistics
    whole = task(TWO)
    parts = [task(part) for part in TWO.split(2)]
    for key, value in whole.items():
        torch.testing.assert_close(sum(part[key] for part in parts), value, atol=0.05, rtol=0.05)


@pytest.mark.parametrize(
    "change", [{"criterion": {"l1_weight": 1.0}}, {"dense": {"weight": 1.0}}, {"masks": {"enabled": True}}]
)
def test_settings_of_detr_do_not_apply(change):
    with pytest.raises(ConfigError, match="faster-rcnn-tiny"):
        replaced(get_preset("faster-rcnn-tiny"), change)


def test_wrong_settings():
    for model in ({"nms": 1.5}, {"anchor_size": 0}):
        with pytest.raises(ConfigError, match=next(iter(model))):
            replaced(get_preset("ssd-tiny"), {"model": model})
    assert isinstance(get_preset("ssd-tiny").model, BaselineConfig)
    assert isinstance(small("ssd-tiny").model.scoring, Sigmoid)


# ----------------------------------------------------------------------------------------------------------------- runs


class StopAfter(Callback):
    """Sends Ctrl-C after a number of steps."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step(self, event: StepTaken) -> None:
        if event.step == self.step:
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("name", ["faster-rcnn-tiny", "ssd-tiny"])
def test_a_resumed_run_equals_the_uninterrupted_one(name, tmp_path):
    data = write_blocks(tmp_path / "data", train=8, val=2)
    changes = {"recipe": {"batch_size": 2, "ema_decay": 0.5}}
    whole, _ = train_miniature(data, tmp_path / "whole", name, steps=4, changes=changes)
    stopped, _ = train_miniature(data, tmp_path / "part", name, steps=4, changes=changes, callbacks=[StopAfter(2)])
    assert (stopped.result.interrupted, stopped.result.step) == (True, 2)
    resumed = resume(tmp_path / "part", device="cpu", say=lambda line: None)
    assert resumed.result.metrics == whole.result.metrics
    detectors = [opendetr.load(run.folder, device="cpu") for run in (whole, resumed)]
    for one, other in zip(*(each.model.state_dict().values() for each in detectors), strict=True):
        assert torch.equal(one, other)
    found = detectors[0].predict(data / "val" / "1.png", min_score=0.0)
    assert found.categories.names == ("red", "green")


def test_weights_do_not_start_a_run_on_other_classes(tmp_path):
    """It would get the outputs of the old ones."""
    two = write_blocks(tmp_path / "two", train=4, val=2)
    run, _ = train_miniature(two, tmp_path / "run", "retinanet-tiny", steps=1)
    other = write_blocks(tmp_path / "other", train=4, val=2, classes=3)
    with pytest.raises(WeightsError, match="other classes"):
        train(other, weights=run.folder, out=tmp_path / "new", max_steps=1, say=lambda line: None)
    again = train(two, weights=run.folder, out=tmp_path / "again", max_steps=1, say=lambda line: None)
    assert again.result.step == 1
