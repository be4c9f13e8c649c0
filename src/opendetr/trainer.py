"""Trains a task on a loader's batches. It knows nothing else: no model, no loss, no file format of images.

What it promises: a run that is stopped, killed or refused by the disk goes on from its last checkpoint and ends with
the very weights of the run that was never stopped (on a CPU, with the same number of threads). For that, nothing a
step does may depend on what came before except through the checkpoint: the batch is a function of (seed, epoch,
position), the learning rate of the step, and the random numbers that dropout draws are seeded anew for each step.
"""

from __future__ import annotations

import copy
import math
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, cast

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim.swa_utils import get_ema_multi_avg_fn

from opendetr.checkpoint import CheckpointError, find_checkpoint, load_checkpoint, save_checkpoint
from opendetr.distributed import best_device, has_bfloat16, is_main, rank
from opendetr.events import (
    CheckpointSaved,
    EpochEnded,
    Evaluated,
    Event,
    NonFiniteFound,
    Observer,
    PlanFixed,
    RunEnded,
    RunStarted,
    StepTaken,
)
from opendetr.recipe import Plan, Recipe, learning_rate_factor, parameter_groups, plan_epochs, plan_time
from opendetr.stopping import AbandonedError, StopSignal
from opendetr.structures import Batch, ImageBatch

STATE, MODEL = "training.safetensors", "model.safetensors"


class NonFiniteError(ValueError):
    """A loss or a gradient was not finite; the weights are as they were before the step."""


class Task(Protocol):
    """What the trainer asks of a task, which is an nn.Module besides."""

    def __call__(self, batch: Batch, normaliser: Any) -> dict[str, Tensor]:
        """Unweighted losses, one value a decoder layer, the last one the final layer's."""
        ...

    def normaliser(self, batches: Sequence[Batch]) -> Any:
        """What the losses are divided by, counted over all micro-batches of a step."""
        ...

    def total(self, losses: dict[str, Tensor]) -> Tensor:
        """The weighted scalar."""
        ...


