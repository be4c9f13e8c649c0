"""The optimizer's parameter groups, each with its learning rate and weight decay."""

from __future__ import annotations

from typing import Any

from torch import nn

from opendetr.recipe import Recipe


def parameter_groups(model: nn.Module, recipe: Recipe) -> list[dict[str, Any]]:
    """The parameter groups of all trained parameters of `model`.

    Modules called "backbone" have the backbone's learning rate. So have learned position embeddings, in a module called
    "position", as in the published code. Modules called "sampling_offsets" or "reference_points" have the learning rate
    times `recipe.sampling_rate_factor`.

    Returns:
        At most six groups, each {"params", "names", "lr", "weight_decay"}. No group is empty.
    """
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        rate = _learning_rate(set(name.split(".")), recipe)
        decayed = recipe.decay_norms_and_biases or parameter.ndim > 1
        decay = recipe.weight_decay if decayed else 0.0
        group = groups.setdefault((rate, decay), {"params": [], "names": [], "lr": rate, "weight_decay": decay})
        group["params"].append(parameter)
        group["names"].append(name)
    return list(groups.values())


def _learning_rate(modules: set[str], recipe: Recipe) -> float:
    """The learning rate, before the schedule, of a parameter inside modules of these names."""
    if modules & {"backbone", "position"}:
        return recipe.backbone_learning_rate
    sampling = modules & {"sampling_offsets", "reference_points"}
    return recipe.learning_rate * (recipe.sampling_rate_factor if sampling else 1.0)
