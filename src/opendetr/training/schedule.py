"""The schedule of a run: its length, warm-up, learning rate and evaluations, and how many steps fit a given time."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from opendetr.recipe import Recipe

EVALUATION_SHARE = 0.1  # of the time of a run
STEP_FACTOR = 0.1

_MOST_EVALUATIONS = 10
_FEWEST_WHOLE = 3  # fewer evaluations on all images than this: a part of the images is used, more often
_NUM_PARTIAL = 5
_SMALLEST_PART = 16  # images; the score of fewer says too little
_EVALUATION_COST = 1 / 3  # of an image, as a share of a training step's; counts where the time is not limited

_WARMUP_SHARE, _MOST_WARMUP = 0.1, 200
_EMA_SHARE, _MOST_EMA_DECAY = 0.05, 0.9998

_TOLERANCE = 0.01  # of the time of a run


@dataclass(frozen=True)
class Evaluations:
    """The evaluations of a run. They are stored, so that a resumed run keeps them.

    Attributes:
        count: evaluations after training steps, spread evenly over the run; the last one is at its end.
        images: validation images of each but the last, which uses all; None for all.
    """

    count: int
    images: int | None = None


@dataclass(frozen=True)
class Plan:
    """The length of a run, and what follows from it. It is stored, so that a resumed run keeps its schedule.

    Attributes:
        total_steps: optimizer steps of the whole run.
        evaluate_every: steps from one evaluation to the next; the last one is at the end in any case.
        warmup_steps: steps over which the learning rate first rises.
        ema_decay: final decay of the EMA of the weights; 0 for no EMA.
    """

    total_steps: int
    evaluate_every: int
    warmup_steps: int = 0
    ema_decay: float = 0.0

    def evaluates_after(self, step: int) -> bool:
        """Whether an evaluation belongs after the first `step` steps."""
        return step > 0 and (step % self.evaluate_every == 0 or step >= self.total_steps)


@dataclass(frozen=True, kw_only=True)
class Pace:
    """What was measured of a timed run, in seconds.

    Attributes:
        used: of the time so far.
        step: of one step, loading the data included.
        image: of evaluating one image.
        evaluation: of one evaluation, beside its images: drawing, and saving the best weights.
        save: of saving one checkpoint.
        num_images: validation images in all.
    """

    used: float
    step: float
    image: float
    evaluation: float
    save: float
    num_images: int

    def evaluating(self, evaluations: Evaluations, count: int) -> float:
        """Seconds of the last `count` evaluations of a run."""
        part = self.num_images if evaluations.images is None else evaluations.images
        num_images = (count - 1) * part + self.num_images
        if evaluations.images is not None:  # the last one is made on the part, too, to be compared with the others
            num_images += part
        return num_images * self.image + count * self.evaluation


def plan_evaluations(recipe: Recipe, affordable_images: float, num_images: int) -> Evaluations:
    """How often a run is evaluated, and on how many images.

    Args:
        recipe: `num_evaluations` is the number where it is given.
        affordable_images: validation images that all evaluations together may use; see `affordable_images`.
        num_images: validation images in all.
    """
    if recipe.num_evaluations is not None and recipe.time is None:
        return Evaluations(recipe.num_evaluations)
    wanted = recipe.num_evaluations or _MOST_EVALUATIONS
    num_whole = int(affordable_images / max(num_images, 1))
    if num_whole >= min(_FEWEST_WHOLE, wanted):
        return Evaluations(min(wanted, num_whole))
    # The last evaluation uses all images, whatever it costs.
    num_partial = min(_NUM_PARTIAL, wanted)
    part = int(max(affordable_images - num_images, 0.4 * affordable_images) / num_partial)
    if part < _SMALLEST_PART or num_partial < 2:
        return Evaluations(1)
    return Evaluations(num_partial, min(part, num_images))


def affordable_images(recipe: Recipe, total_steps: int) -> float:
    """Validation images that cost about a tenth of a run of so many steps."""
    return EVALUATION_SHARE / _EVALUATION_COST * total_steps * recipe.batch_size


def plan_steps(recipe: Recipe, steps_per_epoch: int, num_images: int = 0) -> tuple[Plan, Evaluations] | None:
    """The plan of a run over `recipe.max_steps` or `recipe.epochs`; None for a timed run, whose speed is not known.

    Args:
        recipe: gives the length.
        steps_per_epoch: steps of a pass over the training data.
        num_images: validation images.
    """
    if recipe.time is not None:
        return None
    total = recipe.max_steps if recipe.max_steps is not None else recipe.epochs * steps_per_epoch
    evaluations = plan_evaluations(recipe, affordable_images(recipe, total), num_images)
    return _plan(recipe, total, evaluations), evaluations


def plan_time(recipe: Recipe, step: int, pace: Pace, evaluations: Evaluations) -> Plan:
    """The plan of a run over `recipe.time` seconds, once its speed is known.

    Args:
        recipe: gives the time and how often a checkpoint is saved.
        step: steps taken so far.
        pace: as measured so far.
        evaluations: of the whole run; none has been made after a training step.
    """
    assert recipe.time is not None
    left = recipe.time - pace.used - pace.evaluating(evaluations, evaluations.count)
    total = step + max(1, _steps_in(left, recipe, pace, evaluations.count))
    return _plan(recipe, total, evaluations)


def _plan(recipe: Recipe, total_steps: int, evaluations: Evaluations) -> Plan:
    warmup, decay = recipe.warmup_steps, recipe.ema_decay
    if warmup is None:
        warmup = min(_MOST_WARMUP, math.ceil(_WARMUP_SHARE * total_steps))
    if decay is None:
        decay = min(_MOST_EMA_DECAY, max(0.0, 1 - 1 / max(_EMA_SHARE * total_steps, 1)))
    return Plan(total_steps, math.ceil(total_steps / evaluations.count), warmup, decay)


def _steps_in(seconds: float, recipe: Recipe, pace: Pace, num_evaluations: int) -> int:
    """Training steps in some seconds, out of which checkpoints are saved, too: after evaluations and now and then."""
    between = seconds / max(num_evaluations, 1)
    num_saves = num_evaluations * (1 + int(between / max(recipe.save_every, pace.save, 1.0)))
    return int((seconds - num_saves * pace.save) / pace.step)


def revised(plan: Plan, recipe: Recipe, step: int, pace: Pace, evaluations: Evaluations) -> Plan:
    """The plan of a timed run when the speed has changed; the plan itself where it still meets the time within 1 %.

    A machine that others use, too, is not as fast at the end as it was when the plan was made. A learning rate that
    has been stepped down stays down. The plan ends at once when the time is over.

    Args:
        plan: the one so far; its warm-up stays, and its evaluations keep their distance.
        recipe: gives the time and the schedule.
        step: steps taken so far, fewer than the plan's.
        pace: as measured of late.
        evaluations: of the whole run.
    """
    assert recipe.time is not None
    num_left = math.ceil(plan.total_steps / plan.evaluate_every) - step // plan.evaluate_every
    left = recipe.time - pace.used - pace.evaluating(evaluations, max(num_left, 1))
    affordable = max(_steps_in(left, recipe, pace, num_left), 0 if step else 1)
    if abs(plan.total_steps - step - affordable) * pace.step <= _TOLERANCE * recipe.time:
        return plan
    new = replace(plan, total_steps=step + affordable)
    before, after = (learning_rate_factor(step, each, recipe) for each in (plan, new))
    return plan if recipe.schedule == "step" and after > before else new


class StepSpeed:
    """The seconds of a step, measured after the first few, which are slower.

    Args:
        before: as measured before, until there are steps to measure.
    """

    _SKIPPED, _ENOUGH = 3, 7
    _EARLIEST, _LATEST = 0.05, 0.1  # shares of the time given

    def __init__(self, before: float = 0.0) -> None:
        self._before = before
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
    def seconds(self) -> float:
        """The seconds of all steps."""
        return self._seconds + self._skipped_seconds

    @property
    def step_seconds(self) -> float:
        """The mean of what was measured, of the first steps if there are no others."""
        if self._num_steps == 0:
            return self._before
        num_measured = self._num_steps - self._SKIPPED
        return self._seconds / num_measured if num_measured > 0 else self._skipped_seconds / self._num_steps

    @property
    def is_reliable(self) -> bool:
        """Whether enough steps were measured for their mean to be used."""
        return self._num_steps >= self._SKIPPED + self._ENOUGH

    def is_known(self, seconds: float, time_given: float) -> bool:
        """Whether enough of the run has passed to plan it."""
        share = self._EARLIEST if self.is_reliable else self._LATEST
        return self._num_steps > 0 and seconds >= time_given * share


def learning_rate_factor(step: int, plan: Plan | None, recipe: Recipe) -> float:
    """The share of the full learning rate that a step takes: a pure function, so that a resumed run needs no state.

    Args:
        step: optimizer steps that were taken before this one.
        plan: gives length and warm-up; None while a timed run does not know them, when only the warm-up acts.
        recipe: gives schedule, `step_at` and `floor`.
    """
    longest = _MOST_WARMUP if recipe.warmup_steps is None else recipe.warmup_steps
    warmup = longest if plan is None else plan.warmup_steps
    if step < warmup:
        return (step + 1) / warmup
    if plan is None:
        return 1.0
    if recipe.schedule == "step":
        return STEP_FACTOR if step >= round(recipe.step_at * plan.total_steps) else 1.0
    progress = (step - warmup) / max(plan.total_steps - warmup, 1)
    return recipe.floor + (1 - recipe.floor) * (1 + math.cos(math.pi * min(progress, 1.0))) / 2
