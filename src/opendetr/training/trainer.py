"""Trains a task on a loader's batches. It knows nothing else: no model, no loss, no file format of images.

What it promises: a run that is stopped, killed or refused by the disk goes on from its last checkpoint and ends with
the very weights of the run that was never stopped (on a CPU, with the same number of threads). For that, nothing a
step does may depend on what came before except through the checkpoint: the batch is a function of (seed, epoch,
position), the learning rate of the step, and the random numbers that dropout draws are seeded anew for each step.

Several processes train as one would: each takes its share of every batch, the losses are divided by what all shares
hold, and whatever one process alone can know (a signal, the time) is agreed on between two steps.
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
from opendetr.training.optimizer import parameter_groups
from opendetr.training.run_state import RunState, TrainedTensors, own_tensors
from opendetr.training.schedule import Pace, StepSpeed, learning_rate_factor, plan_steps, plan_time, revised
from opendetr.training.signals import AbandonedError, StopSignal
from opendetr.training.train_step import autocast_dtype, keep_freed_memory, step_randomness

STATE, MODEL = "training.safetensors", "model.safetensors"
COUNT = "count"  # what a task calls the divisor that it knows after the forward pass only


class Task(Protocol):
    """What the trainer asks of a task, which is an nn.Module besides; see `tasks.Task`.

    Attributes:
        optional_parameters: names of parameters, or beginnings of names, that may be without a gradient in a step.
    """

    optional_parameters: ClassVar[tuple[str, ...]]

    def __call__(self, batch: Batch, normaliser: Any) -> dict[str, Tensor]:
        """Unweighted losses, one value per decoder layer, the last one the final layer's.

        Their names and shapes are equal in all processes. Every trained parameter that is not optional takes part in
        them, without any objects, too: several processes wait for its gradient.
        """
        ...

    def normaliser(self, object_counts: Sequence[int]) -> Any:
        """What the losses are divided by, from the number of objects of every image that a step sees.

        None where only the forward pass tells: then the losses are sums, and "count" (1,) beside them is the divisor
        of their part. The trainer adds the counts up and divides gradients and losses once.
        """
        ...

    def total(self, losses: Mapping[str, Tensor]) -> Tensor:
        """The weighted scalar."""
        ...


class Loader(Protocol):
    """Where batches come from."""

    def __len__(self) -> int:
        """Batches of an epoch."""
        ...

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of an epoch from number `start` on, the same ones at every call.

        Where several processes train, each one's loader gives its own part of every batch, in the order of the ranks.
        """
        ...


@dataclass(frozen=True)
class RunResult:
    """How a run ended.

    Attributes:
        step: steps taken.
        interrupted: a signal stopped it before its end; a checkpoint was saved.
        metrics: of the latest evaluation.
        best: metrics of the best one, empty when nothing was evaluated.
        seconds: of training altogether.
    """

    step: int
    interrupted: bool
    metrics: Mapping[str, Any]
    best: Mapping[str, Any]
    seconds: float


class _Share(NamedTuple):
    """What a step works on.

    Attributes:
        batch: this process' images.
        counts: the number of objects of every image of the step, in all processes.
    """

    batch: Batch
    counts: list[int]


class _Numbers(NamedTuple):
    """What a step is judged by: the total loss and the gradient's norm, and the losses of all processes by name."""

    loss: float
    norm: float
    losses: dict[str, tuple[float, ...]]