class Loader(Protocol):
    """Where batches come from."""

    def __len__(self) -> int:
        """Batches of an epoch."""
        ...

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of an epoch from number `start` on, the same ones at every call."""
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


@dataclass
class _State:
    """What a checkpoint holds beside tensors.

    Attributes:
        step: steps taken; epoch and position in it follow from it.
        seconds: of training, earlier sessions included.
        plan: the run's length, None while a timed run does not know it.
        evaluated: number of steps after which the latest evaluation was made.
        metrics, best: what the latest and the best evaluation returned.
    """

    step: int = 0
    seconds: float = 0.0
    plan: Plan | None = None
    evaluated: int = 0
    metrics: dict[str, Any] = field(default_factory=dict)
    best: dict[str, Any] = field(default_factory=dict)


class Trainer:
    """One training run.

    Args:
        task: the module to train; see `Task`.
        loader: gives the batches of `recipe.batch_size`; one is one optimiser step.
        recipe: optimiser, schedule, length.
        folder: the run folder; the checkpoints `last` and `best` are kept in it.
        evaluate: the deployed task, in evaluation mode -> metrics; never called when omitted.
        save_model: writes the deployed task's weights to a path, for `model.safetensors`; plain tensors when omitted.
        observers: are told of every event, in this order.
        device: "auto", "cpu", "cuda", "mps".
        metric: the one of which the best checkpoint has most.
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
        metric: str = "AP",
    ) -> None:
        self.device = best_device(device)
        self.task = task.to(self.device)
        self.loader = loader
        self.recipe = recipe
        self.folder = folder
        self.evaluate = evaluate
        self.save_model = save_model or _save_tensors
        self.observers = observers
        self.metric = metric
        self.half_precision = recipe.precision == "bf16" or (recipe.precision == "auto" and has_bfloat16(self.device))
        groups = parameter_groups(task, recipe)
        self.optimizer = torch.optim.AdamW(groups, fused=True)
        self.rates = [group["lr"] for group in groups]
        self.average = WeightAverage(task, recipe.ema_decay) if recipe.ema_decay else None
        self.state = _State(plan=plan_epochs(recipe, len(loader)) if recipe.time is None else None)
        self._speed = _Speed()
        self._clock = self._saved = 0.0  # when training began, earlier sessions counted in; when it was saved last

    def train(self, *, resume: bool = False) -> RunResult:
        """Train to the end of the run, or until Ctrl-C or SIGTERM, which save first.

        Args:
            resume: go on from the run folder's last checkpoint.

        Raises:
            CheckpointError: nothing to resume, or a run already there; or a checkpoint cannot be written.
            NonFiniteError: names the images; the last checkpoint is from before it.
        """
        last = self.folder / "last"
        if resume:
            notes = self._restore(last)
        elif find_checkpoint(last):
            raise CheckpointError(f"{self.folder}: holds a run already; go on with --resume or choose another folder")
        else:
            notes = ()
        state = self.state
        start = RunStarted(
            folder=self.folder,
            step=state.step,
            steps_per_epoch=len(self.loader),
            total_steps=state.plan.total_steps if state.plan else None,
            device=str(self.device),
            evaluated=state.evaluated,
            metrics=state.metrics,
            notes=notes,
        )
        outcome: Literal["finished", "interrupted", "failed"] = "failed"
        try:
            self._tell(start)
            with StopSignal() as stop:
                if self._evaluation_due() or not self._finished():
                    self._run(stop, is_new=not resume)
            finished = self._finished() and not self._evaluation_due()
            outcome = "finished" if finished else "interrupted"
        finally:
            self._tell(RunEnded(state.step, outcome, state.seconds))
        return RunResult(state.step, outcome == "interrupted", state.metrics, state.best, state.seconds)

    def _run(self, stop: StopSignal, is_new: bool) -> None:
        """Alternate between a step and what is due between two steps, to the end or until a signal."""
        self.task.train()
        self._saved = time.perf_counter()
        self._clock = self._saved - self.state.seconds
        if is_new:  # the random start belongs to the run, and a disk that cannot hold it is found out at once
            self._save()
        self._attend(stop)
        while not (self._finished() or stop.requested):
            epoch, position = divmod(self.state.step, len(self.loader))
            waiting = time.perf_counter()
            for batch in _until_signal(self.loader.epoch(epoch, position), stop):
                self._step(batch, waiting)
                if self.state.step % len(self.loader) == 0:
                    self._tell(EpochEnded(epoch + 1, self.state.step))
                self._attend(stop)
                if self._finished() or stop.requested:
                    break
                waiting = time.perf_counter()
        self._save()

    def _finished(self) -> bool:
        return self.state.plan is not None and self.state.step >= self.state.plan.total_steps

    def _evaluation_due(self) -> bool:
        state = self.state
        due = state.plan is not None and state.plan.evaluates_after(state.step) and state.evaluated != state.step
        return due and self.evaluate is not None

    def _attend(self, stop: StopSignal) -> None:
        """What is due between two steps: fixing the length of a timed run, an evaluation, a checkpoint."""
        self.state.seconds = time.perf_counter() - self._clock
        if self.state.plan is None and self._speed.is_known(self.state.seconds, cast(float, self.recipe.time)):
            self._fix_plan(stop)
        if self._evaluation_due() and not stop.requested:
            self._evaluate(stop)
            if not (stop.requested or self._finished()):
                self._save()
        elif time.perf_counter() - self._saved >= self.recipe.save_every:
            self._save()

    def _fix_plan(self, stop: StopSignal) -> None:
        """Count the steps that the time allows; what an evaluation and a checkpoint cost is found by making one."""
        started = time.perf_counter()
        if self.evaluate is not None:
            self._evaluate(stop)
            if stop.requested:
                return
        evaluated = time.perf_counter()
        self._save()
        saved = time.perf_counter()
        self.state.seconds = saved - self._clock
        self.state.plan = plan_time(
            self.recipe,
            step=self.state.step,
            seconds=self.state.seconds,
            step_seconds=self._speed.step_seconds,
            evaluation_seconds=evaluated - started,
            save_seconds=saved - evaluated,
        )
        self._save()
        self._tell(PlanFixed(self.state.step, self.state.plan, self._speed.step_seconds))

    def _step(self, batch: Batch, waiting: float) -> None:
        """One optimiser step; `waiting` is when the wait for its batch began."""
        started = time.perf_counter()
        state, recipe = self.state, self.recipe
        total_steps = state.plan.total_steps if state.plan else None
        factor = learning_rate_factor(state.step, total_steps, recipe)
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * factor
        with step_randomness(recipe.seed, state.step, self.device):
            loss, losses = self._backward(split_batch(batch.to(self.device), recipe.accumulate))
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        norm = get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
        loss_value, norm_value, *values = torch.cat((loss[None], norm[None], *losses.values())).tolist()
        if not (math.isfinite(loss_value) and math.isfinite(norm_value)):
            self._refuse(batch, loss_value, norm_value)
        if recipe.clip_norm:
            clip_grads_with_norm_(parameters, recipe.clip_norm, norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.average:
            self.average.update(self.task, state.step)
        numbers = iter(values)
        by_name = {name: tuple(next(numbers) for _ in layers) for name, layers in losses.items()}
        epoch = state.step // len(self.loader)
        state.step += 1
        seconds = time.perf_counter() - waiting
        self._speed.add(seconds)
        self._tell(
            StepTaken(
                step=state.step,
                epoch=epoch,
                total_steps=total_steps,
                loss=loss_value,
                losses=by_name,
                learning_rate=recipe.learning_rate * factor,
                gradient_norm=norm_value,
                num_images=len(batch),
                seconds=seconds,
                data_seconds=started - waiting,
            )
        )

    def _backward(self, parts: Sequence[Batch]) -> tuple[Tensor, dict[str, Tensor]]:
        """Add up the gradients of a step's micro-batches; returns the total loss and the losses of all of them."""
        task = cast(Task, self.task)
        normaliser = task.normaliser(parts)
        sums: dict[str, Tensor] = {}
        total = torch.zeros((), device=self.device)
        for part in parts:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.half_precision):
                losses = task(part, normaliser)
                loss = task.total(losses)
            loss.backward()
            total = total + loss.detach()
            sums = {name: values.detach().float() + sums.get(name, 0.0) for name, values in losses.items()}
        return total, sums

    def _refuse(self, batch: Batch, loss: float, norm: float) -> None:
        """Stop before the numbers that are not finite reach the weights or a checkpoint."""
        names = batch.names or tuple(f"image {target.image_id}" for target in batch.targets)
        self._tell(NonFiniteFound(self.state.step, loss, norm, names))
        what = f"the gradient's norm is {norm}" if math.isfinite(loss) else f"the loss is {loss}"
        raise NonFiniteError(
            f"{what} in step {self.state.step + 1}, images {', '.join(names)}; the checkpoint {self.folder / 'last'} "
            "is from before it: look at these images, or lower the learning rate"
        )

    @property
    def deployed(self) -> nn.Module:
        """The task with the weights to evaluate and to keep: the averaged ones when there is an average."""
        return self.average.task if self.average else self.task

    def _evaluate(self, stop: StopSignal) -> None:
        """Evaluate, unless a signal comes: then it is left to the resumed run."""
        assert self.evaluate is not None
        state, task = self.state, self.deployed
        started = time.perf_counter()
        task.eval()
        try:
            with stop.abandoning(), torch.no_grad():
                metrics = dict(self.evaluate(task))
        except AbandonedError:
            return
        else:
            value = metrics.get(self.metric)  # None where the data has nothing to be measured on
            is_best = value is not None and value > state.best.get(self.metric, -math.inf)
            state.evaluated, state.metrics = state.step, metrics
            if is_best:
                state.best = {**metrics, "step": state.step}
                self._save_best()
            seconds = time.perf_counter() - started
            self._tell(Evaluated(state.step, state.step / len(self.loader), metrics, is_best, seconds, task))
        finally:
            self.task.train()

    def _save_best(self) -> None:
        if is_main():
            facts = {"step": self.state.step, "metrics": self.state.best}
            save_checkpoint(self.folder / "best", facts, {MODEL: lambda path: self.save_model(path, self.deployed)})

    def _save(self) -> None:
        """Save everything that the rest of the run depends on."""
        started = time.perf_counter()
        self.state.seconds = started - self._clock
        facts = {
            **asdict(self.state),
            "recipe": asdict(self.recipe),
            "steps_per_epoch": len(self.loader),
            "machine": self._machine(),
        }
        files: dict[str, Callable[[Path], object]] = {
            STATE: lambda path: save_file(self._tensors(), path),
            MODEL: lambda path: self.save_model(path, self.deployed),
        }
        last = self.folder / "last"
        if is_main():
            save_checkpoint(last, facts, files)
        self._saved = time.perf_counter()
        self._tell(CheckpointSaved(self.state.step, last, self._saved - started))

    def _machine(self) -> dict[str, Any]:
        """What else the last bit of a result depends on."""
        return {
            "torch": torch.__version__,
            "device": self.device.type,
            "threads": torch.get_num_threads(),
            "processor": platform.machine(),
            "bfloat16": self.half_precision,
        }

    def _slots(self) -> dict[str, Tensor]:
        """Every tensor that training changes, by the name it has in a checkpoint: weights, their average, moments."""
        slots = {f"task/{name}": tensor for name, tensor in _own_tensors(self.task).items()}
        if self.average:
            slots |= {f"average/{name}": tensor for name, tensor in _own_tensors(self.average.task).items()}
        for group in self.optimizer.param_groups:
            for name, parameter in zip(group["names"], group["params"], strict=True):
                moments = self.optimizer.state.get(parameter, {})
                slots |= {f"optimizer/{name}/{key}": value for key, value in moments.items()}
        return slots

    def _tensors(self) -> dict[str, Tensor]:
        return {name: tensor.detach().contiguous() for name, tensor in self._slots().items()}

    def _restore(self, folder: Path) -> tuple[str, ...]:
        """Continue from a checkpoint; returns what the user should know about it."""
        checkpoint = load_checkpoint(folder)
        facts = checkpoint.facts
        self._expect_same("recipe", asdict(self.recipe), facts["recipe"], folder)
        steps = {"steps": len(self.loader)}
        self._expect_same("an epoch", steps, {"steps": facts["steps_per_epoch"]}, folder)
        saved = checkpoint.tensors(STATE)
        self._open_moments(saved)
        slots = self._slots()
        strange = sorted(
            name for name in saved.keys() | slots.keys() if _shape(saved.get(name)) != _shape(slots.get(name))
        )
        if strange:
            raise CheckpointError(
                f"{folder}: was made by another model, {len(strange)} tensors do not fit, {strange[0]} the first; "
                "resume with the model that the run was started with"
            )
        with torch.no_grad():
            for name, tensor in slots.items():
                tensor.copy_(saved[name])
        names = ("step", "seconds", "evaluated", "metrics", "best")
        plan = None if facts["plan"] is None else Plan(**facts["plan"])
        self.state = _State(plan=plan, **{name: facts[name] for name in names})
        here = self._machine()
        return tuple(
            f"resumed with {name} {here[name]}, started with {was}: the rest is not the same to the last bit"
            for name, was in facts["machine"].items()
            if here.get(name) != was
        )

    def _expect_same(self, what: str, now: Mapping[str, Any], before: Mapping[str, Any], folder: Path) -> None:
        for name in now.keys() | before.keys():
            if now.get(name) != before.get(name):
                raise CheckpointError(
                    f"{folder}: {what} had {name} {before.get(name)}, now it is {now.get(name)}; "
                    "a resumed run keeps what it was started with: give the same, or start a new run"
                )

    def _open_moments(self, saved: Mapping[str, Tensor]) -> None:
        """Give the optimiser empty moments for every parameter that has saved ones, laid out as the parameter is."""
        for group in self.optimizer.param_groups:
            for name, parameter in zip(group["names"], group["params"], strict=True):
                prefix = f"optimizer/{name}/"
                for key, value in saved.items():
                    if key.startswith(prefix):
                        like = parameter.detach() if value.ndim else value.to(parameter.device)
                        self.optimizer.state[parameter][key.removeprefix(prefix)] = torch.zeros_like(like)

    def _tell(self, event: Event) -> None:
        for observer in self.observers:
            event.tell(observer)


