"""Collects the attention weights of a model during its forward passes. The outputs stay bit-identical."""

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
def collect_attention(
    model: nn.Module, names: str = "*", method: str = "weights"
) -> Iterator[dict[str, list[AttentionWeights]]]:
    """Collect the attention weights of every forward pass inside a `with` block.

    Outputs, gradients and torch's random state stay bit-identical, in evaluation and in training. The collected weights
    are those before dropout. They have no gradient and stay on the model's device.

    The weights of dense attention are large: B x heads x queries x keys numbers per module, which is gigabytes for an
    encoder with a fine level. `names` selects modules; nothing is computed for the others.

    Args:
        model: any model with attention modules.
        names: shell-style pattern for the names of the modules, such as `decoder.*.cross_attention`.
        method: name of the method that computes the weights. All chosen modules have it.

    Yields:
        A dictionary that the forward passes fill. It maps the name of a module, as in `model.named_modules()`, to the
        results of its `weights`, or of `method`, one entry per call. Most modules are called once per forward pass of
        the model. The mask attention is called once per image with requested masks. With activation checkpointing, a
        backward pass inside the block calls the modules again.

    Raises:
        ValueError: no attention module matches `names`.

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
            handle = modules[name].register_forward_hook(_into(collected, name, method), with_kwargs=True)
            hooks.callback(handle.remove)
        yield collected


def _into(collected: dict[str, list[AttentionWeights]], name: str, method: str) -> Callable[..., None]:
    """A forward hook that appends the weights of the call, computed by `method`, to the entry of `name`."""

    def hook(module: AttentionModule, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        with torch.no_grad():
            collected.setdefault(name, []).append(getattr(module, method)(*args, **kwargs))

    return hook
