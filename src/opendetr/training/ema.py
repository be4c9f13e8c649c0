"""The exponential moving average (EMA) of the weights, which is evaluated and deployed instead of the trained ones."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class WeightAverage:
    """The EMA of the weights of a task: average = d * average + (1 - d) * weights.

    The decay d starts at 0.1 and rises as (1 + step) / (10 + step) to its final value, so the initial weights are soon
    forgotten. The running statistics of batch norms are averaged like the weights, because the current statistics do
    not fit averaged weights.

    Args:
        task: the task to average. Its buffers of integers are copied.
    """

    def __init__(self, task: nn.Module) -> None:
        self.task = copy.deepcopy(task).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, task: nn.Module, step: int, decay: float) -> None:
        """Update the average with the weights of `task`.

        Args:
            task: the trained task.
            step: number of the step that it has just taken, counted from 0.
            decay: the final d, below 1.
        """
        decay = min(decay, (1 + step) / (10 + step))
        ours: list[Tensor] = list(self.task.parameters())
        theirs = [parameter.detach() for parameter in task.parameters()]
        for averaged, current in zip(self.task.buffers(), task.buffers(), strict=True):
            if current.is_floating_point():
                ours.append(averaged)
                theirs.append(current)
            else:
                averaged.copy_(current)
        get_ema_multi_avg_fn(decay)(ours, theirs, None)
