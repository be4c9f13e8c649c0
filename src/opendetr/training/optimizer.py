"""The optimizer and its parameter groups, each with its learning rate, schedule and weight decay."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from opendetr.recipe import ParameterRate, Recipe

Schedule = Callable[[int, int | None], float]


def new_optimizer(groups: list[dict[str, Any]], recipe: Recipe) -> torch.optim.Optimizer:
    """The optimizer of a recipe for parameter groups."""
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(groups, momentum=recipe.momentum)
    return torch.optim.AdamW(groups, fused=True)


def parameter_groups(task: nn.Module, recipe: Recipe) -> list[dict[str, Any]]:
    """The parameter groups of all trained parameters of a task.

    The learning rates are those that the task and its submodules declare; see `ParameterRate`.

    Returns:
        Groups {"params", "names", "lr", "weight_decay", "schedule"}. "schedule" is None for the schedule of the recipe.
        No group is empty.
    """
    rates = [
        (f"{path}." if path else "", rate)
        for path, module in task.named_modules()
        for rate in getattr(module, "parameter_rates", ())
    ]
    groups: dict[tuple[float, float, Schedule | None], dict[str, Any]] = {}
    for name, parameter in task.named_parameters():
        if not parameter.requires_grad:
            continue
        own = next((rate for prefix, rate in rates if _applies(rate, prefix, name)), None)
        rate, schedule = (own.rate(recipe), own.schedule) if own else (recipe.learning_rate, None)
        decayed = recipe.decay_norms_and_biases or parameter.ndim > 1
        decay = recipe.weight_decay if decayed else 0.0
        new: dict[str, Any] = {"params": [], "names": [], "lr": rate, "weight_decay": decay, "schedule": schedule}
        group = groups.setdefault((rate, decay, schedule), new)
        group["params"].append(parameter)
        group["names"].append(name)
    return list(groups.values())


def _applies(rate: ParameterRate, prefix: str, name: str) -> bool:
    """Whether a rate, declared by the module with a prefix, is that of a parameter of the task."""
    return name.startswith(prefix) and not rate.names.isdisjoint(name.removeprefix(prefix).split("."))


def rate_factor(group: Mapping[str, Any], factor: float, step: int, total_steps: int | None) -> float:
    """The factor of a group's learning rate in a step: that of its own schedule, or else `factor`, the recipe's."""
    return factor if group["schedule"] is None else group["schedule"](step, total_steps)
