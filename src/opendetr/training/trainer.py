"""The trainer trains a task on the batches of a loader. It knows no model, no loss and no file format.

A run that was stopped or killed, or that failed on a full disk, can be resumed from its last checkpoint. On a CPU with
the same number of threads, it then ends with the same weights as an uninterrupted run, bit for bit. Therefore a step
depends on earlier steps only through the state that a checkpoint stores. The batch is a function of (seed, epoch,
position), the learning rate is a function of the step, and dropout is seeded anew for each step.

Several processes give the result of one. Each takes its share of every batch, and the losses are normalised over all
shares. What only one process knows (a signal, the elapsed time) is communicated between two steps.
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
from typing import Any, ClassVar, NamedTuple, Protocol, cast

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

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
from opendetr.training.activation_checkpointing import recompute_blocks
from opendetr.training.checkpoint import CheckpointError, find_checkpoint, load_checkpoint, save_checkpoint
from opendetr.training.ema import WeightAverage
from opendetr.training.events import (
    CheckpointSaved,
    EpochEnded,
    Evaluated,
    Event,
    NonFiniteFound,
    Observer,
    Outcome,
    PlanFixed,
    RunEnded,
    RunStarted,
    StepTaken,
)
from opendetr.training.freezing import freeze, train_mode
from opendetr.training.optimizer import new_optimizer, parameter_groups, rate_factor
from opendetr.training.run_state import RunState, TrainedTensors, own_tensors
from opendetr.training.schedule import Pace, StepSpeed, learning_rate_factor, plan_steps, plan_time, revised
from opendetr.training.signals import AbandonedError, StopSignal
from opendetr.training.train_step import autocast_dtype, keep_freed_memory, step_randomness

STATE, MODEL = "training.safetensors", "model.safetensors"
COUNT = "count"  # the entry of a task's losses that contains a divisor known only after the forward pass


class Task(Protocol):
    """The interface that the trainer uses of a task; see `tasks.Task`. A task is also an nn.Module.

    Attributes:
        optional_parameters: names, or prefixes of names, of parameters that may have no gradient in a step.
    """

    optional_parameters: ClassVar[tuple[str, ...]]

    def __call__(self, batch: Batch, normaliser: Any) -> dict[str, Tensor]:
        """Compute the unweighted losses: (L,) for terms of every decoder layer, the final layer last, (1,) for others.

        Names and shapes are equal in all processes. Every trained parameter that is not optional has a gradient, also
        in a batch without objects, because several processes wait for it.
        """
        ...

    def normaliser(self, object_counts: Sequence[int]) -> Any:
        """The divisors of the losses, computed from the number of objects in every image of a step.

        None if the divisor is known only after the forward pass. The losses are then sums, and their additional entry
        "count" (1,) is the divisor. The trainer sums the counts and divides gradients and losses once.
        """
        ...

    def total(self, losses: Mapping[str, Tensor]) -> Tensor:
        """The weighted sum of the losses, a scalar."""
        ...


class Loader(Protocol):
    """The interface that the trainer uses of a loader."""

    def __len__(self) -> int:
        """The number of batches per epoch."""
        ...

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of an epoch from number `start` on, the same ones in every call.

        With several processes, each loader returns the part of every batch that belongs to its rank.
        """
        ...


