"""The schedule of a run: learning rate, number of steps and evaluations, and how many of them fit a given time."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from opendetr.recipe import Recipe

EVALUATION_SHARE = 0.1
STEP_FACTOR = 0.1
_TOLERANCE = 0.02


@dataclass(frozen=True)
class Plan:
    """The length of a run. A checkpoint stores it, so a resumed run keeps its schedule.

    Attributes:
        total_steps: optimizer steps of the whole run.
        evaluate_every: steps between two evaluations. The last evaluation is always at the end.
    """

    total_steps: int
    evaluate_every: int

    def evaluates_after(self, step: int) -> bool:
        """Whether an evaluation is due after the first `step` steps."""
        return step > 0 and (step % self.evaluate_every == 0 or step >= self.total_steps)


@dataclass(frozen=True, kw_only=True)
class Pace:
    """The measured speed of a timed run, in seconds.

    Attributes:
        used: training time so far.
        step: duration of one step, including the wait for its batch.
        evaluation: duration of one evaluation.
        save: duration of saving one checkpoint.
    """

    used: float
    step: float
    evaluation: float
    save: float


def plan_steps(recipe: Recipe, steps_per_epoch: int) -> Plan | None:
    """The plan for `recipe.max_steps` or `recipe.epochs`; None for a timed run, because its speed is not known yet."""
    if recipe.time is not None:
        return None
    total = recipe.max_steps if recipe.max_steps is not None else recipe.epochs * steps_per_epoch
    return Plan(total, math.ceil(total / recipe.num_evaluations))


def plan_time(recipe: Recipe, step: int, pace: Pace) -> Plan:
    """The plan for a run of `recipe.time` seconds.

    Evaluations take at most a tenth of the time, so slow evaluations are fewer than `recipe.num_evaluations`.

    Args:
        recipe: the settings of the run.
        step: number of steps taken so far.
        pace: the measured speed.
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
    """Correct the plan of a timed run whose speed has changed, for example because the machine has become busy.

    The plan stays if the run would end within 2 % of the time, or if the new plan would raise a learning rate that the
    step schedule has already lowered.

    Args:
        plan: the plan so far. The distance of its evaluations stays.
        recipe: the settings of the run.
        step: number of steps taken so far, fewer than those of the plan.
        pace: the speed measured since the plan was made.
    """
    assert recipe.time is not None
    left = max(recipe.time - pace.used, 0.0)
    between = (pace.evaluation + pace.save) / plan.evaluate_every
    cost = pace.step + between + pace.save * pace.step / max(recipe.save_every, pace.save, 1.0)
    if abs((plan.total_steps - step) * cost - left) <= _TOLERANCE * recipe.time:
        return plan
    new = replace(plan, total_steps=step + max(1, int((left - pace.evaluation - pace.save) / cost)))
    before = learning_rate_factor(step, plan.total_steps, recipe)
    after = learning_rate_factor(step, new.total_steps, recipe)
    return plan if recipe.schedule == "step" and after > before else new


class StepSpeed:
    """The mean duration of a step. The first steps are slower and are not counted."""

    _SKIPPED, _ENOUGH = 3, 20  # steps
    _EARLIEST, _LATEST = 0.05, 0.15  # fractions of the given time

    def __init__(self) -> None:
        self._num_steps = 0
        self._seconds = self._skipped_seconds = 0.0

    def add(self, seconds: float) -> None:
        """Add the duration of one step."""
        self._num_steps += 1
        if self._num_steps <= self._SKIPPED:
            self._skipped_seconds += seconds
        else:
            self._seconds += seconds

    @property
    def step_seconds(self) -> float:
        """The mean duration of a step; that of the first steps if there are no others."""
        num_measured = self._num_steps - self._SKIPPED
        return self._seconds / num_measured if num_measured > 0 else self._skipped_seconds / self._num_steps

    @property
    def is_reliable(self) -> bool:
        """Whether enough steps were measured for a reliable mean."""
        return self._num_steps >= self._SKIPPED + self._ENOUGH

    def is_known(self, seconds: float, time_given: float) -> bool:
        """Whether the run can be planned after `seconds` of training; `time_given` is the length of the run."""
        fraction = self._EARLIEST if self.is_reliable else self._LATEST
        return self._num_steps > 0 and seconds >= time_given * fraction


def learning_rate_factor(step: int, total_steps: int | None, recipe: Recipe) -> float:
    """The factor of the learning rate in a step. It is a pure function, so a resumed run needs no scheduler state.

    Args:
        step: number of optimizer steps before this one.
        total_steps: steps of the whole run. None while a timed run is not planned yet: then only the warm-up applies.
        recipe: the settings of the schedule.
    """
    if step < recipe.warmup_steps:
        return (step + 1) / recipe.warmup_steps
    if total_steps is None:
        return 1.0
    if recipe.schedule == "step":
        return STEP_FACTOR if step >= round(recipe.step_at * total_steps) else 1.0
    progress = (step - recipe.warmup_steps) / max(total_steps - recipe.warmup_steps, 1)
    return recipe.floor + (1 - recipe.floor) * (1 + math.cos(math.pi * min(progress, 1.0))) / 2
