"""Parts of a task that are not trained."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from opendetr.config import SettingError


def freeze(task: nn.Module, parts: Iterable[str]) -> None:
    """Set `requires_grad` of the parameters of the named parts to False.

    Args:
        task: the module.
        parts: names of modules or parameters in it, such as "backbone", "encoder" or "backbone.body.layer1".

    Raises:
        SettingError: the task has no part of that name, or no parameter is left to train.
    """
    for part in parts:
        inside = [parameter for name, parameter in task.named_parameters() if f".{part}." in f".{name}."]
        if not inside:
            known = dict.fromkeys(name for name in _part_names(task) if name)
            raise SettingError(
                f"no part is called {part!r}; there are {', '.join(known)}, and the parts of them",
                setting="recipe.freeze",
            )
        for parameter in inside:
            parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in task.parameters()):
        raise SettingError("nothing is left to train; freeze fewer parts", setting="recipe.freeze")


def _part_names(module: nn.Module) -> Iterable[str]:
    """The names of the parts of the task, of its model, and of the detector in a model with a mask head."""
    for name, child in module.named_children():
        if name != "model":
            yield name
        if name in ("model", "detector"):
            yield from _part_names(child)


def train_mode(task: nn.Module) -> None:
    """Put the task into training mode, except batch norms that are frozen: their running statistics stay fixed too."""
    task.train()
    for module in task.modules():
        parameters = list(module.parameters(recurse=False))
        is_frozen = parameters and not any(parameter.requires_grad for parameter in parameters)
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and is_frozen:
            module.eval()
