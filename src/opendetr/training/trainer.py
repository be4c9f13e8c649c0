"""The trainer trains a task on the batches of a loader. It knows no model, no loss and no file format.

A run that was stopped or killed, or that failed on a full disk, can be resumed from its last checkpoint. On a CPU with
the same number of threads, it then ends with the same weights as an uninterrupted run, bit for bit. Therefore a step
depends on earlier steps only through the state that a checkpoint stores. The batch is a function of (seed, epoch,
position), the learning rate is a function of the step, and dropout is seeded anew for each step.

Several processes give the same result as one. Each computes its share of every batch, and the losses are normalised
over the whole batch. Between two steps, the processes exchange what only one of them knows: signals and elapsed time.
"""

from __future__ import annotations

import json
import math
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol, cast

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from opendetr.data import DataConfig
from opendetr.distributed import (
    best_device,
    copy_buffers,
    from_main,
    gather,
    is_main,
    naming_lost_processes,
    parallel,
    reduce_sum,
    share_norms,
    together,
    without_sync,
    world_size,
)
from opendetr.recipe import Recipe
from opendetr.structures import Batch, NonFiniteError
from opendetr.tasks import COUNT, Task
from opendetr.training.activation_checkpointing import recompute_blocks
from opendetr.training.checkpoint import CheckpointError, find_checkpoint, load_checkpoint, save_checkpoint
from opendetr.training.ema import WeightAverage
from opendetr.training.events import (
    BatchLoaded,
    Callback,
    CheckpointSaved,
    EpochEnded,
    Evaluated,
    Event,
    NonFiniteFound,
    Outcome,
    PlanFixed,
    ReportDue,
    RunEnded,
    RunStarted,
    StepTaken,
)
from opendetr.training.freezing import freeze, train_mode
from opendetr.training.optimizer import new_optimizer, parameter_groups, rate_factor
from opendetr.training.run_state import RunState, TrainedTensors, own_tensors
from opendetr.training.schedule import (
    EVALUATION_SHARE,
    Evaluations,
    Pace,
    StepSpeed,
    learning_rate_factor,
    plan_evaluations,
    plan_steps,
    plan_time,
    revise_plan,
)
from opendetr.training.signals import StopRequestedError, StopSignal
from opendetr.training.train_step import autocast_dtype, keep_freed_memory, step_randomness

STATE, MODEL = "training.safetensors", "model.safetensors"
_SPEED_IMAGES = (4, 16)  # numbers of images that measure the speed of an evaluation
_SPEED_SHARE = 0.03  # fraction of the time of a run that the second of these measurements may take
_REVISION_STEPS, _REVISION_SHARE = 5, 0.02  # interval between revisions of a plan: steps, fraction of the time
_REPORT_SECONDS, _REPORT_SHARE = 0.5, 0.01  # of the first report, a guess; of the time between two other reports
_WORK_SAMPLES = 100  # points of the remaining run at which the duration of a step is sampled
_REPORTED_CHANGE = 0.2  # smallest relative change of the number of steps that callbacks receive


