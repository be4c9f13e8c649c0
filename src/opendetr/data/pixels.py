"""Convert images in memory (PIL images, arrays, tensors) to (H, W, 3) uint8 RGB.

An ambiguous input is an error. The message says what to give instead.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from opendetr.data.images import DAMAGED, ImageError, ImageFileError, read_image, to_rgb

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_NDIM = 3  # number of dimensions of an image with channels


def to_pixels(image: Any) -> np.ndarray:
    """Convert an image in memory to (H, W, 3) uint8 RGB.

    Args:
        image: one of these:
            a PIL image of any mode; its EXIF orientation is applied;
            a uint8 array, (H, W, 3) RGB, (H, W, 4) RGB with transparency, or (H, W) or (H, W, 1) grey. OpenCV's arrays
            are BGR: use `bgr`;
            a tensor, uint8 or float in 0..1, (3, H, W) RGB or (1, H, W) grey.

    Raises:
        ImageError: `image` is none of these, or is damaged.
    """
    if isinstance(image, Image.Image):
        return _from_pil(image)
    if isinstance(image, Tensor):
        return _from_tensor(image)
    if isinstance(image, np.ndarray):
        return _from_array(image)
    raise ImageError(f"{type(image).__name__} is not an image; give a path, URL, PIL image, array or tensor")


def image_in(content: bytes, name: str) -> Image.Image:
    """The image whose file has this content. Raises ImageError, whose message begins with `name`."""
    with tempfile.TemporaryDirectory(prefix="opendetr-") as folder:
        path = Path(folder) / "image"
        path.write_bytes(content)
        try:
            return Image.fromarray(read_image(path))
        except ImageFileError as error:
            raise ImageError(f"{name}, {len(content):,} bytes: {error.fault.detail}") from None


def _from_pil(image: Image.Image) -> np.ndarray:
    try:
        return np.asarray(to_rgb(ImageOps.exif_transpose(image)))
    except DAMAGED as error:
        name = getattr(image, "filename", "") or "the PIL image"
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ImageError(f"{name}: the image cannot be read ({reason}); replace it") from None


def _from_tensor(tensor: Tensor) -> np.ndarray:
    shape = tuple(tensor.shape)
    if len(shape) != _NDIM or shape[0] not in (1, 3) or not tensor.numel():
        raise ImageError(f"a tensor of {shape} is not an image; give (3, H, W){_tensor_advice(shape)}")
    if tensor.dtype not in (torch.uint8, *_FLOATS):
        name = str(tensor.dtype).removeprefix("torch.")
        raise ImageError(f"a tensor of {name} is not an image; give uint8, or float in 0..1")
    if tensor.is_meta or tensor.layout != torch.strided:
        raise ImageError("a tensor that is sparse or on the device 'meta' holds no pixels; give a dense one")
    pixels = tensor.detach().permute(1, 2, 0).cpu()
    return _with_channels(pixels.numpy() if pixels.dtype == torch.uint8 else _to_uint8(pixels))


def _tensor_advice(shape: tuple[int, ...]) -> str:
    if len(shape) == _NDIM + 1:
        return ": predict a batch as list(tensor)"
    if len(shape) == _NDIM and shape[2] in (1, 3):
        return ": with the channels first it is tensor.permute(2, 0, 1)"
    if len(shape) == _NDIM and shape[0] == 4:
        return ": without the alpha channel it is tensor[:3]"
    return ""


def _to_uint8(pixels: Tensor) -> np.ndarray:
    """Convert float pixels in 0..1 to uint8."""
    if pixels.dtype != torch.float64:
        pixels = pixels.float()
    low, high = pixels.min(), pixels.max()  # both are NaN if a pixel is NaN
    if not torch.isfinite(torch.stack((low, high))).all():
        raise ImageError("a tensor with values that are not finite is not an image; give 0..1, or uint8")
    if low < 0 or high > 1:
        advice = "without normalisation" if low < 0 else "divided by 255"
        raise ImageError(
            f"a tensor with values from {float(low):g} to {float(high):g} is not an image; give 0..1 ({advice}), "
            "or uint8"
        )
    return (pixels * 255).round().numpy().astype(np.uint8)


def _from_array(array: np.ndarray) -> np.ndarray:
    is_grey = array.ndim == _NDIM - 1 or (array.ndim == _NDIM and array.shape[2] == 1)
    is_rgb = array.ndim == _NDIM and array.shape[2] in (3, 4)
    if array.dtype != np.uint8 or not (is_rgb or is_grey) or not array.size:
        raise ImageError(
            f"an array of {array.shape} {array.dtype} is not an image; give (H, W, 3) or (H, W) uint8"
            f"{_array_advice(array)}"
        )
    if is_rgb and array.shape[2] == 4:
        return np.asarray(to_rgb(Image.fromarray(np.ascontiguousarray(array))))
    return _with_channels(array)


def _array_advice(array: np.ndarray) -> str:
    if array.ndim == _NDIM + 1:
        return ": predict a batch as list(array)"
    if array.ndim == _NDIM and array.shape[0] in (1, 3) and array.shape[2] not in (1, 3):
        return ": with the channels last it is array.transpose(1, 2, 0)"
    if array.dtype.kind == "f":
        return ": values in 0..1 become (array * 255).round().astype('uint8')"
    if array.dtype == np.uint16:
        return ": values in 0..65535 become (array >> 8).astype('uint8')"
    return ""


def _with_channels(pixels: np.ndarray) -> np.ndarray:
    """Convert (H, W, 3), (H, W, 1) or (H, W) to (H, W, 3)."""
    if pixels.ndim == _NDIM and pixels.shape[2] == 3:
        return np.ascontiguousarray(pixels)
    return np.repeat(pixels.reshape(*pixels.shape[:2], 1), 3, axis=2)
