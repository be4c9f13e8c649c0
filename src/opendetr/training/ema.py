"""The exponential moving average (EMA) of the weights, which is evaluated and deployed instead of the trained ones."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class WeightAverage:
    """The EMA of the weights of a task: average = d * average + (1 - d) * weights.

    The decay d is min(`decay`, (1 + step) / (10 + step)). It starts at 0.1, so the initial weights are soon forgotten.

    Args:
        task: the task to average. Its buffers are copied without averaging.
        decay: the final d, below 1.
    """

    def __init__(self, task: nn.Module, decay: float) -> None:
        self.decay = decay
        self.task = copy.deepcopy(task).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, task: nn.Module, step: int) -> None:
        """Update the average with the weights of `task` after step number `step`, counted from 0."""
        decay = min(self.decay, (1 + step) / (10 + step))
        average = get_ema_multi_avg_fn(decay)
        average(list(self.task.parameters()), [parameter.detach() for parameter in task.parameters()], None)
        for averaged, current in zip(self.task.buffers(), task.buffers(), strict=True):
            averaged.copy_(current)