class WeightAverage:
    """A second set of weights that follows the trained ones slowly: average = d average + (1 - d) trained.

    The decay d rises from 0.1 to `decay`, as (1 + step) / (10 + step): the random start is forgotten at once.

    Args:
        task: what is averaged; its buffers are copied.
        decay: the final d, below 1.
    """

    def __init__(self, task: nn.Module, decay: float) -> None:
        self.decay = decay
        self.task = copy.deepcopy(task).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, task: nn.Module, step: int) -> None:
        """Take in the weights that `task` has after its step number `step`, from 0."""
        decay = min(self.decay, (1 + step) / (10 + step))
        average = get_ema_multi_avg_fn(decay)
        average(list(self.task.parameters()), [parameter.detach() for parameter in task.parameters()], None)
        for averaged, current in zip(self.task.buffers(), task.buffers(), strict=True):
            averaged.copy_(current)


class _Speed:
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

    def is_known(self, seconds: float, time_given: float) -> bool:
        """Whether enough of the run has passed to tell."""
        enough = self._num_steps >= self._SKIPPED + self._ENOUGH
        return self._num_steps > 0 and seconds >= time_given * (self._EARLIEST if enough else self._LATEST)


@contextmanager
def step_randomness(seed: int, step: int, device: torch.device) -> Iterator[None]:
    """Within it, what draws from torch's global generator (dropout can do no other) gets the numbers of this step.

    They are a function of seed, step and process alone; afterwards the generator is as it was before.
    """
    state = np.random.SeedSequence((seed, step, rank())).generate_state(1, np.uint64)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(int(state[0]))
        yield


