"""Parts of a task that training leaves as they are."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from opendetr.config import ConfigError


def freeze(task: nn.Module, parts: Iterable[str]) -> None:
    """Take the parameters of the named parts out of training.

    Args:
        task: the module.
        parts: names of modules or parameters in it, such as "backbone", "encoder" or "backbone.body.layer1".

    Raises:
        ConfigError: nothing of that name is in the task, or nothing is left to train.
    """
    for part in parts:
        inside = [parameter for name, parameter in task.named_parameters() if f".{part}." in f".{name}."]
        if not inside:
            known = dict.fromkeys(name for name in _upper_names(task) if name)
            raise ConfigError(f"freeze: no part is called {part!r}; there are {', '.join(known)}, and what is in them")
        for parameter in inside:
            parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in task.parameters()):
        raise ConfigError("freeze: nothing is left to train; freeze fewer parts")


def _upper_names(module: nn.Module) -> Iterable[str]:
    """The parts of the task, of the model in it, and of a detector in that."""
    for name, child in module.named_children():
        if name != "model":
            yield name
        if name in ("model", "detector"):
            yield from _upper_names(child)


def train_mode(task: nn.Module) -> None:
    """Put the task into training mode; a batch norm that learns nothing keeps its statistics, too."""
    task.train()
    for module in task.modules():
        own = list(module.parameters(recurse=False))
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and own and not any(each.requires_grad for each in own):
            module.eval()