class Trainer:
    """One training run.

    Args:
        task: the module to train; see `Task`.
        loader: gives the batches of `recipe.batch_size`; one is one optimiser step of all processes.
        recipe: optimiser, schedule, length.
        folder: the run folder; the checkpoints `last` and `best` are kept in it.
        evaluate: the deployed task, in evaluation mode -> metrics, the same in all processes; none when omitted.
        save_model: writes the deployed task's weights to a path, for `model.safetensors`; plain tensors when omitted.
        observers: are told of every event, in this order; in the main process only.
        device: "auto", "cpu", "cuda", "mps".

    Raises:
        DeviceError, ConfigError: the recipe asks for what this machine or this task does not have.
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
        self.optimizer = torch.optim.AdamW(groups, fused=True)
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
        self._clock = self._saved = 0.0  # when training began, earlier sessions counted in; when it was saved last
        self._save_seconds = 0.0

    def train(self, *, resume: bool = False) -> RunResult:
        """Train to the end of the run, or until Ctrl-C or SIGTERM, which save first.

        Args:
            resume: go on from the run folder's last checkpoint.

        Raises:
            CheckpointError: nothing to resume, or a run already there; or a checkpoint cannot be written.
            NonFiniteError: names the images; the last checkpoint is from before it.
            ProcessError: another process of the run failed, or is gone.
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
            self._tell(start)
            with StopSignal() as stop, naming_lost_processes():
                if self._evaluation_due() or not self._finished():
                    self._run(stop, is_new=not resume)
            outcome = self._outcome()
        finally:
            self._tell(RunEnded(state.step, outcome, state.seconds))
        return RunResult(state.step, outcome == "interrupted", state.metrics, state.best, state.seconds)

    def _run(self, stop: StopSignal, is_new: bool) -> None:
        """Alternate between a step and what is due between two steps, to the end or until a signal."""
        train_mode(self.task)
        self._saved = time.perf_counter()
        self._clock = self._saved - self.state.seconds
        if is_new:  # the random start belongs to the run, and a disk that cannot hold it is found out at once
            self._save()
        self._attend(stop)
        while not (self._finished() or _anywhere(stop)):
            epoch, position = divmod(self.state.step, len(self.loader))
            waiting = time.perf_counter()
            for share in self._shares(epoch, position, stop):
                self._step(share, waiting)
                if self.state.step % len(self.loader) == 0:
                    self._tell(EpochEnded(epoch + 1, self.state.step))
                self._attend(stop)
                if self._finished() or _anywhere(stop):
                    break
                waiting = time.perf_counter()
        self._save()

    def _shares(self, epoch: int, position: int, stop: StopSignal) -> Iterator[_Share]:
        """This process' share of every batch of an epoch, when all have theirs, padded as the whole batch is."""
        batches = self.loader.epoch(epoch, position)
        while True:
            batch, failure = None, None
            try:
                batch = next(batches, None)
            except (RuntimeError, OSError, EOFError, ValueError) as error:
                if not stop.requested:  # else the signal that asks us to stop has ended the loader's workers, too
                    if not isinstance(error, ValueError):
                        raise
                    failure = error
            outline = None if batch is None else (batch.shape, batch.object_counts)
            outlines = [met for met in gather(outline, failure) if met is not None]
            if batch is None or len(outlines) < world_size():
                return
            height, width = (max(sides) for sides in zip(*(size for size, _ in outlines), strict=True))
            yield _Share(batch.pad_to(height, width), [count for _, counts in outlines for count in counts])

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

    def _attend(self, stop: StopSignal) -> None:
        """What is due between two steps: planning a timed run, an evaluation, a checkpoint."""
        self.state.seconds = time.perf_counter() - self._clock
        if self.state.plan is None and self._can_be_planned():
            self._make_plan(stop)
        if self._evaluation_due() and not _anywhere(stop):
            if world_size() > 1:  # then nothing breaks an evaluation off, and a launcher that stops us does not wait
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
        """Count the steps that the time allows; what an evaluation and a checkpoint cost is found by making one."""
        seconds = self._evaluate(stop) if self.evaluate is not None else 0.0
        if seconds is None:
            return
        self._save()
        self.state.plan = from_main(plan_time(self.recipe, self.state.step, self._pace(seconds)))
        self._save()
        self._tell(PlanFixed(self.state.step, self.state.plan, self._speed.step_seconds))
        self._speed = StepSpeed()

    def _revise_plan(self, evaluation_seconds: float) -> None:
        """Correct the plan of a timed run whose speed has changed; the checkpoint that follows holds the new one."""
        plan = self.state.plan
        if self.recipe.time is None or plan is None or not self._speed.is_reliable:
            return
        pace = self._pace(evaluation_seconds)
        self.state.plan = from_main(revised(plan, self.recipe, self.state.step, pace))
        if self.state.plan != plan:
            self._tell(PlanFixed(self.state.step, self.state.plan, pace.step))
        self._speed = StepSpeed()

    def _pace(self, evaluation_seconds: float) -> Pace:
        used = time.perf_counter() - self._clock
        return Pace(used=used, step=self._speed.step_seconds, evaluation=evaluation_seconds, save=self._save_seconds)

    def _step(self, share: _Share, waiting: float) -> None:
        """One optimiser step; `waiting` is when the wait for its batch began."""
        started = time.perf_counter()
        state, recipe = self.state, self.recipe
        epoch = state.step // len(self.loader)
        total_steps = state.plan.total_steps if state.plan else None
        factor = learning_rate_factor(state.step, total_steps, recipe)
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * factor
        with step_randomness(recipe.seed, state.step, self.device):
            loss, losses, count = self._backward(share)
        self.scaler.unscale_(self.optimizer)
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        assert len(gradients) == len(parameters) or self._may_lack_gradients(), "parameters without a gradient"
        if count is not None:  # of all parts and processes
            divisor = reduce_sum(count).clamp(min=1.0)
            torch._foreach_div_(gradients, divisor.squeeze())
            loss, losses = loss / divisor.squeeze(), {name: values / divisor for name, values in losses.items()}
        norm = get_total_norm(gradients)
        numbers = _numbers(loss, losses, norm)
        if not (math.isfinite(numbers.loss) and (math.isfinite(numbers.norm) or self._may_overflow())):
            self._refuse(share.batch, numbers)
        if recipe.clip_norm:
            clip_grads_with_norm_(parameters, recipe.clip_norm, norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        if self.average:
            self.average.update(self.task, state.step)
        state.step += 1
        seconds = time.perf_counter() - waiting
        self._speed.add(seconds)
        self._tell(
            StepTaken(
                step=state.step,
                epoch=epoch,
                total_steps=total_steps,
                loss=numbers.loss,
                losses=numbers.losses,
                learning_rate=recipe.learning_rate * factor,
                gradient_norm=numbers.norm,
                num_images=len(share.counts),
                seconds=seconds,
                data_seconds=started - waiting,
            )
        )

    def _backward(self, share: _Share) -> tuple[Tensor, dict[str, Tensor], Tensor | None]:
        """Add up the gradients of a step's micro-batches.

        Returns:
            The total loss and the losses of this process; and the divisor (1,) of this process where the task knows it
            after the forward pass only, else None.
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
                    counted = losses.pop(COUNT) if normaliser is None else None
                    loss = task.total(losses)
                # The gradients become the mean over processes, and what is wanted is their sum.
                self.scaler.scale(loss * world_size()).backward()
            total = total + loss.detach()
            sums = {name: values.detach().float() + sums.get(name, 0.0) for name, values in losses.items()}
            if counted is not None:
                count = counted.detach() if count is None else count + counted.detach()
        return total, sums, count

    def _may_lack_gradients(self) -> bool:
        """Whether the task declares every parameter that has no gradient in this step."""
        names = [name for name, each in self.task.named_parameters() if each.requires_grad and each.grad is None]
        return all(name.startswith(self._optional) for name in names)

    def _may_overflow(self) -> bool:
        """Whether a gradient that is not finite is ordinary: fp16's scaler then skips the step and scales less."""
        return self.scaler.is_enabled() and self.scaler.get_scale() > 1

    def _refuse(self, batch: Batch, numbers: _Numbers) -> None:
        """Stop before the numbers that are not finite reach the weights or a checkpoint."""
        own = batch.names or tuple(f"image {target.image_id}" for target in batch.targets)
        names = tuple(name for names in gather(own) for name in names)
        loss, norm = numbers.loss, numbers.norm
        self._tell(NonFiniteFound(self.state.step, loss, norm, names))
        what = f"the gradient's norm is {norm}" if math.isfinite(loss) else f"the loss is {loss}"
        with together():
            raise NonFiniteError(
                f"{what} in step {self.state.step + 1}, images {', '.join(names)}; the checkpoint "
                f"{self.folder / 'last'} is from before it: look at these images, or lower the learning rate"
            )

    @property
    def deployed(self) -> nn.Module:
        """The task with the weights to evaluate and to keep: the averaged ones when there is an average."""
        return self.average.task if self.average else self.task

    def _evaluate(self, stop: StopSignal) -> float | None:
        """Evaluate; the seconds it took. None when a signal came: then it is left to the resumed run."""
        assert self.evaluate is not None
        state, task = self.state, self.deployed
        started = time.perf_counter()
        copy_buffers(task)
        task.eval()
        try:
            # The others would wait for a process that leaves alone.
            with stop.abandoning() if world_size() == 1 else nullcontext(), torch.no_grad():
                metrics = dict(self.evaluate(task))
        except AbandonedError:
            return None
        else:
            value = metrics.get(self.recipe.best_by)  # None where the data has nothing to be measured on
            before = state.best.get(self.recipe.best_by, -math.inf)
            is_best = value is not None and value >= before  # of equals the one that has learned longer
            state.evaluated, state.metrics = state.step, metrics
            state.worse = 0 if value is not None and value > before else state.worse + 1
            if is_best:
                state.best = {**metrics, "step": state.step}
                self._save_best()
            seconds = time.perf_counter() - started
            self._tell(Evaluated(state.step, state.step / len(self.loader), metrics, is_best, seconds, task))
            return time.perf_counter() - started
        finally:
            train_mode(self.task)

    def _save_best(self) -> None:
        if is_main():
            facts = {"step": self.state.step, "metrics": self.state.best}
            save_checkpoint(self.folder / "best", facts, {MODEL: lambda path: self.save_model(path, self.deployed)})

    def _save(self) -> None:
        """Save everything that the rest of the run depends on."""
        started = time.perf_counter()
        self.state.seconds = started - self._clock
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
        self._tell(CheckpointSaved(self.state.step, last, self._save_seconds))

    def _machine(self) -> dict[str, Any]:
        """What else the last bit of a result depends on."""
        return {
            "torch": torch.__version__,
            "device": self.device.type,
            "threads": torch.get_num_threads(),
            "processes": world_size(),
            "processor": platform.machine(),
            "precision": str(self.autocast_dtype or torch.float32),
        }

    def _restore(self, folder: Path) -> tuple[str, ...]:
        """Continue from a checkpoint; returns what the user should know about it."""
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
            f"resumed with {name} {here[name]}, started with {was}: the rest is not the same to the last bit"
            for name, was in facts["machine"].items()
            if here.get(name) != was
        )

    def _expect_same(self, what: str, now: Mapping[str, Any], before: Mapping[str, Any], folder: Path) -> None:
        now = json.loads(json.dumps(now))  # as it was read: a tuple is a list
        for name in now.keys() | before.keys():
            if now.get(name) != before.get(name):
                raise CheckpointError(
                    f"{folder}: {what} had {name} {before.get(name)}, now it is {now.get(name)}; "
                    "a resumed run keeps what it was started with: give the same, or start a new run"
                )

    def _tell(self, event: Event) -> None:
        for observer in self.observers:
            event.tell(observer)


def _numbers(loss: Tensor, losses: dict[str, Tensor], norm: Tensor) -> _Numbers:
    """Sum the losses over the processes, and wait for the device but once."""
    of_all = reduce_sum(torch.cat((loss[None], *losses.values())))
    norm_value, loss_value, *values = torch.cat((norm[None], of_all)).tolist()
    rest = iter(values)
    return _Numbers(
        loss_value, norm_value, {name: tuple(next(rest) for _ in layers) for name, layers in losses.items()}
    )


def _anywhere(stop: StopSignal) -> bool:
    """Whether a stop was asked for in any process; from then on it is in all."""
    if any(gather(stop.requested)):
        stop.requested = True
    return stop.requested


def _save_tensors(path: Path, task: nn.Module) -> None:
    save_file({name: tensor.detach().contiguous() for name, tensor in own_tensors(task).items()}, path)
