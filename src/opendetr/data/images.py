"""Image files as (H, W, 3) uint8 RGB arrays, whatever they are stored as; H and W after the EXIF orientation."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps

from opendetr.data.records import DataError, ImageRecord

# What Pillow's decoders raise for files that are damaged or no images.
_DAMAGED = (OSError, SyntaxError, ValueError, EOFError, struct.error, KeyError, IndexError, TypeError, OverflowError,
            Image.DecompressionBombError)  # fmt: skip
# EXIF orientations that swap height and width.
_SIDEWAYS = frozenset({5, 6, 7, 8})
_WIDE_MODES = frozenset({"I", "I;16", "I;16L", "I;16B", "I;16N"})
_MAX_16_BIT = 65535


class ImageError(DataError):
    """An image file that cannot be read: one line with its name."""


def read_image(path: str | Path) -> np.ndarray:
    """The picture in a file as (H, W, 3) uint8 RGB, its EXIF orientation applied.

    Grey, palette and CMYK pictures are converted; transparent ones lie on white, as viewers show them; of 16 bits the
    upper 8 are taken. Raises ImageError for a file that is missing, empty, cut off, or no picture.
    """
    return _read(Path(path), oriented=True)


def read_record(record: ImageRecord) -> np.ndarray:
    """The picture of a record, (height, width, 3) uint8 RGB, in the frame that the record's boxes are in.

    That frame is the oriented one, except where the recorded size is that of the picture as stored, before a quarter
    turn that EXIF asks for: then the boxes were drawn on the stored picture, and that one is given. Raises ImageError
    for a file that cannot be read, DataError when the recorded size is neither.
    """
    image = read_image(record.path)
    if image.shape[:2] == (record.height, record.width):
        return image
    stored = _read(record.path, oriented=False)
    if stored.shape[:2] == (record.height, record.width):
        return stored
    height, width = image.shape[:2]
    raise DataError(
        f"{record.path}: the picture is {width}x{height}, its annotations say {record.width}x{record.height}; "
        "correct the annotated size, or annotate this picture"
    )


def image_size(path: str | Path) -> tuple[int, int]:
    """Height and width of a picture after its EXIF orientation, read from the file's head. Raises ImageError."""
    try:
        with Image.open(path) as image:
            width, height = image.size
            sideways = image.getexif().get(ExifTags.Base.Orientation) in _SIDEWAYS
    except _DAMAGED as error:
        raise _image_error(Path(path), error) from None
    return (width, height) if sideways else (height, width)


def to_rgb(image: Image.Image) -> Image.Image:
    """A picture of any mode as 8-bit RGB. Raises ValueError for 32-bit numbers, whose range nobody knows."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode in _WIDE_MODES:
        return _upper_byte(image)
    if image.mode == "F":
        raise ValueError("32-bit numbers; save it with 8 or 16 bits")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def _upper_byte(image: Image.Image) -> Image.Image:
    values = np.asarray(image)
    if values.size and (values.min() < 0 or values.max() > _MAX_16_BIT):
        raise ValueError("32-bit numbers; save it with 8 or 16 bits")
    return Image.fromarray((values.astype(np.uint32) >> 8).astype(np.uint8)).convert("RGB")


def _read(path: Path, *, oriented: bool) -> np.ndarray:
    try:
        with Image.open(path) as image:
            if oriented:
                ImageOps.exif_transpose(image, in_place=True)
            return np.array(to_rgb(image))
    except _DAMAGED as error:
        raise _image_error(path, error) from None


def _image_error(path: Path, error: Exception) -> ImageError:
    if not path.is_file():
        return ImageError(f"{path}: no such file")
    if path.stat().st_size == 0:
        return ImageError(f"{path}: the file is empty; replace it")
    if isinstance(error, Image.UnidentifiedImageError):
        return ImageError(f"{path}: not an image that can be read; replace it")
    reason = (str(error) or type(error).__name__).splitlines()[0]
    return ImageError(f"{path}: the image cannot be read ({reason}); replace it")
