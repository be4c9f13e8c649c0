"""All that a training run depends on from one step to the next, and how it goes into a checkpoint and comes back."""

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
    """What a checkpoint holds beside tensors and settings.

    Attributes:
        step: steps taken; epoch and position in it follow from it.
        seconds: of training, earlier sessions included.
        plan: the run's length, None while a timed run does not know it.
        evaluations: how often the run is evaluated; None while a timed run does not know it.
        evaluated: number of steps after which the latest evaluation was made.
        metrics, best: what the latest and the best evaluation returned.
        worse: evaluations since the best one.
        image_seconds, evaluation_seconds, save_seconds: what they took last; see `Pace`.
        scaler: the state of fp16's loss scale; empty without fp16.
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
    scaler: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_facts(cls, facts: Mapping[str, Any]) -> RunState:
        """The inverse of `dataclasses.asdict`; further keys are left alone."""
        values = {name: facts[name] for name in cls.__dataclass_fields__}
        plan, evaluations = values.pop("plan"), values.pop("evaluations")
        return cls(
            plan=None if plan is None else Plan(**plan),
            evaluations=None if evaluations is None else Evaluations(**evaluations),
            **values,
        )


class TrainedTensors:
    """Every tensor that training changes, by the name it has in a checkpoint: weights, their average, moments.

    Args:
        task: what is trained.
        average: its moving average, if there is one.
        optimizer: its groups have the "names" of their parameters.
    """

    def __init__(self, task: nn.Module, average: nn.Module | None, optimizer: torch.optim.Optimizer) -> None:
        self._task = task
        self._average = average
        self._optimizer = optimizer

    def values(self) -> dict[str, Tensor]:
        """The tensors as they are now, ready to be saved."""
        return {name: tensor.detach().contiguous() for name, tensor in self._slots().items()}

    @torch.no_grad()
    def restore(self, saved: Mapping[str, Tensor], folder: Path) -> None:
        """Take over saved values. Raises CheckpointError, which names `folder`, when they are another model's."""
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
        for name, tensor in slots.items():
            tensor.copy_(saved[name])

    def _slots(self) -> dict[str, Tensor]:
        slots = {f"task/{name}": tensor for name, tensor in own_tensors(self._task).items()}
        if self._average is not None:
            slots |= {f"average/{name}": tensor for name, tensor in own_tensors(self._average).items()}
        for group in self._optimizer.param_groups:
            for name, parameter in zip(group["names"], group["params"], strict=True):
                moments = self._optimizer.state.get(parameter, {})
                slots |= {f"optimizer/{name}/{key}": value for key, value in moments.items()}
        return slots

    def _open_moments(self, saved: Mapping[str, Tensor]) -> None:
        """Give the optimiser empty moments for every parameter that has saved ones, laid out as the parameter is."""
        for group in self._optimizer.param_groups:
            for name, parameter in zip(group["names"], group["params"], strict=True):
                prefix = f"optimizer/{name}/"
                for key, value in saved.items():
                    if key.startswith(prefix):
                        like = parameter.detach() if value.ndim else value.to(parameter.device)
                        self._optimizer.state[parameter][key.removeprefix(prefix)] = torch.zeros_like(like)


def own_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and saved buffers by name, each once, under its first name."""
    seen: set[int] = set()
    own = {}
    for name, tensor in module.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            own[name] = tensor
    return own


def _shape(tensor: Tensor | None) -> tuple[int, ...] | None:
    return None if tensor is None else tuple(tensor.shape)