class Loader(Protocol):
    """The interface of a loader that the trainer uses."""

    def __len__(self) -> int:
        """The number of batches per epoch."""
        ...

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Iterate over the batches of an epoch from number `start` on. Every call gives the same batches.

        With several processes, each loader returns the part of every batch that belongs to its rank.
        """
        ...


class Curriculum(Protocol):
    """What changes in the batches during a run; see `DataConfig`. Both methods depend on nothing else."""

    def at_progress(self, batch: Batch, progress: float) -> Batch:
        """The part of a batch that is used after a fraction of the run, the same part in all processes."""
        ...

    def work(self, progress: float) -> float:
        """The relative duration of a step after a fraction of the run."""
        ...


@dataclass(frozen=True)
class RunResult:
    """The result of a run.

    Attributes:
        step: number of optimizer steps taken.
        interrupted: whether a signal stopped the run before its end. A checkpoint was saved.
        metric: name of the metric that selects the best checkpoint.
        metrics: metrics of the latest evaluation.
        best: metrics of the best evaluation; empty without an evaluation.
        seconds: training time, including the time before the run was resumed.
    """

    step: int
    interrupted: bool
    metric: str
    metrics: Mapping[str, Any]
    best: Mapping[str, Any]
    seconds: float


class _Share(NamedTuple):
    """The share of a batch that one process computes.

    Attributes:
        batch: the images of this process.
        counts: number of objects of every image of the step, in all processes.
    """

    batch: Batch
    counts: list[int]


class _StepLosses(NamedTuple):
    """The losses of a step, summed over all processes.

    Attributes:
        loss: the total loss.
        norm: the norm of the gradient.
        losses: unweighted losses by name, one value per decoder layer.
    """

    loss: float
    norm: float
    losses: dict[str, tuple[float, ...]]


class Trainer:
    """One training run.

    Args:
        task: the module to train.
        loader: the batches, of `recipe.batch_size` images. One batch is one optimizer step of all processes.
        recipe: the settings of optimizer, schedule and length.
        folder: the run folder. It receives the checkpoints `last` and `best`.
        evaluate: computes metrics of the deployed task in evaluation mode. All processes get the same metrics. A second
            argument limits the number of images. Default: no evaluation.
        num_images: number of validation images that `evaluate` uses without this limit.
        evaluate_start: also evaluate the initial weights, which may be the best ones.
        curriculum: what changes in the batches during the run. Default: nothing.
        save_model: writes the weights of the deployed task to a path, for `model.safetensors`. Default: all tensors of
            the task.
        callbacks: receive every event, in the order of the list, in the main process only.
        device: "auto", "cpu", "cuda" or "mps".

    Raises:
        DeviceError: the machine does not have the device or the precision of the recipe.
        ConfigError: the recipe freezes a part that the task does not have.
    """

    def __init__(
        self,
        task: Task,
        loader: Loader,
        recipe: Recipe,
        folder: Path,
        *,
        evaluate: Callable[..., Mapping[str, Any]] | None = None,
        num_images: int = 1,
        evaluate_start: bool = False,
        curriculum: Curriculum | None = None,
        save_model: Callable[[Path, nn.Module], object] | None = None,
        callbacks: Sequence[Callback] = (),
        device: str = "auto",
    ) -> None:
        self.device = best_device(device)
        self.autocast_dtype = autocast_dtype(recipe.precision, self.device)
        shared, note = share_norms(task.to(self.device), self.device)
        self.task = cast(Task, shared)
        freeze(self.task, recipe.freeze)
        self.loader = loader
        self.recipe = recipe
        self.folder = folder
        self.evaluate = evaluate
        self.num_images = num_images
        self.evaluate_start = evaluate_start and evaluate is not None
        self.curriculum = curriculum or DataConfig()
        self.save_model = save_model or _save_tensors
        self.callbacks = callbacks if is_main() else ()
        groups = parameter_groups(self.task, recipe)
        self.optimizer = new_optimizer(groups, recipe)
        self.rates = [group["lr"] for group in groups]
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.autocast_dtype is torch.float16)
        self.average = None if recipe.ema_decay == 0 else WeightAverage(self.task)
        if recipe.gradient_checkpointing:
            recompute_blocks(self.task)
        plan, evaluations = plan_steps(recipe, len(loader), num_images) or (None, None)
        self.state = RunState(plan=plan, evaluations=evaluations)
        self._tensors = TrainedTensors(self.task, self.average.task if self.average else None, self.optimizer)
        self._optional = self.task.optional_parameters
        self._parallel = parallel(self.task, self.device, some_without_gradient=bool(self._optional))
        self._notes: tuple[str, ...] = (note,) if note else ()
        self._speed = StepSpeed()
        self._started = 0.0  # time at which training would have started without interruptions
        self._saved = 0.0  # time of the latest checkpoint
        self._reported = time.perf_counter()  # time of the latest report
        self._reported_steps = 0  # length of the plan that the callbacks know

    def train(self, *, resume: bool = False) -> RunResult:
        """Train to the end of the run. Ctrl-C and SIGTERM save a checkpoint and end the run early.

        Args:
            resume: continue from the last checkpoint of the run folder.

        Raises:
            CheckpointError: there is nothing to resume, the folder holds a run already, or a checkpoint cannot be
                written.
            NonFiniteError: a loss or a gradient is not finite. The message names the images.
            ProcessError: another process of the run failed or ended.
        """
        if self.device.type == "cpu":
            keep_freed_memory()
        last = self.folder / "last"
        with together():
            if resume:
                self._notes += self._restore(last)
            elif find_checkpoint(last):
                raise CheckpointError(
                    f"{self.folder}: holds a run already; continue with --resume or choose another folder"
                )
        state = self.state
        start = RunStarted(
            folder=self.folder,
            step=state.step,
            steps_per_epoch=len(self.loader),
            total_steps=state.plan.total_steps if state.plan else None,
            device=str(self.device) if world_size() == 1 else f"{world_size()} processes ({self.device.type})",
            evaluated=state.evaluated,
            metrics=state.metrics,
            notes=self._notes,
        )
        outcome: Outcome = "failed"
        try:
            began = time.perf_counter()
            self._notify(start)
            state.seconds += time.perf_counter() - began  # callbacks draw and connect; a timed run includes it
            with StopSignal() as stop, naming_lost_processes():
                if self._evaluation_due() or not self._finished():
                    self._run(stop, is_new=not resume)
            outcome = self._outcome()
        finally:
            self._notify(RunEnded(state.step, outcome, state.seconds))
        interrupted, metric = outcome == "interrupted", self.recipe.best_by
        return RunResult(state.step, interrupted, metric, state.metrics, state.best, state.seconds)

    def _run(self, stop: StopSignal, is_new: bool) -> None:
        """Take steps until the end of the run or a signal. Evaluate and save between steps when it is due."""
        train_mode(self.task)
        self._saved = time.perf_counter()
        self._started = self._saved - self.state.seconds
        if is_new:  # a resumed run needs the initial weights, and a disk that is too small fails at once
            self._save()
        if self.state.step == 0:
            self._before_first_step(stop)
        self._between_steps(stop)
        while not (self._finished() or _stop_requested(stop)):
            epoch, position = divmod(self.state.step, len(self.loader))
            wait_started = time.perf_counter()
            for share in self._shares(epoch, position, stop):
                loaded = time.perf_counter()
                self._notify(BatchLoaded(self.state.step, share.batch))
                self._step(share, wait_started + time.perf_counter() - loaded)  # callbacks are no part of the step
                if self.state.step % len(self.loader) == 0:
                    self._notify(EpochEnded(epoch + 1, self.state.step))
                self._between_steps(stop)
                if self._finished() or _stop_requested(stop):
                    break
                wait_started = time.perf_counter()
        if self._stopped_early() and self.state.evaluations and self.state.evaluations.images is not None:
            self._evaluate(stop)  # the latest evaluation did not use all images
        self._save()

    def _shares(self, epoch: int, position: int, stop: StopSignal) -> Iterator[_Share]:
        """Yield this process's share of every batch, padded like the whole batch.

        The iterator ends as soon as one process has no batch.
        """
        batches = self.loader.epoch(epoch, position)
        while True:
            batch, failure = None, None
            try:
                batch = next(batches, None)
            except (RuntimeError, OSError, EOFError, ValueError) as error:
                if not stop.requested:  # a stop signal also ends the workers of the loader; that is not an error
                    if not isinstance(error, ValueError):
                        raise
                    failure = error
            if batch is not None:
                batch = self.curriculum.at_progress(batch, self._progress())
            own = None if batch is None else (batch.extent, batch.loss_counts)
            shares = [other for other in gather(own, failure) if other is not None]
            if batch is None or len(shares) < world_size():
                return
            extent = tuple(max(lengths) for lengths in zip(*(extent for extent, _ in shares), strict=True))
            yield _Share(batch.pad_to(*extent), [count for _, counts in shares for count in counts])

    def _progress(self) -> float:
        """The fraction of the run that is over; 0 while a timed run is not planned yet."""
        return 0.0 if self.state.plan is None else min(self.state.step / self.state.plan.total_steps, 1.0)

    def _step_seconds(self) -> float:
        """The mean duration of the remaining steps, from that of the measured ones."""
        begin, count = self._progress(), _WORK_SAMPLES
        work = [self.curriculum.work(begin + (1 - begin) * (index + 0.5) / count) for index in range(count)]
        return self._speed.step_seconds * sum(work) / count

    def _finished(self) -> bool:
        return self.state.is_finished(self.recipe.patience)

    def _stopped_early(self) -> bool:
        plan = self.state.plan
        return self._finished() and plan is not None and self.state.step < plan.total_steps

    def _outcome(self) -> Outcome:
        if not self._finished() or self._evaluation_due():
            return "interrupted"
        return "early" if self._stopped_early() else "finished"

    def _evaluation_due(self) -> bool:
        return self.state.is_evaluation_due and self.evaluate is not None

    def _between_steps(self, stop: StopSignal) -> None:
        """Plan a timed run, evaluate or save a checkpoint if it is due."""
        self.state.seconds = time.perf_counter() - self._started
        if self.state.plan is None and self._can_be_planned():
            self._make_plan()
        elif self.recipe.time is not None and self.state.plan is not None and not self._finished():
            self._revise_plan()
        if self._evaluation_due() and not _stop_requested(stop):
            # With several processes, a signal does not interrupt the evaluation, so the launcher may kill them in it.
            if world_size() > 1:
                self._save()
            if self._evaluate(stop) and not self._finished():
                self._save()
        elif time.perf_counter() - self._saved >= self.recipe.save_every:
            self._save()

    def _before_first_step(self, stop: StopSignal) -> None:
        """Decide how often to evaluate, and evaluate the initial weights if they are trained ones."""
        state = self.state
        if state.evaluations is None:
            state.evaluations = from_main(self._plan_evaluations())
        is_due = self.evaluate_start and not state.metrics and self._can_evaluate_start()
        if is_due and not _stop_requested(stop) and self._evaluate(stop):
            self._save()
        if state.plan is not None:
            self._report_plan(None)

    def _can_evaluate_start(self) -> bool:
        """Whether an evaluation of the initial weights takes no more than a tenth of a timed run."""
        if self.recipe.time is None or self.state.evaluations is None:
            return True
        count = self.state.evaluations.images or self.num_images
        return from_main(count * self.state.image_seconds <= EVALUATION_SHARE * self.recipe.time)

    def _plan_evaluations(self) -> Evaluations:
        """Measure the speed of an evaluation on a few images, and plan the evaluations of a timed run."""
        state, recipe = self.state, self.recipe
        assert recipe.time is not None
        if self.evaluate is None:
            return plan_evaluations(recipe, 0.0, self.num_images)
        few, more = (min(count, self.num_images) for count in _SPEED_IMAGES)
        self._seconds_of_metrics(few)  # the first evaluation is slower
        seconds = self._seconds_of_metrics(few)
        state.image_seconds = seconds / few
        if few < more and seconds * more / few <= _SPEED_SHARE * recipe.time:
            # A line through both durations: the time per image, and the time that does not depend on the images.
            slope = (self._seconds_of_metrics(more) - seconds) / (more - few)
            state.image_seconds = min(max(slope, 0.1 * state.image_seconds), state.image_seconds)
            state.overhead_seconds = max(seconds - few * state.image_seconds, 0.0)
        state.evaluation_seconds = state.overhead_seconds
        train_mode(self.task)
        image_seconds = max(state.image_seconds, 1e-9)
        affordable = EVALUATION_SHARE * recipe.time / image_seconds
        overhead = state.overhead_seconds / image_seconds
        return plan_evaluations(recipe, affordable, self.num_images, overhead, evaluates_start=self.evaluate_start)

    def _seconds_of_metrics(self, num_images: int) -> float:
        started = time.perf_counter()
        self.deployed.eval()
        with torch.no_grad():
            self._metrics(self.deployed, num_images)
        return time.perf_counter() - started

    def _metrics(self, task: nn.Module, num_images: int | None) -> dict[str, Any]:
        assert self.evaluate is not None
        uses_all = num_images is None or num_images >= self.num_images
        return dict(self.evaluate(task) if uses_all else self.evaluate(task, num_images))

    def _can_be_planned(self) -> bool:
        return from_main(self._speed.is_known(self.state.seconds, cast(float, self.recipe.time)))

    def _make_plan(self) -> None:
        """Plan a timed run."""
        assert self.state.evaluations is not None
        self._save()
        self.state.plan = from_main(plan_time(self.recipe, self.state.step, self._pace(), self.state.evaluations))
        self._save()
        self._report_plan(self._step_seconds())
        self._speed = StepSpeed(self._speed.step_seconds)

    def _revise_plan(self) -> None:
        """Revise the plan of a timed run if its speed has changed. A checkpoint stores the new plan."""
        state, recipe = self.state, self.recipe
        assert recipe.time is not None and state.plan is not None and state.evaluations is not None
        if state.step % _REVISION_STEPS:
            return
        due = self._speed.is_reliable and self._speed.seconds >= _REVISION_SHARE * recipe.time
        if from_main(due or state.seconds >= recipe.time):
            before = state.plan
            state.plan = from_main(revise_plan(before, recipe, state.step, self._pace(), state.evaluations))
            if state.plan != before:
                self._save()
            if abs(state.plan.total_steps - self._reported_steps) > _REPORTED_CHANGE * self._reported_steps:
                self._report_plan(self._step_seconds())
            self._speed = StepSpeed(self._speed.step_seconds)

    def _report_plan(self, step_seconds: float | None) -> None:
        plan, evaluations = self.state.plan, self.state.evaluations
        assert plan is not None and evaluations is not None
        self._reported_steps = plan.total_steps
        self._notify(PlanFixed(self.state.step, plan, evaluations, self.num_images, self.recipe, step_seconds))

    def _pace(self) -> Pace:
        return Pace(
            used=time.perf_counter() - self._started,
            step=self._step_seconds(),
            image=self.state.image_seconds,
            evaluation=self.state.evaluation_seconds,
            save=self.state.save_seconds,
            report=self._report_seconds(),
            num_images=self.num_images,
        )

    def _step(self, share: _Share, wait_started: float) -> None:
        """Take one optimizer step. `wait_started` is the time at which the wait for the batch began."""
        started = time.perf_counter()
        state, recipe = self.state, self.recipe
        epoch, progress = state.step // len(self.loader), self._progress()
        total_steps = state.plan.total_steps if state.plan else None
        factor = learning_rate_factor(state.step, state.plan, recipe)
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * rate_factor(group, factor, state.step, state.plan.total_steps if state.plan else None)
        with step_randomness(recipe.seed, state.step, self.device):
            loss, losses, count = self._backward(share)
        self.scaler.unscale_(self.optimizer)
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        assert len(gradients) == len(parameters) or self._only_optional_lack_gradients(), (
            "parameters without a gradient"
        )
        if count is not None:
            divisor = reduce_sum(count).clamp(min=1.0)
            torch._foreach_div_(gradients, divisor.squeeze())
            loss, losses = loss / divisor.squeeze(), {name: values / divisor for name, values in losses.items()}
        norm = get_total_norm(gradients)
        values = _step_losses(loss, losses, norm)
        if not (math.isfinite(values.loss) and (math.isfinite(values.norm) or self._may_overflow())):
            self._raise_nonfinite(share.batch, values)
        if recipe.clip_norm:
            clip_grads_with_norm_(parameters, recipe.clip_norm, norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        if self.average:
            decay = recipe.ema_decay if recipe.ema_decay is not None else state.plan.ema_decay if state.plan else 1.0
            self.average.update(self.task, state.step, decay)
        state.step += 1
        seconds = time.perf_counter() - wait_started
        self._speed.add(seconds, self.curriculum.work(progress))
        self._notify(
            StepTaken(
                step=state.step,
                epoch=epoch,
                total_steps=total_steps,
                loss=values.loss,
                losses=values.losses,
                learning_rate=recipe.learning_rate * factor,
                gradient_norm=values.norm,
                num_images=len(share.counts),
                seconds=seconds,
                data_seconds=started - wait_started,
            )
        )

    def _backward(self, share: _Share) -> tuple[Tensor, dict[str, Tensor], Tensor | None]:
        """Accumulate the gradients of all micro-batches of a step.

        Returns:
            The total loss, a scalar, and the losses by name, both of this process and without gradients. The divisor of
            this process, (1,), if the task knows it only after the forward pass, else None.
        """
        normaliser = self.task.normaliser(share.counts)
        parts = share.batch.to(self.device).split(self.recipe.accumulate)
        sums: dict[str, Tensor] = {}
        total = torch.zeros((), device=self.device)
        count: Tensor | None = None
        for part in parts:
            with without_sync(self._parallel) if part is not parts[-1] else nullcontext():
                with torch.autocast(self.device.type, self.autocast_dtype, enabled=self.autocast_dtype is not None):
                    losses = self._parallel(part, normaliser)
                    assert (COUNT in losses) == (normaliser is None), f"{COUNT!r} is the name of the divisor"
                    part_count = losses.pop(COUNT, None)
                    loss = self.task.total(losses)
                # The processes average their gradients, but the step needs the sum.
                self.scaler.scale(loss * world_size()).backward()
            total = total + loss.detach()
            sums = {name: values.detach().float() + sums.get(name, 0.0) for name, values in losses.items()}
            if part_count is not None:
                count = part_count.detach() if count is None else count + part_count.detach()
        return total, sums, count

    def _only_optional_lack_gradients(self) -> bool:
        """Whether every parameter without a gradient in this step is an optional parameter of the task."""
        missing = [
            name
            for name, parameter in self.task.named_parameters()
            if parameter.requires_grad and parameter.grad is None
        ]
        return all(name.startswith(self._optional) for name in missing)

    def _may_overflow(self) -> bool:
        """Whether the fp16 loss scale may cause non-finite gradients. The scaler then skips the step and lowers it."""
        return self.scaler.is_enabled() and self.scaler.get_scale() > 1

    def _raise_nonfinite(self, batch: Batch, values: _StepLosses) -> None:
        """Raise NonFiniteError. The values have not reached the weights or a checkpoint."""
        names = tuple(name for names in gather(batch.image_names) for name in names)
        loss, norm = values.loss, values.norm
        self._notify(NonFiniteFound(self.state.step, loss, norm, names))
        what = f"the gradient's norm is {norm}" if math.isfinite(loss) else f"the loss is {loss}"
        with together():
            raise NonFiniteError(
                f"{what} in step {self.state.step + 1}, images {', '.join(names)}; check these images or lower the "
                f"learning rate; the checkpoint {self.folder / 'last'} is from before this step"
            )

    @property
    def deployed(self) -> nn.Module:
        """The task whose weights are evaluated and saved as the model: with the EMA weights, if there are any."""
        return self.average.task if self.average else self.task

    def _evaluate(self, stop: StopSignal) -> bool:
        """Evaluate the deployed task. The evaluation at the end of the run uses all validation images if there is time.

        If the other evaluations use only some of the images, the last one also evaluates these separately. So the best
        weights are selected by metrics of the same images.

        Returns:
            False if a signal interrupted the evaluation. The resumed run repeats it.
        """
        state, task = self.state, self.deployed
        assert state.evaluations is not None
        part = state.evaluations.images
        adds_all = part is not None and state.evaluations.all_at_end and self._finished()
        started = time.perf_counter()
        copy_buffers(task)
        task.eval()
        try:
            # With several processes, one must not leave the evaluation: the others would wait for it.
            with stop.interruptible() if world_size() == 1 else nullcontext(), torch.no_grad():
                compared = self._metrics(task, part)
                metrics = self._metrics(task, None) if adds_all else compared
        except StopRequestedError:
            return False
        else:
            evaluation_seconds = time.perf_counter() - started
            num_images = self.num_images if part is None else part + adds_all * self.num_images
            overhead_seconds = (1 + adds_all) * state.overhead_seconds
            state.image_seconds = max(evaluation_seconds - overhead_seconds, 0.0) / num_images
            images = None if adds_all else part
            value = compared.get(self.recipe.best_by)  # None if the data contains nothing to compute it from
            before = state.best.get(self.recipe.best_by, -math.inf)
            is_best = value is not None and value >= before  # of equal values, the later one is the best
            state.evaluated, state.metrics = state.step, metrics
            state.worse = 0 if value is not None and value > before else state.worse + 1
            if is_best:
                state.best = {**metrics, "step": state.step}
                if images is not None:
                    state.best["images"] = images
                self._save_best()
            epoch, seconds = state.step / len(self.loader), time.perf_counter() - started
            self._notify(Evaluated(state.step, epoch, metrics, is_best, images, seconds, task))
            state.evaluation_seconds = time.perf_counter() - started - evaluation_seconds + overhead_seconds
            self._report_if_due()
            return True
        finally:
            train_mode(self.task)

    def _report_if_due(self) -> None:
        """Let the callbacks report on the best evaluation; of a short run only on the first and on the last one."""
        state, began = self.state, time.perf_counter()
        known = state.report_seconds
        if known is None or self._finished() or known <= _REPORT_SHARE * (began - self._reported):
            self._notify(ReportDue(state.step))
            self._reported = time.perf_counter()
            state.report_seconds = max(self._reported - began, known or 0.0)

    def _report_seconds(self) -> float:
        """The duration of the report at the end of the run, as far as it is known."""
        if self.evaluate is None:
            return 0.0
        return _REPORT_SECONDS if self.state.report_seconds is None else self.state.report_seconds

    def _save_best(self) -> None:
        if is_main():
            facts = {"step": self.state.step, "metrics": self.state.best}
            save_checkpoint(self.folder / "best", facts, {MODEL: lambda path: self.save_model(path, self.deployed)})

    def _save(self) -> None:
        """Save the checkpoint `last`, from which the run can be resumed."""
        started = time.perf_counter()
        self.state.seconds = started - self._started
        self.state.scaler = self.scaler.state_dict()
        facts = {
            **asdict(self.state),
            "recipe": asdict(self.recipe),
            "steps_per_epoch": len(self.loader),
            "machine": self._machine(),
        }
        files: dict[str, Callable[[Path], object]] = {
            STATE: lambda path: save_file(self._tensors.values(), path),
            MODEL: lambda path: self.save_model(path, self.deployed),
        }
        last = self.folder / "last"
        if is_main():
            save_checkpoint(last, facts, files)
        self._saved = time.perf_counter()
        self.state.save_seconds = self._saved - started
        self._notify(CheckpointSaved(self.state.step, last, self.state.save_seconds))

    def _machine(self) -> dict[str, Any]:
        """Properties of the machine that affect the rounding of a result."""
        return {
            "torch": torch.__version__,
            "device": self.device.type,
            "threads": torch.get_num_threads(),
            "processes": world_size(),
            "processor": platform.machine(),
            "precision": str(self.autocast_dtype or torch.float32),
        }

    def _restore(self, folder: Path) -> tuple[str, ...]:
        """Restore the state from a checkpoint. Returns one message for each difference that affects the rounding."""
        checkpoint = load_checkpoint(folder)
        facts = checkpoint.facts
        self._expect_same("recipe", asdict(self.recipe), facts["recipe"], folder)
        steps = {"steps": len(self.loader)}
        self._expect_same("an epoch", steps, {"steps": facts["steps_per_epoch"]}, folder)
        self._tensors.restore(checkpoint.tensors(STATE), folder)
        self.state = RunState.from_facts(facts)
        if self.scaler.is_enabled():
            self.scaler.load_state_dict(self.state.scaler)
        here = self._machine()
        return tuple(
            f"resumed with {name} {here[name]}, started with {before}: the result can differ by rounding"
            for name, before in facts["machine"].items()
            if here.get(name) != before
        )

    def _expect_same(self, what: str, now: Mapping[str, Any], before: Mapping[str, Any], folder: Path) -> None:
        now = json.loads(json.dumps(now))  # `before` was read from JSON, where a tuple is a list
        for name in now.keys() | before.keys():
            if now.get(name) != before.get(name):
                raise CheckpointError(
                    f"{folder}: {what} had {name} {before.get(name)}, now it is {now.get(name)}; "
                    "a resumed run keeps its settings; restore this one, or start a new run"
                )

    def _notify(self, event: Event) -> None:
        for callback in self.callbacks:
            event.notify(callback)


def _step_losses(loss: Tensor, losses: dict[str, Tensor], norm: Tensor) -> _StepLosses:
    """Sum the losses over all processes, and copy all values from the device at once."""
    sums = reduce_sum(torch.cat((loss[None], *losses.values())))
    norm_value, loss_value, *values = torch.cat((norm[None], sums)).tolist()
    rest = iter(values)
    return _StepLosses(
        loss_value, norm_value, {name: tuple(next(rest) for _ in layers) for name, layers in losses.items()}
    )


def _stop_requested(stop: StopSignal) -> bool:
    """Whether any process received a stop signal. All processes then stop."""
    if any(gather(stop.requested)):
        stop.requested = True
    return stop.requested


def _save_tensors(path: Path, task: nn.Module) -> None:
    save_file({name: tensor.detach().contiguous() for name, tensor in own_tensors(task).items()}, path)
