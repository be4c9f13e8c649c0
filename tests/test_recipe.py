"""Recipes: parameter groups, schedules, lengths."""

from __future__ import annotations

import itertools

import pytest
from torch import nn

from opendetr.models import Detector as AnyDetector
from opendetr.recipe import Recipe, parse_duration
from opendetr.training.optimizer import parameter_groups
from opendetr.training.schedule import Pace, Plan, StepSpeed, learning_rate_factor, plan_steps, plan_time, revised


class Detector(nn.Module):
    parameter_rates = AnyDetector.parameter_rates

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


def evaluations(plan: Plan) -> list[int]:
    return [step for step in range(plan.total_steps + 1) if plan.evaluates_after(step)]


def test_plan_of_epochs():
    plan = plan_steps(Recipe(epochs=3, num_evaluations=2), 7)
    assert plan.total_steps == 21
    assert evaluations(plan) == [11, 21]


def test_plan_of_steps():
    plan = plan_steps(Recipe(epochs=3, max_steps=5, num_evaluations=2), 7)
    assert plan.total_steps == 5
    assert evaluations(plan) == [3, 5]


def test_plan_of_time_accounts_for_evaluations_and_checkpoints():
    recipe = Recipe(time=1000, num_evaluations=5, save_every=100)
    assert plan_steps(recipe, 7) is None
    free = plan_time(recipe, 20, Pace(used=100, step=2, evaluation=0, save=0))
    assert free.total_steps == 20 + 450
    paid = plan_time(recipe, 20, Pace(used=100, step=2, evaluation=10, save=1))
    assert paid.total_steps == 20 + int((900 - 5 * 10 - (5 + 9) * 1) / 2)
    assert len(evaluations(paid)) == 5


def test_slow_evaluations_are_made_less_often():
    plan = plan_time(Recipe(time=1000), 5, Pace(used=50, step=1, evaluation=60, save=0))
    assert len(evaluations(plan)) == 1


def test_plan_of_a_time_that_is_over_still_has_a_step():
    assert plan_time(Recipe(time=10), 5, Pace(used=50, step=1, evaluation=6, save=1)).total_steps == 6


def test_a_plan_follows_the_speed():
    recipe, plan = Recipe(time=1000, schedule="cosine"), Plan(1000, 100)
    assert revised(plan, recipe, 500, Pace(used=500, step=1.03, evaluation=0, save=0)) is plan  # 15 s, below 2 %
    slower = revised(plan, recipe, 500, Pace(used=500, step=2, evaluation=0, save=0))
    assert slower == Plan(750, 100)
    dearer = revised(plan, recipe, 500, Pace(used=500, step=2, evaluation=20, save=5))
    assert dearer == Plan(500 + int((500 - 25) / (2 + 0.25 + 5 * 2 / 300)), 100)
    assert revised(slower, recipe, 600, Pace(used=700, step=1, evaluation=0, save=0)) == Plan(900, 100)
    assert revised(plan, recipe, 500, Pace(used=1100, step=2, evaluation=0, save=0)) == Plan(501, 100)


def test_a_learning_rate_that_was_stepped_down_stays_down():
    recipe, plan = Recipe(time=1000, schedule="step"), Plan(600, 100)
    faster = Pace(used=500, step=1, evaluation=0, save=0)
    assert revised(plan, recipe, 300, faster) == Plan(800, 100)
    assert revised(plan, recipe, 400, faster) is plan


def test_the_first_steps_tell_nothing_about_the_speed():
    speed = StepSpeed()
    for seconds in (9, 9, 9, *[2] * 20):
        assert not speed.is_reliable
        speed.add(seconds)
    assert speed.is_reliable and speed.step_seconds == 2
    assert [speed.is_known(used, 100) for used in (4.9, 5)] == [False, True]


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
        {"precision": "fp8"},
        {"patience": -1},
        {"max_steps": 0},
        {"max_steps": 5, "time": 60.0},
        {"clip_norm": float("nan")},
    ],
)
def test_a_recipe_out_of_range_names_the_field(wrong):
    with pytest.raises(ValueError, match=rf"recipe\.{list(wrong)[-1]}: expected"):
        Recipe(**wrong)
