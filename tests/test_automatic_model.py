"""`--model auto`: which model is trained on which device."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from opendetr.presets import TRAINING_MEMORY, get_preset
from opendetr.training import automatic_model as module
from opendetr.training.automatic_model import automatic_model
from opendetr.training.settings import Setup, fit_to_memory
from opendetr.weights import published_files


def on_gpu(monkeypatch: pytest.MonkeyPatch, gigabytes: float) -> module.AutomaticModel:
    """The choice on a CUDA GPU with this memory, if all published files can be downloaded."""
    properties = SimpleNamespace(total_memory=int(gigabytes * 10**9))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(module, "weights_origin", lambda name: "somewhere")
    return automatic_model(torch.device("cuda"))


def test_a_cpu_trains_the_tiny_model():
    name, reason, images = automatic_model(torch.device("cpu"))
    assert (name, images) == ("deformable-detr-tiny", None)
    assert "CPU" in reason and "--model detr-r50" in reason


def test_a_small_gpu_trains_the_tiny_model(monkeypatch):
    choice = on_gpu(monkeypatch, 6)
    assert choice.name == "deformable-detr-tiny" and "6 GB" in choice.reason


@pytest.mark.parametrize("gigabytes", [8, 12, 24, 80])
def test_a_gpu_trains_the_best_model_that_fits(monkeypatch, gigabytes):
    choice = on_gpu(monkeypatch, gigabytes)
    files = published_files()
    of_model, of_image = TRAINING_MEMORY[choice.name]
    assert choice.images_at_once and of_model + choice.images_at_once * of_image <= gigabytes
    better = [name for name in TRAINING_MEMORY if (files[name].ap or 0) > (files[choice.name].ap or 0)]
    assert all(sum(TRAINING_MEMORY[name]) > 0.85 * gigabytes * 10**9 / 2**30 for name in better)
    assert choice.name in choice.reason and "--model deformable-detr-tiny" in choice.reason


def test_steps_are_divided_so_that_they_fit(tmp_path):
    setup = Setup(get_preset("deformable-detr-r50"), tmp_path, "published")
    assert fit_to_memory(setup, 3).preset.recipe.accumulate == 11
    assert fit_to_memory(setup, 32) is setup
    given = Setup(setup.preset, tmp_path, "published", frozenset({"accumulate"}))
    assert fit_to_memory(given, 3) is given
