"""Small layers that all models use."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class MLP(nn.Module):
    """Linear layers with ReLU between them.

    Args:
        width: input features.
        hidden: features of the hidden layers.
        num_outputs: output features.
        num_layers: number of linear layers.
    """

    def __init__(self, width: int, hidden: int, num_outputs: int, num_layers: int) -> None:
        super().__init__()
        widths = [width, *[hidden] * (num_layers - 1), num_outputs]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) -> (..., num_outputs)."""
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        return self.layers[-1](x)


class FeedForward(nn.Module):
    """The two linear layers of a transformer block, with dropout after the activation. `Residual` drops the output."""

    def __init__(self, width: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.linear1 = nn.Linear(width, hidden)
        self.linear2 = nn.Linear(hidden, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        return self.linear2(self.dropout(F.relu(self.linear1(x))))


class Residual(nn.Module):
    """A residual connection around a sub-layer, with the norm before the sub-layer or after the sum.

    Args:
        width: D.
        dropout: probability of dropping an entry of the sub-layer's output.
        norm_first: True for pre-norm, False for post-norm (the original DETR).
    """

    def __init__(self, width: int, dropout: float, norm_first: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)
        self.norm_first = norm_first

    def forward(self, x: Tensor, sublayer: Callable[[Tensor], Tensor]) -> Tensor:
        """Input (..., D) and a function that keeps its shape -> (..., D)."""
        if self.norm_first:
            return x + self.dropout(sublayer(self.norm(x)))
        return self.norm(x + self.dropout(sublayer(x)))


class Skipped(nn.Module):
    """In place of a `Residual` whose sub-layer is left out."""

    def forward(self, x: Tensor, sublayer: Callable[[Tensor], Tensor]) -> Tensor:
        """Return x."""
        return x


def feed_forward_block(width: int, hidden: int, dropout: float, *, norm_first: bool) -> tuple[nn.Module, nn.Module]:
    """The feed-forward block of a layer and the residual connection around it.

    With `hidden` 0 there is no block: both have no parameters, and the connection returns its input.
    """
    if hidden == 0:
        return nn.Identity(), Skipped()
    return FeedForward(width, hidden, dropout), Residual(width, dropout, norm_first)


def full_precision(x: Tensor) -> Tensor:
    """The tensor in float32, or in float64 if that is its dtype: for what needs more digits than bfloat16 has."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def weights_dtype(module: nn.Module) -> torch.dtype:
    """The dtype of a module's weights: what its input has to be cast to outside autocast."""
    return next(module.parameters()).dtype


def convolve(convolution: nn.Conv2d, x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
    """Apply a strided convolution to x (B, C, h, w), on a CPU to maps of one or two columns in float32 at least.

    For those, oneDNN's AMX kernels of bfloat16 multiply what lies in memory beyond the map by zero (seen with torch
    2.14); where that is not a number, neither is the result.

    Args:
        convolution: what is applied.
        x: the input; under autocast and in bfloat16 models it may be bfloat16.
        weight, bias: used instead of the convolution's own.
    """
    is_low = x.dtype.itemsize < 4 or torch.is_autocast_enabled("cpu")
    if x.shape[-1] <= 2 and x.device.type == "cpu" and is_low:
        weight, bias = (convolution.weight, convolution.bias) if weight is None else (weight, bias)
        with torch.autocast("cpu", enabled=False):
            wide = full_precision(weight), None if bias is None else full_precision(bias)
            return _convolve(convolution, full_precision(x), *wide).to(weight.dtype)
    if weight is None:
        return convolution(x)
    return _convolve(convolution, x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))


def _convolve(convolution: nn.Conv2d, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return F.conv2d(x, weight, bias, convolution.stride, convolution.padding, convolution.dilation)


class GroupNorm(nn.GroupNorm):
    """Group norm that also takes groups of a single value, which `F.group_norm` refuses; the bias is what they become.

    An image of a few pixels has such groups, in evaluation as well as in training.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, ...) -> the same shape."""
        return torch.group_norm(x, self.num_groups, self.weight, self.bias, self.eps, torch.backends.cudnn.enabled)


def group_norm(num_channels: int) -> nn.GroupNorm:
    """Group norm with 32 groups, or fewer for narrow features, so that each group has at least two channels."""
    return nn.GroupNorm(min(32, num_channels // 2), num_channels)


def tokens_of(features: Tensor) -> Tensor:
    """Flatten (B, D, h, w) row by row -> (B, h w, D)."""
    return features.flatten(2).transpose(1, 2)


def xavier_initialise(module: nn.Module) -> None:
    """Initialise all matrices of `module` with Xavier uniform, as in DETR's transformer. Vectors are unchanged."""
    for parameter in module.parameters():
        if parameter.dim() > 1:
            nn.init.xavier_uniform_(parameter)
