"""Recipes: parameter groups, schedules, lengths."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import replace

import pytest
from torch import nn

from opendetr.models import Detector as AnyDetector
from opendetr.recipe import Recipe, parse_duration
from opendetr.training.optimizer import parameter_groups
from opendetr.training.schedule import (
    Evaluations,
    Pace,
    Plan,
    StepSpeed,
    learning_rate_factor,
    plan_evaluations,
    plan_steps,
    plan_time,
    revise_plan,
)


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


def factors(recipe: Recipe, plan: Plan | None, steps: Iterable[int]) -> list[float]:
    return [learning_rate_factor(step, plan, recipe) for step in steps]


def test_step_schedule_is_that_of_the_paper():
    plan = Plan(300 * 1848, 1848)
    assert factors(Recipe(), plan, (200 * 1848 - 1, 200 * 1848)) == [1.0, 0.1]


def test_cosine_ends_at_the_floor():
    rates = factors(Recipe(schedule="cosine", floor=0.01), Plan(110, 11, warmup_steps=10), range(111))
    assert rates[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert rates[10] == 1.0
    assert rates[60] == pytest.approx(0.505)
    assert rates[110] == pytest.approx(0.01)
    assert all(after <= before for before, after in itertools.pairwise(rates[10:]))


def test_only_the_warmup_acts_while_the_length_is_unknown():
    recipe = Recipe(schedule="cosine", warmup_steps=4)
    assert factors(recipe, None, (0, 3, 4, 10**6)) == [0.25, 1.0, 1.0, 1.0]
    assert factors(replace(recipe, warmup_steps=None), None, (0, 199, 10**6)) == [1 / 200, 1.0, 1.0]


@pytest.mark.parametrize(("steps", "warmup", "decay"), [(50, 5, 0.6), (154, 16, 1 - 1 / 7.7), (500, 50, 0.96),
                                                        (5000, 200, 0.996), (10**6, 200, 0.9998)])  # fmt: skip
def test_warmup_and_average_follow_the_length(steps, warmup, decay):
    plan, _ = plan_steps(Recipe(max_steps=steps, warmup_steps=None, ema_decay=None), 7)
    assert (plan.warmup_steps, plan.ema_decay) == (warmup, pytest.approx(decay))
    assert learning_rate_factor(warmup, plan, Recipe(schedule="cosine", warmup_steps=None)) == 1.0
    given, _ = plan_steps(Recipe(max_steps=steps, warmup_steps=3, ema_decay=0.5), 7)
    assert (given.warmup_steps, given.ema_decay) == (3, 0.5)


def evaluations(plan: Plan) -> list[int]:
    return [step for step in range(plan.total_steps + 1) if plan.evaluates_after(step)]


def test_plan_of_epochs():
    plan, _ = plan_steps(Recipe(epochs=3, num_evaluations=2), 7)
    assert plan.total_steps == 21
    assert evaluations(plan) == [11, 21]


def test_plan_of_steps():
    plan, _ = plan_steps(Recipe(epochs=3, max_steps=5, num_evaluations=2), 7)
    assert plan.total_steps == 5
    assert evaluations(plan) == [3, 5]


@pytest.mark.parametrize(
    ("affordable", "num_images", "count", "images"),
    [
        (10_000, 73, 10, None),  # ten are enough
        (400, 73, 5, None),
        (180, 73, 5, 21),  # two on all images: five on a part, and the last one on all
        (400, 1000, 5, 32),
        (73, 73, 1, None),  # a part would be too small
    ],
)
def test_evaluations_follow_what_they_cost(affordable, num_images, count, images):
    assert plan_evaluations(Recipe(time=100.0), affordable, num_images) == Evaluations(count, images)


def test_the_fixed_part_of_an_evaluation_counts():
    recipe = Recipe(time=100.0)
    assert plan_evaluations(recipe, 400, 73, overhead_images=7) == Evaluations(5)
    assert plan_evaluations(recipe, 400, 73, overhead_images=20) == Evaluations(4)
    assert plan_evaluations(recipe, 180, 73, overhead_images=3) == Evaluations(5, 17)
    assert plan_evaluations(recipe, 180, 73, overhead_images=8) == Evaluations(1)


def test_the_initial_weights_are_compared_on_a_part_if_there_is_no_time_for_all():
    recipe = Recipe(time=100.0)
    assert plan_evaluations(recipe, 60, 73, evaluates_start=True) == Evaluations(1, 16)
    assert plan_evaluations(recipe, 80, 73, evaluates_start=True) == Evaluations(1)
    assert plan_evaluations(recipe, 10, 16, evaluates_start=True) == Evaluations(1)
    assert plan_evaluations(recipe, 60, 73) == Evaluations(1)
    assert plan_evaluations(Recipe(max_steps=9), 10, 73, evaluates_start=True) == Evaluations(1)


def test_the_last_evaluation_uses_some_images_if_all_would_take_most_of_the_time():
    partial = Evaluations(1, 40, all_at_end=False)
    assert plan_evaluations(Recipe(time=100.0), 40, 300) == partial
    assert pace(0, 1, image=0.5).evaluation_seconds(partial, 1) == 20
    assert plan_evaluations(Recipe(time=100.0), 0, 73) == Evaluations(1, 16, all_at_end=False)
    assert plan_evaluations(Recipe(max_steps=9), 4, 300) == Evaluations(1)  # without a time


def test_a_given_number_of_evaluations_is_kept_where_no_time_is_given():
    assert plan_evaluations(Recipe(max_steps=9, num_evaluations=7), 1, 5000) == Evaluations(7)
    assert plan_evaluations(Recipe(time=100.0, num_evaluations=2), 10_000, 73) == Evaluations(2)


def pace(used: float, step: float, image: float = 0, save: float = 0, evaluation: float = 0, report: float = 0) -> Pace:
    return Pace(used=used, step=step, image=image, save=save, evaluation=evaluation, report=report, num_images=40)


def test_plan_of_time_accounts_for_evaluations_and_checkpoints():
    recipe, five = Recipe(time=1000, save_every=100), Evaluations(5)
    assert plan_steps(recipe, 7) is None
    assert plan_time(recipe, 20, pace(100, 2), five).total_steps == 20 + 450
    assert plan_time(recipe, 20, pace(100, 2, report=30), five).total_steps == 20 + 435
    paid = plan_time(recipe, 20, pace(100, 2, image=0.25, save=1, evaluation=1), five)
    left = 900 - 5 * (40 * 0.25 + 1)
    assert paid.total_steps == 20 + int((left - 5 * (1 + int(left / 5 / 100))) / 2)
    assert len(evaluations(paid)) == 5
    partial = plan_time(recipe, 20, pace(100, 2, image=1), Evaluations(5, 10))
    assert partial.total_steps == 20 + int((900 - 5 * 10 - 40) / 2)  # the last one is made on the part and on all


def test_an_interval_that_ends_shortly_before_the_end_is_not_evaluated():
    assert evaluations(Plan(123, 117)) == [123]  # the plan has grown from 117 steps
    assert evaluations(Plan(176, 117)) == [117, 176]
    assert evaluations(Plan(91, 10)) == [10, 20, 30, 40, 50, 60, 70, 80, 91]


def test_plan_of_a_time_that_is_over_ends_but_has_a_step():
    over = pace(50, 1, image=1, save=1)
    assert [plan_time(Recipe(time=10), step, over, Evaluations(1)).total_steps for step in (0, 1, 5)] == [1, 1, 5]


def test_a_plan_follows_the_speed():
    recipe, plan, ten = Recipe(time=1000, schedule="cosine"), Plan(1000, 100, 7, 0.9), Evaluations(10)
    assert revise_plan(plan, recipe, 500, pace(500, 1.01), ten) is plan  # 5 s, below 1 %
    slower = revise_plan(plan, recipe, 500, pace(500, 2), ten)
    assert slower == Plan(750, 100, 7, 0.9, revised_at=500, decayed=(500 - 7) / (1000 - 7))
    dearer = revise_plan(plan, recipe, 500, pace(500, 2, image=0.5, save=5), ten)
    left = 500 - 5 * 20
    assert dearer.total_steps == 500 + int((left - 5 * 5) / 2)
    assert revise_plan(slower, recipe, 600, pace(700, 1), ten).total_steps == 900
    assert revise_plan(plan, recipe, 500, pace(1100, 2), ten).total_steps == 500  # the time is over


@pytest.mark.parametrize("lengths", [(150, 400), (700, 600), (17, 27, 33), (120, 101, 1000)])
def test_a_revised_cosine_neither_jumps_nor_rises(lengths):
    """Every plan but the first one is made after 80 % of the steps of the plan before."""
    recipe, first = Recipe(time=1, schedule="cosine"), lengths[0]
    plan, rates, step = Plan(first, 10, warmup_steps=5), [], 0
    for length in lengths[1:]:
        end = plan.total_steps * 4 // 5
        rates += factors(recipe, plan, range(step, end))
        step = end
        seconds = 1 / (length - step)  # per step, so that as many steps fit the time of the run
        revised = revise_plan(plan, recipe, step, pace(0, seconds), Evaluations(1))
        assert abs(revised.total_steps - length) <= 1
        assert learning_rate_factor(step, revised, recipe) == pytest.approx(learning_rate_factor(step, plan, recipe))
        plan = revised
    rates += factors(recipe, plan, range(step, plan.total_steps + 1))
    assert all(after <= before for before, after in itertools.pairwise(rates[5:]))
    assert rates[-1] == pytest.approx(0.0, abs=1e-9)


def test_a_learning_rate_that_was_stepped_down_stays_down():
    recipe, plan = Recipe(time=1000, schedule="step"), Plan(600, 100)
    assert revise_plan(plan, recipe, 300, pace(500, 1), Evaluations(6)).total_steps == 800
    assert revise_plan(plan, recipe, 400, pace(500, 1), Evaluations(6)) is plan


def test_the_first_steps_tell_nothing_about_the_speed():
    speed = StepSpeed()
    assert speed.step_seconds == 0
    for seconds in (9, 9, 9, *[2] * 7):
        assert not speed.is_reliable
        speed.add(seconds)
    assert speed.is_reliable and speed.step_seconds == 2
    assert [speed.is_known(used, 100) for used in (4.9, 5)] == [False, True]


def test_the_speed_follows_new_steps_by_a_fourth():
    speed = StepSpeed(4.0)
    assert speed.step_seconds == 4
    for _ in range(5):
        speed.add(2)
    assert speed.step_seconds == 3.5


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("45s", 45), ("30m", 1800), ("1.5h", 5400), ("1h30m", 5400), (" 2D ", 172800), ("1h 5 m", 3900)],
)
def test_durations(text, seconds):
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "m", "0", "-5m", "5 minutes", "1h30", "1,5h"])
def test_no_durations(text):
    with pytest.raises(ValueError, match="write it like"):
        parse_duration(text)


@pytest.mark.parametrize("text", ["30", " 90 ", "1.5"])
def test_a_duration_needs_a_unit(text):
    """Other tools read a number as hours."""
    number = text.strip()
    with pytest.raises(ValueError, match=f"'{number}' has no unit; write {number}s for seconds, {number}m for minutes"):
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
