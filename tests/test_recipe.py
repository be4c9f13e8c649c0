"""Recipes: parameter groups, schedules, lengths."""

from __future__ import annotations

import itertools

import pytest
from torch import nn

from opendetr.recipe import Recipe, learning_rate_factor, parameter_groups, parse_duration, plan_epochs, plan_time


class Detector(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1))
        self.backbone[0].requires_grad_(False)
        self.position = nn.Embedding(5, 4)
        self.head = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))


def test_groups_are_those_of_the_paper():
    groups = parameter_groups(Detector(), Recipe())
    by_rate = {group["lr"]: group for group in groups}
    assert set(by_rate) == {1e-4, 1e-5}
    assert by_rate[1e-5]["names"] == ["backbone.1.weight", "backbone.1.bias", "position.weight"]
    assert by_rate[1e-4]["names"] == ["head.0.weight", "head.0.bias", "head.1.weight", "head.1.bias"]
    assert all(group["weight_decay"] == 1e-4 for group in groups)
    assert all(len(group["names"]) == len(group["params"]) for group in groups)


def test_groups_without_decay_of_vectors():
    groups = parameter_groups(Detector(), Recipe(decay_norms_and_biases=False))
    assert len(groups) == 4
    for group in groups:
        for parameter in group["params"]:
            assert group["weight_decay"] == (1e-4 if parameter.ndim > 1 else 0.0)


def test_equal_rates_make_one_group():
    assert len(parameter_groups(Detector(), Recipe(backbone_learning_rate=1e-4))) == 1


def test_step_schedule_is_that_of_the_paper():
    recipe, total = Recipe(), 300 * 1848
    assert learning_rate_factor(200 * 1848 - 1, total, recipe) == 1.0
    assert learning_rate_factor(200 * 1848, total, recipe) == 0.1


def test_cosine_ends_at_the_floor():
    recipe = Recipe(schedule="cosine", warmup_steps=10, floor=0.01)
    factors = [learning_rate_factor(step, 110, recipe) for step in range(111)]
    assert factors[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert factors[10] == 1.0
    assert factors[60] == pytest.approx(0.505)
    assert factors[110] == pytest.approx(0.01)
    assert all(after <= before for before, after in itertools.pairwise(factors[10:]))


def test_only_the_warmup_acts_while_the_length_is_unknown():
    recipe = Recipe(schedule="cosine", warmup_steps=4)
    assert [learning_rate_factor(step, None, recipe) for step in (0, 3, 4, 10**6)] == [0.25, 1.0, 1.0, 1.0]


def test_plan_of_epochs():
    plan = plan_epochs(Recipe(epochs=3, num_evaluations=2), 7)
    assert plan.total_steps == 21
    assert [step for step in range(22) if plan.evaluates_after(step)] == [11, 21]


def test_plan_of_time_accounts_for_evaluations_and_checkpoints():
    recipe = Recipe(time=1000, num_evaluations=5, save_every=100)
    known = {"step": 20, "seconds": 100.0, "step_seconds": 2.0}
    free = plan_time(recipe, **known, evaluation_seconds=0, save_seconds=0)
    assert free.total_steps == 20 + 450
    paid = plan_time(recipe, **known, evaluation_seconds=10, save_seconds=1)
    assert paid.total_steps == 20 + int((900 - 5 * 10 - (5 + 9) * 1) / 2)
    assert sum(paid.evaluates_after(step) for step in range(paid.total_steps + 1)) == 5


def test_slow_evaluations_are_made_less_often():
    plan = plan_time(Recipe(time=1000), step=5, seconds=50, step_seconds=1, evaluation_seconds=60, save_seconds=0)
    assert sum(plan.evaluates_after(step) for step in range(plan.total_steps + 1)) == 1


def test_plan_of_a_time_that_is_over_still_has_a_step():
    plan = plan_time(Recipe(time=10), step=5, seconds=50, step_seconds=1, evaluation_seconds=6, save_seconds=1)
    assert plan.total_steps == 6


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), ("45s", 45), ("30m", 1800), ("1.5h", 5400), ("1h30m", 5400), (" 2D ", 172800), ("1h 5 m", 3900)],
)
def test_durations(text, seconds):
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "m", "0", "-5m", "5 minutes", "1h30", "1,5h"])
def test_no_durations(text):
    with pytest.raises(ValueError, match="write it like"):
        parse_duration(text)


@pytest.mark.parametrize(
    "wrong",
    [
        {"batch_size": 0},
        {"batch_size": 2, "accumulate": 3},
        {"learning_rate": -1.0},
        {"step_at": 1.5},
        {"ema_decay": 1.0},
        {"time": 0.0},
        {"schedule": "linear"},
        {"precision": "fp16"},
        {"clip_norm": float("nan")},
    ],
)
def test_a_recipe_out_of_range_names_the_field(wrong):
    with pytest.raises(ValueError, match=rf"recipe\.{list(wrong)[-1]}: expected"):
        Recipe(**wrong)
