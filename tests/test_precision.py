"""Models whose weights are float64 or bfloat16: outputs, masks, results, losses and gradients, for the catalogue."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from inputs import batch_for, run_model
from opendetr.categories import Categories
from opendetr.postprocess import detect_with_queries, image_masks
from opendetr.presets import build_task, miniature
from opendetr.structures import ImageBatch
from opendetr.tasks import Task
from test_catalogue import NUM_CLASSES, everyone, images, small, target

SIZES = ((64, 64), (48, 80))
DTYPES = {"double": torch.float64, "bfloat16": torch.bfloat16}
# Of the largest value. With bfloat16 a two-stage model may start from other proposals.
TOLERANCES = {"double": 1e-4, "bfloat16": 0.1}
in_both = pytest.mark.parametrize("dtype", DTYPES)


def outcome(task: Task) -> dict[str, Tensor]:
    """Everything that the model and its losses give for two images, by name."""
    targets = tuple(target(count, size) for count, size in zip((3, 2), SIZES, strict=True))
    batch = batch_for(task.model, images(*SIZES), targets)
    output = run_model(task.model, batch.images)
    values = {}
    for index, layer in enumerate(output.layers):
        values |= {f"logits {index}": layer.logits, f"boxes {index}": layer.boxes}
    if output.masks is not None:
        values["masks"] = output.masks(torch.tensor([1, 0, 1]), torch.tensor([0, 2, 3]))
    losses = task.losses(output, batch.targets)
    return values | losses | {"total": task.total(losses)}


@everyone
@in_both
def test_a_model_in_another_precision_agrees_with_float32(name, dtype):
    model = small(name)
    task = build_task(miniature(name), model, NUM_CLASSES).eval()
    with torch.no_grad():
        expected = outcome(task)
    model.to(DTYPES[dtype])
    found = outcome(task)
    found["total"].backward()
    needed = [each for each in task.named_parameters() if not each[0].startswith(task.optional_parameters)]
    assert all(parameter.grad.isfinite().all() for _, parameter in needed if parameter.requires_grad)
    coarse = dtype == "bfloat16" and model.has_proposals
    for key, value in found.items():
        assert value.dtype == (torch.float64 if dtype == "double" else torch.float32), key
        tolerance = 0.5 if coarse and key in ("total", *task.criterion.weights) else TOLERANCES[dtype]
        if not coarse or not key.startswith(("logits", "boxes", "masks")):
            assert (value - expected[key]).abs().max() <= tolerance * expected[key].abs().max(), key


@everyone
@in_both
def test_the_smallest_images_and_what_users_receive(name, dtype):
    model = small(name).to(DTYPES[dtype]).train()
    for sizes in [((1, 1),), ((33, 65), (64, 31))]:
        pixels, in_pixels = images(*sizes), torch.tensor(sizes)
        with torch.no_grad():
            output = run_model(model, pixels)
        found = detect_with_queries(output.final, in_pixels, Categories.from_names("abcd"))
        for detections, _ in found:
            assert len(detections) and detections.boxes.isfinite().all()
            assert detections.boxes.dtype == detections.scores.dtype == torch.float32
        if model.has_masks and sizes != ((1, 1),):
            for masks in image_masks(output, pixels, in_pixels, queries=[queries for _, queries in found]):
                assert masks.instances().dtype == torch.bool


@in_both
def test_images_are_cast_to_the_dtype_of_the_weights(dtype):
    """So the caller's own cast of the images changes nothing."""
    model, pixels = small("detr-r18").to(DTYPES[dtype]).eval(), images(*SIZES)
    cast = ImageBatch(pixels.pixels.to(DTYPES[dtype]), pixels.padding, pixels.sizes)
    with torch.no_grad():
        assert torch.equal(model(pixels).final.boxes, model(cast).final.boxes)
