"""Packs the samples of a batch into one tensor, to send it from a loader process.

Every tensor that is sent by itself needs a shared memory file. Here, one tensor contains the large arrays of all
samples and the pickle that refers to them. So only a short message goes through the pipe. This also avoids a deadlock:
if a process is killed while it writes more than the pipe can buffer, the reader waits for the rest forever. Masks are
sent with eight pixels per byte.
"""

from __future__ import annotations

import io
import math
import pickle
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from opendetr.structures import Sample, Target

_SMALL = 4096  # arrays with fewer bytes stay in the pickle
_ALIGNMENT = 64  # of each array in the buffer, in bytes


class Packed(NamedTuple):
    """Samples in one buffer.

    Attributes:
        buffer: (bytes,) uint8: the large arrays one after another, then the pickle of the samples without them.
        lengths: length of each of these parts in bytes.
    """

    buffer: Tensor
    lengths: tuple[int, ...]


def pack(samples: Sequence[Sample]) -> Packed:
    """Pack samples into one buffer."""
    arrays: list[np.ndarray] = []

    def keep_in_pickle(buffer: pickle.PickleBuffer) -> bool:
        array = np.frombuffer(buffer.raw(), dtype=np.uint8)
        if len(array) < _SMALL:
            return True
        arrays.append(array)
        return False

    stream = io.BytesIO()
    _Pickler(stream, protocol=5, buffer_callback=keep_in_pickle).dump(list(samples))
    arrays.append(np.frombuffer(stream.getbuffer(), dtype=np.uint8))
    lengths = tuple(len(array) for array in arrays)
    buffer = np.empty(sum(map(_aligned, lengths)), dtype=np.uint8)
    for start, array in zip(_starts(lengths), arrays, strict=True):
        buffer[start : start + len(array)] = array
    return Packed(torch.from_numpy(buffer), lengths)


def unpack(packed: Packed) -> list[Sample]:
    """Unpack samples; their large tensors are views of the buffer."""
    buffer = packed.buffer.numpy()
    starts = _starts(packed.lengths)
    *buffers, content = [buffer[start:][:length] for start, length in zip(starts, packed.lengths, strict=True)]
    samples: list[Sample] = pickle.loads(content.data, buffers=buffers)
    return samples


class _Pickler(pickle.Pickler):
    """Pickles tensors as arrays, whose bytes can be stored outside the pickle, and masks as bits."""

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return torch.from_numpy, (value.contiguous().numpy(),)
        if isinstance(value, Target) and value.masks is not None:
            bits = np.packbits(value.masks.numpy(), axis=None)
            return _with_masks, (replace(value, masks=None), bits, tuple(value.masks.shape))
        return NotImplemented


def _with_masks(target: Target, bits: np.ndarray, shape: tuple[int, ...]) -> Target:
    masks = np.unpackbits(bits, count=math.prod(shape)).view(bool).reshape(shape)
    return replace(target, masks=torch.from_numpy(masks))


def _aligned(length: int) -> int:
    return -(-length // _ALIGNMENT) * _ALIGNMENT


def _starts(lengths: Sequence[int]) -> list[int]:
    """Offset of each array in the buffer, in bytes."""
    starts, start = [], 0
    for length in lengths:
        starts.append(start)
        start += _aligned(length)
    return starts
