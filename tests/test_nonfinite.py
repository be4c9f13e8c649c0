"""A model whose weights are finite and whose output is not: one line, never empty predictions or an AP of 0."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from folders import one_line
from opendetr.categories import Categories
from opendetr.data.formats.recognise import open_data
from opendetr.inference.predictor import Predictor
from opendetr.presets import build_model, miniature
from opendetr.structures import NonFiniteError
from opendetr.synthetic import write_scenes
from opendetr.training import run as training
from test_cli import SMALL, failure

PANOPTIC = "detr-tiny-panoptic"
CLASSES = Categories.from_names("ab")
IMAGE = np.zeros((48, 64, 3), np.uint8)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "scenes"
    write_scenes(folder, counts={"train": 4, "val": 4})
    return folder


def overflowing(model: nn.Module, part: str, value: float = math.inf) -> nn.Module:
    """The model, one activation of which, of the last layer and image, is `value` in evaluation."""

    def hook(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor | None:
        if model.training:
            return None
        output = output.clone()
        output.view(-1)[-1:].fill_(value)
        return output

    model.get_submodule(part).register_forward_hook(hook)
    return model


def detector(part: str, value: float, categories: Categories) -> Predictor:
    model = build_model(miniature(PANOPTIC), len(categories)).eval()
    with torch.no_grad():  # every query takes part in the map
        model.detector.class_head.bias[-1] = -10.0
    return Predictor(overflowing(model, part, value), miniature(PANOPTIC), categories, device="cpu")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("part", ["detector.class_head", "detector.encoder", "head.out"])
@pytest.mark.parametrize("panoptic", [False, True])
def test_a_prediction_is_one_line(part, value, panoptic):
    with pytest.raises(NonFiniteError, match="is not finite: the activations of the model overflow") as error:
        detector(part, value, CLASSES).predict(IMAGE, panoptic=panoptic, min_score=0.0)
    one_line(error.value)
    assert ("a mask logit" in str(error.value)) == (part == "head.out")


def test_boxes_that_are_no_numbers_are_one_line():
    with pytest.raises(NonFiniteError, match="a class logit or box is not finite"):
        detector("detector.box_head", math.nan, CLASSES).predict(IMAGE)


def test_an_evaluation_is_one_line(scenes):
    data = open_data(scenes)["val"]
    with pytest.raises(NonFiniteError, match="a class logit or box is not finite"):
        detector("detector.class_head", math.nan, data.categories).evaluate(data)


@pytest.fixture
def overflowing_tasks(monkeypatch):
    """Every run trains a model that overflows in evaluation."""
    new_task = training._random_task

    def planted(*args, **options):
        task = new_task(*args, **options)
        overflowing(task.model, "class_head")
        return task

    monkeypatch.setattr(training, "_random_task", planted)


def test_an_evaluation_during_training_is_one_line(scenes, tmp_path, overflowing_tasks):
    line = failure("train", scenes, "--model", "detr-tiny", "--weights", "none", "--out", tmp_path / "run",
                   "--epochs", 1, "--ema", 0, *SMALL)  # fmt: skip
    assert line.startswith("error: a class logit or box is not finite")
    assert (tmp_path / "run" / "last").exists()
    assert not (tmp_path / "run" / "best").exists()
