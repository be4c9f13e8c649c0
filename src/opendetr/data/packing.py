"""How samples travel from a loader process: one shared buffer of bytes.

A tensor that is sent by itself costs a shared memory file. Here the large arrays of all samples of a batch lie in one
tensor, whatever the fields that they belong to, and so does the pickle that refers to them: what goes through the pipe
is short. If a process is killed while it writes more than a pipe holds, the reader waits for the rest for ever. Masks
are sent with eight pixels in a byte.
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

_SMALL = 4096  # arrays of fewer bytes stay in the pickle
_ALIGNMENT = 64  # of each array in the buffer, in bytes


class Packed(NamedTuple):
    """Samples ready to be sent.

    Attributes:
        buffer: (bytes,) uint8, the large arrays one after another, and last the pickle of the samples without them.
        lengths: bytes of each of these.
    """

    buffer: Tensor
    lengths: tuple[int, ...]


def pack(samples: Sequence[Sample]) -> Packed:
    """The samples as bytes."""
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
    """The samples; their large tensors are views of the buffer."""
    whole = packed.buffer.numpy()
    starts = _starts(packed.lengths)
    *buffers, content = [whole[start:][:length] for start, length in zip(starts, packed.lengths, strict=True)]
    samples: list[Sample] = pickle.loads(content.data, buffers=buffers)
    return samples


class _Pickler(pickle.Pickler):
    """Sends tensors as arrays, whose bytes can lie outside of the pickle, and masks as bits."""

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
    """Where each array begins in the buffer."""
    starts, start = [], 0
    for length in lengths:
        starts.append(start)
        start += _aligned(length)
    return starts
