"""A moving average of the weights (EMA): what is scored and deployed in place of the weights that are trained."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class WeightAverage:
    """A second set of weights that follows the trained ones slowly: average = d average + (1 - d) trained.

    The decay d rises from 0.1 to a final value, as (1 + step) / (10 + step): the random start is forgotten at once.

    Args:
        task: what is averaged; its buffers are copied.
    """

    def __init__(self, task: nn.Module) -> None:
        self.task = copy.deepcopy(task).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, task: nn.Module, step: int, decay: float) -> None:
        """Take in the weights that `task` has after its step number `step`, from 0; `decay` is the final d, below 1."""
        decay = min(decay, (1 + step) / (10 + step))
        average = get_ema_multi_avg_fn(decay)
        average(list(self.task.parameters()), [parameter.detach() for parameter in task.parameters()], None)
        for averaged, current in zip(self.task.buffers(), task.buffers(), strict=True):
            averaged.copy_(current)
