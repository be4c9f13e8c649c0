"""The schedule of a run: its length, warm-up, learning rate and evaluations.

The length of a timed run follows from its measured speed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from opendetr.recipe import Recipe

EVALUATION_SHARE = 0.1  # fraction of the time of a run
STEP_FACTOR = 0.1  # by which a step schedule multiplies the learning rate

_MAX_EVALUATIONS = 10
_MIN_FULL_EVALUATIONS = 3  # if the run can afford fewer on all images, it evaluates more often on some of them
_NUM_PARTIAL_EVALUATIONS = 5
_MIN_PARTIAL_IMAGES = 16  # metrics of fewer images are too noisy
_EVALUATION_COST = 1 / 3  # time to evaluate an image / time to train on it; used if the run has no time limit

_MAX_SHARES_AT_END = 3  # how many times its share of the time the last evaluation may take, to use all images
_WARMUP_SHARE, _MAX_WARMUP = 0.1, 200  # fraction of the steps; steps
_EMA_SHARE, _MAX_EMA_DECAY = 0.05, 0.9998  # fraction of the steps that the EMA averages over

_TOLERANCE = 0.01  # fraction of the time of a run


@dataclass(frozen=True)
class Evaluations:
    """The evaluations of a run. A checkpoint stores them, so a resumed run keeps them.

    Attributes:
        count: number of evaluations after training steps. They are evenly spread; the last one is at the end.
        images: number of validation images of each evaluation except the last one. None if every evaluation uses all
            images.
        all_at_end: whether the last evaluation uses all images. It does not if that would take too much of the time.
    """

    count: int
    images: int | None = None
    all_at_end: bool = True


@dataclass(frozen=True)
class Plan:
    """The length of a run and the settings that follow from it. A checkpoint stores it, so a resumed run keeps it.

    Attributes:
        total_steps: number of optimizer steps of the whole run.
        evaluate_every: number of steps from one evaluation to the next. The last one is always at the end.
        warmup_steps: number of steps in which the learning rate first rises.
        ema_decay: final decay of the EMA of the weights; 0 for no EMA.
        revised_at: number of steps before which the length was last changed; 0 if it was not.
        decayed: the fraction of the cosine schedule that was over then.
    """

    total_steps: int
    evaluate_every: int
    warmup_steps: int = 0
    ema_decay: float = 0.0
    revised_at: int = 0
    decayed: float = 0.0

    def decay_progress(self, step: int) -> float:
        """The fraction of the cosine schedule that is over after `step` steps, from 0 after the warm-up to 1.

        A change of the length continues from the fraction at that step, so the learning rate does not jump.
        """
        start = max(self.warmup_steps, self.revised_at)
        share = (step - start) / max(self.total_steps - start, 1)
        return self.decayed + (1 - self.decayed) * min(max(share, 0.0), 1.0)

    def evaluates_after(self, step: int) -> bool:
        """Whether the run is evaluated after `step` steps: at every interval, but not shortly before the end.

        The end of a timed run moves with its speed. An interval that ends just before it would repeat the evaluation.
        """
        left = self.total_steps - step
        return step > 0 and (left <= 0 or (step % self.evaluate_every == 0 and 2 * left >= self.evaluate_every))


@dataclass(frozen=True, kw_only=True)
class Pace:
    """The measured durations of a timed run, in seconds, and its number of validation images.

    Attributes:
        used: time since the start of the run.
        step: one step, including the wait for its batch.
        image: the evaluation of one image.
        evaluation: the other work of one evaluation, such as starting the loader, drawing, and saving the best weights.
        save: saving one checkpoint.
        report: the report after the last evaluation.
        num_images: number of validation images.
    """

    used: float
    step: float
    image: float
    evaluation: float
    save: float
    report: float
    num_images: int

    def evaluation_seconds(self, evaluations: Evaluations, count: int) -> float:
        """The duration of the last `count` evaluations of a run, in seconds."""
        part = self.num_images if evaluations.images is None else evaluations.images
        num_images = count * part
        if evaluations.images is not None and evaluations.all_at_end:  # the last one uses the part, then all images
            num_images += self.num_images
        return num_images * self.image + count * self.evaluation


def plan_evaluations(
    recipe: Recipe,
    affordable_images: float,
    num_images: int,
    overhead_images: float = 0.0,
    *,
    evaluates_start: bool = False,
) -> Evaluations:
    """Decide how often a run is evaluated, and on how many images.

    Args:
        recipe: sets the number of evaluations if `num_evaluations` is given.
        affordable_images: number of validation images that all evaluations together may use, see
            `affordable_images`.
        num_images: number of validation images.
        overhead_images: number of images whose evaluation takes as long as the fixed part of every evaluation.
        evaluates_start: whether the initial weights are evaluated too. If there is no time to do that on all images,
            the weights are compared on a part.
    """
    if recipe.num_evaluations is not None and recipe.time is None:
        return Evaluations(recipe.num_evaluations)
    wanted = recipe.num_evaluations or _MAX_EVALUATIONS
    whole = num_images + overhead_images  # the cost of one evaluation on all images
    num_full = int(affordable_images / max(whole, 1))
    if num_full >= min(_MIN_FULL_EVALUATIONS, wanted):
        return Evaluations(min(wanted, num_full))
    if recipe.time is not None and num_images > _MAX_SHARES_AT_END * affordable_images:
        return Evaluations(1, min(max(_MIN_PARTIAL_IMAGES, int(affordable_images)), num_images), all_at_end=False)
    # The last evaluation uses all images, even if it takes more than its share of the time.
    num_partial = min(_NUM_PARTIAL_EVALUATIONS, wanted)
    part = int(max(affordable_images - whole, 0.4 * affordable_images) / num_partial - overhead_images)
    if part < _MIN_PARTIAL_IMAGES or num_partial < 2:
        on_part = evaluates_start and recipe.time is not None and affordable_images < whole
        return Evaluations(1, _MIN_PARTIAL_IMAGES) if on_part and num_images > _MIN_PARTIAL_IMAGES else Evaluations(1)
    return Evaluations(num_partial, min(part, num_images))


def affordable_images(recipe: Recipe, total_steps: int) -> float:
    """The number of validation images whose evaluation takes about a tenth of a run of `total_steps` steps."""
    return EVALUATION_SHARE / _EVALUATION_COST * total_steps * recipe.batch_size


def plan_steps(recipe: Recipe, steps_per_epoch: int, num_images: int = 0) -> tuple[Plan, Evaluations] | None:
    """The plan of a run of `recipe.max_steps` steps or `recipe.epochs` epochs. None for a timed run.

    A timed run can be planned only when its speed is known, see `plan_time`.

    Args:
        recipe: sets the length.
        steps_per_epoch: number of steps of a pass over the training data.
        num_images: number of validation images.
    """
    if recipe.time is not None:
        return None
    total = recipe.max_steps if recipe.max_steps is not None else recipe.epochs * steps_per_epoch
    evaluations = plan_evaluations(recipe, affordable_images(recipe, total), num_images)
    return _plan(recipe, total, evaluations), evaluations


def plan_time(recipe: Recipe, step: int, pace: Pace, evaluations: Evaluations) -> Plan:
    """The plan of a run of `recipe.time` seconds from its measured speed. If the time is over, it ends at `step`.

    Args:
        recipe: sets the time and the interval between checkpoints.
        step: number of steps taken.
        pace: the durations measured so far.
        evaluations: the evaluations of the whole run, all of which are still to come.
    """
    assert recipe.time is not None
    left = recipe.time - pace.used - pace.report - pace.evaluation_seconds(evaluations, evaluations.count)
    total = step + max(_steps_in(left, recipe, pace, evaluations.count), 0 if step else 1)
    return _plan(recipe, total, evaluations)


def _plan(recipe: Recipe, total_steps: int, evaluations: Evaluations) -> Plan:
    warmup, decay = recipe.warmup_steps, recipe.ema_decay
    if warmup is None:
        warmup = min(_MAX_WARMUP, math.ceil(_WARMUP_SHARE * total_steps))
    if decay is None:
        decay = min(_MAX_EMA_DECAY, max(0.0, 1 - 1 / max(_EMA_SHARE * total_steps, 1)))
    return Plan(total_steps, math.ceil(total_steps / evaluations.count), warmup, decay)


def _steps_in(seconds: float, recipe: Recipe, pace: Pace, num_evaluations: int) -> int:
    """The number of training steps in `seconds`, which include the checkpoints: after each evaluation and at intervals.

    `seconds` excludes the evaluations themselves.
    """
    between = seconds / max(num_evaluations, 1)
    num_saves = num_evaluations * (1 + int(between / max(recipe.save_every, pace.save, 1.0)))
    return int((seconds - num_saves * pace.save) / pace.step)


def revise_plan(plan: Plan, recipe: Recipe, step: int, pace: Pace, evaluations: Evaluations) -> Plan:
    """The plan of a timed run for its current speed. Returns `plan` if it still meets the time within 1 %.

    The speed can change during a run, for example if other programs use the machine. A step schedule that has already
    lowered the learning rate does not raise it again. If the time is over, the new plan ends at `step`.

    Args:
        plan: the current plan. Its warm-up and the interval of its evaluations do not change.
        recipe: sets the time and the schedule.
        step: number of steps taken, below `plan.total_steps`.
        pace: the durations measured since the last revision.
        evaluations: the evaluations of the whole run.
    """
    assert recipe.time is not None
    num_left = round(plan.total_steps / plan.evaluate_every) - step // plan.evaluate_every
    left = recipe.time - pace.used - pace.report - pace.evaluation_seconds(evaluations, max(num_left, 1))
    affordable = max(_steps_in(left, recipe, pace, num_left), 0 if step else 1)
    if abs(plan.total_steps - step - affordable) * pace.step <= _TOLERANCE * recipe.time:
        return plan
    progress = plan.decay_progress(step)
    new = replace(plan, total_steps=step + affordable, revised_at=step, decayed=progress)
    before, after = learning_rate_factor(step, plan, recipe), learning_rate_factor(step, new, recipe)
    return plan if recipe.schedule == "step" and after > before else new


class StepSpeed:
    """The mean duration of a step of work 1. The first steps are slower, so they do not count.

    Args:
        before: an earlier measurement in seconds. The mean moves from it to the new steps by a fourth, because the
            duration of a few steps varies: the plan of a run follows the speed but not each slow step.
    """

    _SKIPPED, _ENOUGH = 3, 7  # number of steps that do not count; number of counted steps for a reliable mean
    _NEW_WEIGHT = 0.25
    _EARLIEST, _LATEST = 0.05, 0.1  # fractions of the time of the run after which it is planned

    def __init__(self, before: float = 0.0) -> None:
        self._before = before
        self._num_steps = 0
        self._seconds = self._skipped_seconds = 0.0
        self._work = self._skipped_work = 0.0

    def add(self, seconds: float, work: float = 1.0) -> None:
        """Add the duration of a step, and its work, to which the duration is proportional."""
        self._num_steps += 1
        if self._num_steps <= self._SKIPPED:
            self._skipped_seconds += seconds
            self._skipped_work += work
        else:
            self._seconds += seconds
            self._work += work

    @property
    def seconds(self) -> float:
        """The duration of all steps in seconds."""
        return self._seconds + self._skipped_seconds

    @property
    def step_seconds(self) -> float:
        """The mean duration of a step of work 1 in seconds. The first steps count only if there are no others."""
        if self._num_steps == 0:
            return self._before
        mean = self._seconds / self._work if self._work else self._skipped_seconds / self._skipped_work
        return self._before + self._NEW_WEIGHT * (mean - self._before) if self._before else mean

    @property
    def is_reliable(self) -> bool:
        """Whether enough steps were measured for a reliable mean."""
        return self._num_steps >= self._SKIPPED + self._ENOUGH

    def is_known(self, seconds: float, time_limit: float) -> bool:
        """Whether the run can be planned after `seconds` of its `time_limit`."""
        share = self._EARLIEST if self.is_reliable else self._LATEST
        return self._num_steps > 0 and seconds >= time_limit * share


def learning_rate_factor(step: int, plan: Plan | None, recipe: Recipe) -> float:
    """The factor on the full learning rate for a step. It has no state, so a resumed run computes the same factor.

    Args:
        step: number of optimizer steps before this one.
        plan: sets length and warm-up. None while a timed run has no plan: then only the warm-up has an effect.
        recipe: sets `schedule`, `step_at` and `floor`.
    """
    longest = _MAX_WARMUP if recipe.warmup_steps is None else recipe.warmup_steps
    warmup = longest if plan is None else plan.warmup_steps
    if step < warmup:
        return (step + 1) / warmup
    if plan is None:
        return 1.0
    if recipe.schedule == "step":
        return STEP_FACTOR if step >= round(recipe.step_at * plan.total_steps) else 1.0
    progress = plan.decay_progress(step)
    return recipe.floor + (1 - recipe.floor) * (1 + math.cos(math.pi * progress)) / 2
