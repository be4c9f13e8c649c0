"""The state of a training run: everything that later steps depend on, saved to a checkpoint and restored from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from opendetr.training.checkpoint import CheckpointError
from opendetr.training.schedule import Evaluations, Plan


@dataclass
class RunState:
    """The values that a checkpoint stores in addition to tensors and settings.

    Attributes:
        step: number of steps taken. The epoch and the position in it follow from it.
        seconds: training time, including the time before the run was resumed.
        plan: the length of the run; None while a timed run is not planned yet.
        evaluations: number and size of the evaluations; None until a timed run has measured its speed.
        evaluated: number of steps before the latest evaluation.
        metrics, best: metrics of the latest and of the best evaluation.
        worse: number of evaluations since the best one.
        image_seconds, evaluation_seconds, save_seconds: the latest measured durations; see `Pace`.
        report_seconds: the duration of the longest report; None before the first one.
        overhead_seconds: the part of `evaluation_seconds` that every evaluation takes before its first image.
        scaler: state of the fp16 loss scale; empty without fp16.
    """

    step: int = 0
    seconds: float = 0.0
    plan: Plan | None = None
    evaluations: Evaluations | None = None
    evaluated: int = 0
    metrics: dict[str, Any] = field(default_factory=dict)
    best: dict[str, Any] = field(default_factory=dict)
    worse: int = 0
    image_seconds: float = 0.0
    evaluation_seconds: float = 0.0
    save_seconds: float = 0.0
    report_seconds: float | None = None
    overhead_seconds: float = 0.0
    scaler: dict[str, Any] = field(default_factory=dict)

    def is_finished(self, patience: int) -> bool:
        """Whether all steps are taken, or `patience` evaluations in a row gave no new best result; 0 for no limit."""
        return (self.plan is not None and self.step >= self.plan.total_steps) or 0 < patience <= self.worse

    @property
    def is_evaluation_due(self) -> bool:
        """Whether the plan has an evaluation after the latest step that has not been made yet."""
        return self.plan is not None and self.plan.evaluates_after(self.step) and self.evaluated != self.step

    @classmethod
    def from_facts(cls, facts: Mapping[str, Any]) -> RunState:
        """The inverse of `dataclasses.asdict`. Further keys of `facts` are ignored.

        Missing values, which an earlier version did not store, get their defaults.
        """
        values = {name: facts[name] for name in cls.__dataclass_fields__ if name in facts}
        plan, evaluations = values.pop("plan"), values.pop("evaluations")
        return cls(
            plan=None if plan is None else Plan(**plan),
            evaluations=None if evaluations is None else Evaluations(**evaluations),
            **values,
        )


class TrainedTensors:
    """All tensors that training changes, by their names in a checkpoint: weights, their EMA, and optimizer moments.

    Args:
        task: the trained task.
        average: the task with the EMA weights, if there is one.
        optimizer: the optimizer. Its groups contain the "names" of their parameters.
    """

    def __init__(self, task: nn.Module, average: nn.Module | None, optimizer: torch.optim.Optimizer) -> None:
        self._task = task
        self._average = average
        self._optimizer = optimizer

    def values(self) -> dict[str, Tensor]:
        """The current tensors, detached and contiguous, to be saved."""
        return {name: tensor.detach().contiguous() for name, tensor in self._tensors().items()}

    @torch.no_grad()
    def restore(self, saved: Mapping[str, Tensor], folder: Path) -> None:
        """Copy saved values into the tensors.

        Raises:
            CheckpointError: names or shapes differ. The message names `folder`.
        """
        self._create_moments(saved)
        tensors = self._tensors()
        differing = sorted(
            name for name in saved.keys() | tensors.keys() if _shape(saved.get(name)) != _shape(tensors.get(name))
        )
        if differing:
            raise CheckpointError(
                f"{folder}: was made by another model, {len(differing)} tensors do not fit, {differing[0]} the first; "
                "resume with the model that the run was started with"
            )
        for name, tensor in tensors.items():
            tensor.copy_(saved[name])

    def _tensors(self) -> dict[str, Tensor]:
        tensors = {f"task/{name}": tensor for name, tensor in own_tensors(self._task).items()}
        if self._average is not None:
            tensors |= {f"average/{name}": tensor for name, tensor in own_tensors(self._average).items()}
        for group in self._optimizer.param_groups:
            for name, parameter in zip(group["names"], group["params"], strict=True):
                moments = self._optimizer.state.get(parameter, {})
                tensors |= {f"optimizer/{name}/{key}": value for key, value in moments.items()}
        return tensors

    def _create_moments(self, saved: Mapping[str, Tensor]) -> None:
        """Create zero moments in the optimizer for every saved moment, with the memory layout of the parameter."""
        for group in self._optimizer.param_groups:
            for name, parameter in zip(group["names"], group["params"], strict=True):
                prefix = f"optimizer/{name}/"
                for key, value in saved.items():
                    if key.startswith(prefix):
                        like = parameter.detach() if value.ndim else value.to(parameter.device)
                        self._optimizer.state[parameter][key.removeprefix(prefix)] = torch.zeros_like(like)


def own_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers by name. A shared tensor is returned once, under its first name."""
    seen: set[int] = set()
    own = {}
    for name, tensor in module.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            own[name] = tensor
    return own


def _shape(tensor: Tensor | None) -> tuple[int, ...] | None:
    return None if tensor is None else tuple(tensor.shape)
