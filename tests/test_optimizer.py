"""The optimizer: its kind, and the learning rates and schedules that models and tasks declare."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from opendetr.presets import build_model, list_models, miniature
from opendetr.recipe import LinearSchedule, ParameterRate, Recipe
from opendetr.training.events import Callback
from opendetr.training.optimizer import parameter_groups
from opendetr.training.trainer import Trainer
from stand_ins import CountingTask, RandomLoader

STEPS = 10
RECIPE = Recipe(learning_rate=1e-2, backbone_learning_rate=2e-3, weight_decay=0.1, batch_size=4, max_steps=STEPS,
                clip_norm=0.0, step_at=0.6, save_every=1000)  # fmt: skip


def trained(task: nn.Module, folder, recipe: Recipe, *, resume: bool = False, callbacks=()) -> dict[str, torch.Tensor]:
    trainer = Trainer(task, RandomLoader(), recipe, folder, device="cpu", callbacks=callbacks)
    trainer.train(resume=resume)
    return {name: value.clone() for name, value in task.named_parameters()}


def plain_loop(task: CountingTask, optimizer: torch.optim.Optimizer, factors) -> dict[str, torch.Tensor]:
    """The weights after a loop as in torch's tutorials; each group has its full "rate"."""
    loader = RandomLoader()
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = group["rate"] * factors(group, step)
        batch = loader.batch(*divmod(step, len(loader)))
        optimizer.zero_grad()
        task.total(task(batch, task.normaliser([len(target) for target in batch.targets]))).backward()
        optimizer.step()
    return dict(task.named_parameters())


def step_factor(group, step: int) -> float:
    return 1.0 if step < 6 else 0.1


def assert_close(found, expected) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5, msg=lambda text, name=name: name + text)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_sgd_equals_a_plain_torch_loop(tmp_path, momentum):
    found = trained(CountingTask(dropout=0.0), tmp_path, replace(RECIPE, optimizer="sgd", momentum=momentum))
    task = CountingTask(dropout=0.0)
    groups = [
        {"params": task.backbone.parameters(), "rate": 2e-3},
        {"params": task.head.parameters(), "rate": 1e-2},
    ]
    optimizer = torch.optim.SGD(groups, lr=1.0, momentum=momentum, weight_decay=0.1)
    assert_close(found, plain_loop(task, optimizer, step_factor))


class StopAt(Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step(self, event) -> None:
        if event.step == self.step:
            import os
            import signal

            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_resumed_run_with_sgd_equals_the_uninterrupted_one(tmp_path, momentum):
    recipe = replace(RECIPE, optimizer="sgd", momentum=momentum)
    whole = trained(CountingTask(), tmp_path / "whole", recipe)
    trained(CountingTask(), tmp_path / "stopped", recipe, callbacks=[StopAt(4)])
    resumed = trained(CountingTask(), tmp_path / "stopped", recipe, resume=True)
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())


class TextTask(CountingTask):
    """Its head has a rate and a schedule of its own, as the text encoder of MDETR."""

    def __init__(self) -> None:
        super().__init__(dropout=0.0)
        own = ParameterRate(
            names=frozenset({"head"}), rate=lambda recipe: recipe.learning_rate / 2, schedule=LinearSchedule(0.3)
        )
        self.parameter_rates = (own, *self.parameter_rates)


def test_a_declared_rate_and_schedule_are_those_of_a_plain_torch_loop(tmp_path):
    found = trained(TextTask(), tmp_path, RECIPE)
    task = TextTask()
    groups = [
        {"params": task.backbone.parameters(), "rate": 2e-3, "own": False},
        {"params": task.head.parameters(), "rate": 5e-3, "own": True},
    ]
    linear = [0, 1 / 3, 2 / 3, *(1 - k / 7 for k in range(7))]
    expected = plain_loop(
        task,
        torch.optim.AdamW(groups, weight_decay=0.1),
        lambda group, step: linear[step] if group["own"] else step_factor(group, step),
    )
    assert_close(found, expected)


def test_the_linear_schedule_is_that_of_transformers():
    transformers = pytest.importorskip("transformers")
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = transformers.get_linear_schedule_with_warmup(optimizer, 3, 100)
    schedule = LinearSchedule(0.03)
    for step in range(101):
        assert schedule(step, 100) == pytest.approx(theirs.get_last_lr()[0])
        optimizer.step()
        theirs.step()
    assert schedule(5, None) == 0.0, "a timed run is not planned yet"
    assert LinearSchedule(0.0)(0, 100) == 1.0


def test_names_are_those_inside_the_module_that_declares_them_and_outer_modules_come_first():
    inner, outer = nn.Module(), nn.Module()
    inner.head, inner.text = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)
    outer.part, outer.head, outer.text = inner, nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)
    inner.parameter_rates = tuple(
        ParameterRate(names=frozenset({name}), rate=lambda recipe, rate=rate: rate)
        for name, rate in (("head", 3.0), ("text", 4.0), ("part", 5.0))
    )
    outer.parameter_rates = (ParameterRate(names=frozenset({"text"}), rate=lambda recipe: 2.0),)
    rates = {name: group["lr"] for group in parameter_groups(outer, Recipe()) for name in group["names"]}
    assert rates == {"part.head.weight": 3.0, "part.text.weight": 2.0, "head.weight": 1e-4, "text.weight": 2.0}


@pytest.mark.parametrize("name", list_models())
def test_the_models_of_the_catalogue_have_the_published_rates(name):
    rates = {"learning_rate": 1.0, "backbone_learning_rate": 0.5, "text_learning_rate": 0.75}
    recipe = replace(miniature(name).recipe, **rates, sampling_rate_factor=0.25)
    with torch.device("meta"):
        model = build_model(miniature(name), 4)
    groups = parameter_groups(model, recipe)
    for group in groups:
        for parameter in group["names"]:
            modules = set(parameter.split("."))
            if "text" in modules and name != "mdetr-tiny":  # which trains its text encoder like everything else
                assert (group["lr"], group["schedule"]) == (0.75, LinearSchedule(0.01)), parameter
                continue
            assert group["schedule"] is None
            sampling = 0.25 if modules & {"sampling_offsets", "reference_points"} else 1.0
            assert group["lr"] == (0.5 if modules & {"backbone", "position"} else sampling), parameter
    trained_names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert sorted(name for group in groups for name in group["names"]) == sorted(trained_names)


@pytest.mark.parametrize(("field", "value"), [("optimizer", "adam"), ("momentum", 1.0), ("momentum", -0.1)])
def test_settings_that_cannot_be(field, value):
    with pytest.raises(ValueError, match=f"recipe.{field}: expected"):
        Recipe(**{field: value})
