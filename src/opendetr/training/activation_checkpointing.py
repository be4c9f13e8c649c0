"""Activation checkpointing: less memory for more time (Chen et al., Training Deep Nets with Sublinear Memory Cost)."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


def recompute_blocks(module: nn.Module) -> int:
    """Store only the inputs of each repeated block, and compute its activations again in the backward pass.

    A block is one of several consecutive modules of the same type, such as the layers of an encoder or the blocks of a
    ResNet stage, or a module whose `recomputes_whole` is True, such as a model that runs once per frame of a clip.
    Blocks with a trained batch norm stay as they are, because their running statistics would count every batch twice.
    Names and weights do not change.

    Returns:
        The number of blocks.
    """
    blocks = list(_blocks(module))
    for block in blocks:
        block.__dict__["forward"] = functools.partial(_checkpointed_forward, block)
    return len(blocks)


def _blocks(part: nn.Module) -> Iterator[nn.Module]:
    """The blocks of a module. A block that is recomputed as a whole has no blocks inside."""
    if getattr(part, "recomputes_whole", False) and not _trains_batch_norm(part):
        yield part
        return
    yield from (block for block in _repeated_blocks(part) if not _trains_batch_norm(block))
    for child in part.children():
        yield from _blocks(child)


def _repeated_blocks(part: nn.Module) -> list[nn.Module]:
    """The members of a list of modules of one type that have submodules; else none."""
    if not isinstance(part, nn.ModuleList | nn.Sequential):
        return []
    members = list(part)
    same_type = len(members) > 1 and len({type(member) for member in members}) == 1
    return members if same_type and any(True for _ in members[0].children()) else []


def _trains_batch_norm(block: nn.Module) -> bool:
    norms = [part for part in block.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
    return any(parameter.requires_grad for norm in norms for parameter in norm.parameters())


def _checkpointed_forward(block: nn.Module, *args: Any, **kwargs: Any) -> Any:
    forward = functools.partial(type(block).forward, block)
    if block.training and torch.is_grad_enabled():
        return checkpoint(forward, *args, use_reentrant=False, **kwargs)
    return forward(*args, **kwargs)