@dataclass(frozen=True)
class RunResult:
    """The result of a run.

    Attributes:
        step: number of optimizer steps taken.
        interrupted: whether a signal stopped the run before its end. A checkpoint was saved.
        metrics: metrics of the latest evaluation.
        best: metrics of the best evaluation; empty without an evaluation.
        seconds: training time, including the time before the run was resumed.
    """

    step: int
    interrupted: bool
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
        task: the module to train; see `Task`.
        loader: the batches, of `recipe.batch_size` images. One batch is one optimizer step of all processes.
        recipe: the settings of optimizer, schedule and length.
        folder: the run folder. It receives the checkpoints `last` and `best`.
        evaluate: computes metrics from the deployed task in evaluation mode, the same ones in all processes. Default:
            no evaluation.
        save_model: writes the weights of the deployed task to a path, for `model.safetensors`. Default: all tensors of
            the task.
        observers: receive every event, in this order, in the main process only.
        device: "auto", "cpu", "cuda" or "mps".

    Raises:
        DeviceError: the machine does not have the device or the precision of the recipe.
        ConfigError: the recipe freezes a part that the task does not have.
    """

    def __init__(
        self,
        task: nn.Module,
        loader: Loader,
        recipe: Recipe,
        folder: Path,
        *,
        evaluate: Callable[[nn.Module], Mapping[str, Any]] | None = None,
        save_model: Callable[[Path, nn.Module], object] | None = None,
        observers: Sequence[Observer] = (),
        device: str = "auto",
    ) -> None:
        self.device = best_device(device)
        self.autocast_dtype = autocast_dtype(recipe.precision, self.device)
        self.task, note = share_norms(task.to(self.device), self.device)
        freeze(self.task, recipe.freeze)
        self.loader = loader
        self.recipe = recipe
        self.folder = folder
        self.evaluate = evaluate
        self.save_model = save_model or _save_tensors
        self.observers = observers if is_main() else ()
        groups = parameter_groups(self.task, recipe)
        self.optimizer = new_optimizer(groups, recipe)
        self.rates = [group["lr"] for group in groups]
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.autocast_dtype is torch.float16)
        self.average = WeightAverage(self.task, recipe.ema_decay) if recipe.ema_decay else None
        if recipe.gradient_checkpointing:
            recompute_blocks(self.task)
        self.state = RunState(plan=plan_steps(recipe, len(loader)))
        self._tensors = TrainedTensors(self.task, self.average.task if self.average else None, self.optimizer)
        self._optional = cast(Task, self.task).optional_parameters
        self._parallel = parallel(self.task, self.device, some_without_gradient=bool(self._optional))
        self._notes: tuple[str, ...] = (note,) if note else ()
        self._speed = StepSpeed()
        self._started = 0.0  # time at which training would have started without interruptions
        self._saved = 0.0  # time of the latest checkpoint
        self._save_seconds = 0.0

    def train(self, *, resume: bool = False) -> RunResult:
        """Train to the end of the run. Ctrl-C and SIGTERM save a checkpoint and end it early.

        Args:
            resume: continue from the last checkpoint of the run folder.

        Raises:
            CheckpointError: there is nothing to resume, the folder already holds a run, or a checkpoint cannot be
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
                    f"{self.folder}: holds a run already; go on with --resume or choose another folder"
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
            self._notify(start)
            with StopSignal() as stop, naming_lost_processes():
                if self._evaluation_due() or not self._finished():
                    self._run(stop, is_new=not resume)
            outcome = self._outcome()
        finally:
            self._notify(RunEnded(state.step, outcome, state.seconds))
        return RunResult(state.step, outcome == "interrupted", state.metrics, state.best, state.seconds)

    def _run(self, stop: StopSignal, is_new: bool) -> None:
        """Take steps to the end of the run or until a signal. Between steps, evaluate and save when it is due."""
        train_mode(self.task)
        self._saved = time.perf_counter()
        self._started = self._saved - self.state.seconds
        if is_new:  # a resumed run needs the initial weights, and a disk that is too small fails at once
            self._save()
        self._between_steps(stop)
        while not (self._finished() or _stop_requested(stop)):
            epoch, position = divmod(self.state.step, len(self.loader))
            wait_started = time.perf_counter()
            for share in self._shares(epoch, position, stop):
                self._step(share, wait_started)
                if self.state.step % len(self.loader) == 0:
                    self._notify(EpochEnded(epoch + 1, self.state.step))
                self._between_steps(stop)
                if self._finished() or _stop_requested(stop):
                    break
                wait_started = time.perf_counter()
        self._save()

    def _shares(self, epoch: int, position: int, stop: StopSignal) -> Iterator[_Share]:
        """Yield the share of this process of every batch, padded like the whole batch.

        It ends when one process has no batch.
        """
        batches = self.loader.epoch(epoch, position)
        while True:
            batch, failure = None, None
            try:
                batch = next(batches, None)
            except (RuntimeError, OSError, EOFError, ValueError) as error:
                if not stop.requested:  # a stop signal also ends the workers of the loader, which is not an error
                    if not isinstance(error, ValueError):
                        raise
                    failure = error
            own = None if batch is None else (batch.shape, batch.object_counts)
            shares = [other for other in gather(own, failure) if other is not None]
            if batch is None or len(shares) < world_size():
                return
            height, width = (max(sides) for sides in zip(*(shape for shape, _ in shares), strict=True))
            yield _Share(batch.pad_to(height, width), [count for _, counts in shares for count in counts])

    def _finished(self) -> bool:
        plan, patience = self.state.plan, self.recipe.patience
        return (plan is not None and self.state.step >= plan.total_steps) or 0 < patience <= self.state.worse

    def _outcome(self) -> Outcome:
        if not self._finished() or self._evaluation_due():
            return "interrupted"
        return "finished" if self.state.plan and self.state.step >= self.state.plan.total_steps else "early"

    def _evaluation_due(self) -> bool:
        state = self.state
        due = state.plan is not None and state.plan.evaluates_after(state.step) and state.evaluated != state.step
        return due and self.evaluate is not None

    def _between_steps(self, stop: StopSignal) -> None:
        """Plan a timed run, evaluate or save a checkpoint if it is due."""
        self.state.seconds = time.perf_counter() - self._started
        if self.state.plan is None and self._can_be_planned():
            self._make_plan(stop)
        if self._evaluation_due() and not _stop_requested(stop):
            # With several processes a signal does not interrupt the evaluation, and a launcher may kill them meanwhile.
            if world_size() > 1:
                self._save()
            seconds = self._evaluate(stop)
            if seconds is not None and not self._finished():
                self._revise_plan(seconds)
                self._save()
        elif time.perf_counter() - self._saved >= self.recipe.save_every:
            self._save()

    def _can_be_planned(self) -> bool:
        return from_main(self._speed.is_known(self.state.seconds, cast(float, self.recipe.time)))

    def _make_plan(self, stop: StopSignal) -> None:
        """Plan a timed run. One evaluation and one checkpoint measure what they cost."""
        seconds = self._evaluate(stop) if self.evaluate is not None else 0.0
        if seconds is None:
            return
        self._save()
        self.state.plan = from_main(plan_time(self.recipe, self.state.step, self._pace(seconds)))
        self._save()
        self._notify(PlanFixed(self.state.step, self.state.plan, self._speed.step_seconds))
        self._speed = StepSpeed()

    def _revise_plan(self, evaluation_seconds: float) -> None:
        """Correct the plan of a timed run if its speed has changed. The caller saves a checkpoint with the new plan."""
        plan = self.state.plan
        if self.recipe.time is None or plan is None or not self._speed.is_reliable:
            return
        pace = self._pace(evaluation_seconds)
        self.state.plan = from_main(revised(plan, self.recipe, self.state.step, pace))
        if self.state.plan != plan:
            self._notify(PlanFixed(self.state.step, self.state.plan, pace.step))
        self._speed = StepSpeed()

    def _pace(self, evaluation_seconds: float) -> Pace:
        used = time.perf_counter() - self._started
        return Pace(used=used, step=self._speed.step_seconds, evaluation=evaluation_seconds, save=self._save_seconds)

    def _step(self, share: _Share, wait_started: float) -> None:
        """Take one optimizer step. `wait_started` is the time at which the wait for its batch began."""
        started = time.perf_counter()
        state, recipe = self.state, self.recipe
        epoch = state.step // len(self.loader)
        total_steps = state.plan.total_steps if state.plan else None
        factor = learning_rate_factor(state.step, total_steps, recipe)
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
            self.average.update(self.task, state.step)
        state.step += 1
        seconds = time.perf_counter() - wait_started
        self._speed.add(seconds)
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
            The total loss, a scalar, and the losses of this process, without gradients; and the divisor (1,) of this
            process if the task knows it only after the forward pass, else None.
        """
        task = cast(Task, self.task)
        normaliser = task.normaliser(share.counts)
        parts = share.batch.to(self.device).split(self.recipe.accumulate)
        sums: dict[str, Tensor] = {}
        total = torch.zeros((), device=self.device)
        count: Tensor | None = None
        for part in parts:
            with without_sync(self._parallel) if part is not parts[-1] else nullcontext():
                with torch.autocast(self.device.type, self.autocast_dtype, enabled=self.autocast_dtype is not None):
                    losses = self._parallel(part, normaliser)
                    part_count = losses.pop(COUNT) if normaliser is None else None
                    loss = task.total(losses)
                # The processes average their gradients, but the step needs the sum.
                self.scaler.scale(loss * world_size()).backward()
            total = total + loss.detach()
            sums = {name: values.detach().float() + sums.get(name, 0.0) for name, values in losses.items()}
            if part_count is not None:
                count = part_count.detach() if count is None else count + part_count.detach()
        return total, sums, count

    def _only_optional_lack_gradients(self) -> bool:
        """Whether every parameter without a gradient in this step is an optional one of the task."""
        missing = [
            name
            for name, parameter in self.task.named_parameters()
            if parameter.requires_grad and parameter.grad is None
        ]
        return all(name.startswith(self._optional) for name in missing)

    def _may_overflow(self) -> bool:
        """Whether the fp16 loss scale may cause non-finite gradients. The scaler then skips the step and is reduced."""
        return self.scaler.is_enabled() and self.scaler.get_scale() > 1

    def _raise_nonfinite(self, batch: Batch, values: _StepLosses) -> None:
        """Raise NonFiniteError before the values reach the weights or a checkpoint."""
        own = batch.names or tuple(f"image {target.image_id}" for target in batch.targets)
        names = tuple(name for names in gather(own) for name in names)
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
        """The task with the weights that are evaluated and saved as the model: the EMA weights if there are any."""
        return self.average.task if self.average else self.task

    def _evaluate(self, stop: StopSignal) -> float | None:
        """Evaluate the deployed task.

        Returns:
            The duration in seconds; None if a signal interrupted the evaluation, which the resumed run then repeats.
        """
        assert self.evaluate is not None
        state, task = self.state, self.deployed
        started = time.perf_counter()
        copy_buffers(task)
        task.eval()
        try:
            # One of several processes must not leave the evaluation alone: the others would wait for it.
            with stop.abandoning() if world_size() == 1 else nullcontext(), torch.no_grad():
                metrics = dict(self.evaluate(task))
        except AbandonedError:
            return None
        else:
            value = metrics.get(self.recipe.best_by)  # None if the data contains nothing to compute it from
            before = state.best.get(self.recipe.best_by, -math.inf)
            is_best = value is not None and value >= before  # of equal values, the longer training wins
            state.evaluated, state.metrics = state.step, metrics
            state.worse = 0 if value is not None and value > before else state.worse + 1
            if is_best:
                state.best = {**metrics, "step": state.step}
                self._save_best()
            seconds = time.perf_counter() - started
            self._notify(Evaluated(state.step, state.step / len(self.loader), metrics, is_best, seconds, task))
            return time.perf_counter() - started
        finally:
            train_mode(self.task)

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
        self._save_seconds = self._saved - started
        self._notify(CheckpointSaved(self.state.step, last, self._save_seconds))

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
        for observer in self.observers:
            event.tell(observer)


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