def split_batch(batch: Batch, num_parts: int) -> list[Batch]:
    """Cut a batch into `num_parts` micro-batches (fewer if it has fewer images), padded as the whole is."""
    size = math.ceil(len(batch) / num_parts)
    parts = []
    for start in range(0, len(batch), size):
        cut = slice(start, start + size)
        padding = None if batch.images.padding is None else batch.images.padding[cut]
        images = ImageBatch(batch.images.pixels[cut], padding, batch.images.sizes[cut])
        parts.append(Batch(images, batch.targets[cut], batch.names[cut]))
    return parts


def _until_signal(batches: Iterator[Batch], stop: StopSignal) -> Iterator[Batch]:
    """The batches; a loader whose workers are ended by the signal that asks us to stop simply has no more."""
    try:
        yield from batches
    except (RuntimeError, ValueError):
        if not stop.requested:
            raise


def _own_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and saved buffers by name, each once, under its first name."""
    seen: set[int] = set()
    own = {}
    for name, tensor in module.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            own[name] = tensor
    return own


def _save_tensors(path: Path, task: nn.Module) -> None:
    save_file({name: tensor.detach().contiguous() for name, tensor in _own_tensors(task).items()}, path)


def _shape(tensor: Tensor | None) -> tuple[int, ...] | None:
    return None if tensor is None else tuple(tensor.shape)
