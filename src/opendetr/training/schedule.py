"""The schedule of a run: its learning rate, its steps and evaluations, and how many of them fit a given time."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from opendetr.recipe import Recipe

EVALUATION_SHARE = 0.1
STEP_FACTOR = 0.1
_TOLERANCE = 0.02


@dataclass(frozen=True)
class Plan:
    """The length of a run. It is stored, so that a resumed run keeps its schedule.

    Attributes:
        total_steps: optimiser steps of the whole run.
        evaluate_every: steps from one evaluation to the next; the last one is at the end in any case.
    """

    total_steps: int
    evaluate_every: int

    def evaluates_after(self, step: int) -> bool:
        """Whether an evaluation belongs after the first `step` steps."""
        return step > 0 and (step % self.evaluate_every == 0 or step >= self.total_steps)


@dataclass(frozen=True, kw_only=True)
class Pace:
    """What was measured of a timed run, in seconds.

    Attributes:
        used: of the time so far.
        step: of one step, loading the data included.
        evaluation: of one evaluation.
        save: of saving one checkpoint.
    """

    used: float
    step: float
    evaluation: float
    save: float


def plan_steps(recipe: Recipe, steps_per_epoch: int) -> Plan | None:
    """The plan of a run over `recipe.max_steps` or `recipe.epochs`; None for a timed run, whose speed is not known."""
    if recipe.time is not None:
        return None
    total = recipe.max_steps if recipe.max_steps is not None else recipe.epochs * steps_per_epoch
    return Plan(total, math.ceil(total / recipe.num_evaluations))


def plan_time(recipe: Recipe, step: int, pace: Pace) -> Plan:
    """The plan of a run over `recipe.time` seconds, once its speed is known.

    Evaluations take at most a tenth of the time: there are fewer than `recipe.num_evaluations` when they are slow.

    Args:
        recipe: gives the time, the evaluations and how often a checkpoint is saved.
        step: steps taken so far.
        pace: as measured so far.
    """
    assert recipe.time is not None
    left = max(recipe.time - pace.used, 0.0)
    affordable = int(EVALUATION_SHARE * recipe.time / max(pace.evaluation, 1e-9))
    num_evaluations = max(1, min(recipe.num_evaluations, affordable))
    num_saves = num_evaluations + left / max(recipe.save_every, pace.save, 1.0)
    training = left - num_evaluations * pace.evaluation - num_saves * pace.save
    total = step + max(1, int(training / pace.step))
    return Plan(total, math.ceil(total / num_evaluations))


def revised(plan: Plan, recipe: Recipe, step: int, pace: Pace) -> Plan:
    """The plan of a timed run when the speed has changed; the plan itself where it still meets the time within 2 %.

    A machine that others use, too, is not as fast at the end as it was when the plan was made. A learning rate that
    has been stepped down stays down.

    Args:
        plan: the one so far; its evaluations keep their distance.
        recipe: gives the time and the schedule.
        step: steps taken so far, fewer than the plan's.
        pace: as measured since the plan was made.
    """
    assert recipe.time is not None
    left = max(recipe.time - pace.used, 0.0)
    between = (pace.evaluation + pace.save) / plan.evaluate_every
    cost = pace.step + between + pace.save * pace.step / max(recipe.save_every, pace.save, 1.0)
    if abs((plan.total_steps - step) * cost - left) <= _TOLERANCE * recipe.time:
        return plan
    new = replace(plan, total_steps=step + max(1, int((left - pace.evaluation - pace.save) / cost)))
    before, after = (learning_rate_factor(step, each.total_steps, recipe) for each in (plan, new))
    return plan if recipe.schedule == "step" and after > before else new


class StepSpeed:
    """The seconds of a step, measured after the first few, which are slower."""

    _SKIPPED, _ENOUGH = 3, 20
    _EARLIEST, _LATEST = 0.05, 0.15  # shares of the time given

    def __init__(self) -> None:
        self._num_steps = 0
        self._seconds = self._skipped_seconds = 0.0

    def add(self, seconds: float) -> None:
        """Take in one step."""
        self._num_steps += 1
        if self._num_steps <= self._SKIPPED:
            self._skipped_seconds += seconds
        else:
            self._seconds += seconds

    @property
    def step_seconds(self) -> float:
        """The mean of what was measured, of the first steps if there are no others."""
        num_measured = self._num_steps - self._SKIPPED
        return self._seconds / num_measured if num_measured > 0 else self._skipped_seconds / self._num_steps

    @property
    def is_reliable(self) -> bool:
        """Whether enough steps were measured for their mean to tell something."""
        return self._num_steps >= self._SKIPPED + self._ENOUGH

    def is_known(self, seconds: float, time_given: float) -> bool:
        """Whether enough of the run has passed to plan it."""
        share = self._EARLIEST if self.is_reliable else self._LATEST
        return self._num_steps > 0 and seconds >= time_given * share


def learning_rate_factor(step: int, total_steps: int | None, recipe: Recipe) -> float:
    """The share of the full learning rate that a step takes: a pure function, so that a resumed run needs no state.

    Args:
        step: optimiser steps that were taken before this one.
        total_steps: steps of the whole run; None while a timed run does not know it yet, when only the warm-up acts.
        recipe: gives schedule, warm-up, `step_at` and `floor`.
    """
    if step < recipe.warmup_steps:
        return (step + 1) / recipe.warmup_steps
    if total_steps is None:
        return 1.0
    if recipe.schedule == "step":
        return STEP_FACTOR if step >= round(recipe.step_at * total_steps) else 1.0
    progress = (step - recipe.warmup_steps) / max(total_steps - recipe.warmup_steps, 1)
    return recipe.floor + (1 - recipe.floor) * (1 + math.cos(math.pi * min(progress, 1.0))) / 2
