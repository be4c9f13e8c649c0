"""Gradient checkpointing: less memory for more time (Chen et al., "Training Deep Nets with Sublinear Memory Cost")."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


def recompute_blocks(module: nn.Module) -> int:
    """Keep only the inputs of each repeated block for the backward pass, which computes the rest of it again.

    A block is one of several modules of a kind in a row, such as the layers of an encoder or the blocks of a stage of
    a ResNet. Those with a batch norm that learns are left out: it would see every batch twice. Names and weights stay.

    Returns:
        How many blocks there are.
    """
    blocks = [block for part in module.modules() for block in _repeated(part) if not _counts_batches(block)]
    for block in blocks:
        block.__dict__["forward"] = functools.partial(_recomputed, block)
    return len(blocks)


def _repeated(part: nn.Module) -> list[nn.Module]:
    if not isinstance(part, nn.ModuleList | nn.Sequential):
        return []
    members = list(part)
    alike = len(members) > 1 and len({type(member) for member in members}) == 1
    return members if alike and any(True for _ in members[0].children()) else []


def _counts_batches(block: nn.Module) -> bool:
    norms = [part for part in block.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
    return any(parameter.requires_grad for norm in norms for parameter in norm.parameters())


def _recomputed(block: nn.Module, *inputs: Any, **named: Any) -> Any:
    forward = functools.partial(type(block).forward, block)
    if block.training and torch.is_grad_enabled():
        return checkpoint(forward, *inputs, use_reentrant=False, **named)
    return forward(*inputs, **named)
