"""Attention weights of a model, collected during its forward passes without changing a bit of the output."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from opendetr.nn.attention import AttentionModule
from opendetr.nn.deformable_attention import DeformableWeights

AttentionWeights = Tensor | DeformableWeights


@contextmanager
def collect_attention(model: nn.Module, names: str = "*") -> Iterator[dict[str, list[AttentionWeights]]]:
    """Collect the attention weights of every forward pass inside a `with` block.

    Outputs, gradients and torch's random state are those of a model that is not observed, to the bit, in evaluation
    and in training. The weights have no gradient, stay on the model's device and are those before dropout.

    Weights of dense attention are large: B x heads x queries x keys numbers per module, gigabytes for an encoder that
    reads a fine level. `names` keeps those of some modules only; nothing is computed for the others.

    Args:
        model: any model with attention modules in it.
        names: pattern of the names of the modules, as in a shell: `decoder.*.cross_attention`.

    Yields:
        A dictionary that the forward passes fill: the name of a module, as in `model.named_modules()`, to what its
        `weights` returns, one entry per call. Most modules are called once in a forward pass of the model; the mask
        attention is called once for every image that masks are asked for. With activation checkpointing a backward
        pass inside the block calls the modules again.

    Raises:
        ValueError: no attention module has such a name.

    Examples:
        >>> with collect_attention(model, "decoder.*.cross_attention") as attention:
        ...     output = model(images)
        >>> attention["decoder.layers.5.cross_attention"][0].shape  # (B, heads, queries, keys)
    """
    modules = {name: module for name, module in model.named_modules() if isinstance(module, AttentionModule)}
    chosen = [name for name in modules if fnmatchcase(name, names)]
    if not chosen:
        known = f"there are {', '.join(modules)}" if modules else "the model has no attention modules"
        raise ValueError(f"collect_attention: no attention module is named {names!r}; {known}")
    collected: dict[str, list[AttentionWeights]] = {}
    with ExitStack() as hooks:
        for name in chosen:
            handle = modules[name].register_forward_hook(_into(collected, name), with_kwargs=True)
            hooks.callback(handle.remove)
        yield collected


def _into(collected: dict[str, list[AttentionWeights]], name: str) -> Callable[..., None]:
    """A forward hook that appends the weights of the call to the entry of `name`."""

    def hook(module: AttentionModule, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        with torch.no_grad():
            collected.setdefault(name, []).append(module.weights(*args, **kwargs))

    return hook
