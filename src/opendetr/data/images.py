"""Reads image files as (H, W, 3) uint8 RGB arrays; H and W after the EXIF orientation is applied."""

from __future__ import annotations

import mmap
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps
from PIL.TiffImagePlugin import TiffImageFile

from opendetr.data.faults import FaultKind
from opendetr.data.paths import is_file
from opendetr.data.records import DataError, FaultError, ImageRecord

# What Pillow's decoders raise for files that are damaged or not images.
DAMAGED = (OSError, SyntaxError, ValueError, EOFError, struct.error, KeyError, IndexError, TypeError, OverflowError,
           Image.DecompressionBombError)  # fmt: skip
# EXIF orientations that swap height and width.
_SIDEWAYS = frozenset({5, 6, 7, 8})
_WIDE_MODES = frozenset({"I", "I;16", "I;16L", "I;16B", "I;16N"})
_MAX_16_BIT = 65535
_GREY = 2  # dimensions of an image without channels
# The formats that are read. Pillow supports more, but some start other programs (EPS) or have no signature (TGA).
_FORMATS = ("AVIF", "BMP", "DIB", "GIF", "HEIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TIFF", "WEBP")
# A small file can demand gigabytes of memory. Every image may have the first number of pixels. Larger images may have
# the second number of pixels per byte of the file: photographs have 1 to 40, drawings more.
_ALWAYS_SAFE_PIXELS = 2**25
_PIXELS_PER_BYTE = 100
# Markers of the PNG chunks that may contain an EXIF orientation. The chunks may follow the pixels.
_PNG_ORIENTATION_MARKS = (b"eXIf", b"Raw profile type exif", b"XML:com.adobe.xmp")

# Pillow's warning is replaced by the limits above and by Pillow's own error for twice as many pixels.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


class ImageError(DataError):
    """An image cannot be read. The message is one line with the name of the image."""


class ImageFileError(ImageError, FaultError):
    """An image file cannot be read."""


def read_image(path: str | Path) -> np.ndarray:
    """Read an image file as (H, W, 3) uint8 RGB, with its EXIF orientation applied.

    Grey, palette and CMYK images are converted. Transparent images get a white background. Of 16-bit images, the upper
    8 bits are used.

    Raises:
        ImageError: the file is missing, empty, truncated or not an image.
    """
    return _read(Path(path), oriented=True)


def read_record(record: ImageRecord) -> np.ndarray:
    """Read the image of a record as (height, width, 3) uint8 RGB, in the frame of the record's boxes.

    That frame is the image with its EXIF orientation applied. The exception is a record whose size is that of the
    stored image, before EXIF swaps height and width: its boxes were drawn on the stored image, so that one is returned.

    Raises:
        ImageError: the file cannot be read.
        DataError: the recorded size matches neither image.
    """
    image = read_image(record.path)
    if image.shape[:2] == (record.height, record.width):
        return image
    stored = _read(record.path, oriented=False)
    if stored.shape[:2] == (record.height, record.width):
        return stored
    raise size_mismatch(record.path, (image.shape[0], image.shape[1]), (record.height, record.width))


def size_mismatch(path: Path, size: tuple[int, int], annotated: tuple[int, int]) -> FaultError:
    """The error for an image of this height and width whose annotation gives others."""
    (height, width), (annotated_height, annotated_width) = size, annotated
    detail = (
        f"the image is {width}x{height}, its annotation says {annotated_width}x{annotated_height}; "
        "correct the annotated size, or annotate this image again"
    )
    return FaultError(FaultKind.SIZE_MISMATCH, path, "", detail)


def image_size(path: str | Path) -> tuple[int, int]:
    """Height and width of an image after its EXIF orientation, read from the file's header. Raises ImageError."""
    try:
        with _opened(Path(path)) as image:
            width, height = _stored_size(image)
            sideways = _orientation(image, Path(path)) in _SIDEWAYS
    except DAMAGED as error:
        raise _file_error(Path(path), error) from None
    return (width, height) if sideways else (height, width)


def stored_size(path: str | Path) -> tuple[int, int]:
    """Height and width of an image before its EXIF orientation is applied. Raises ImageError."""
    try:
        with _opened(Path(path)) as image:
            width, height = _stored_size(image)
    except DAMAGED as error:
        raise _file_error(Path(path), error) from None
    return height, width


def read_map(path: str | Path) -> np.ndarray:
    """Read a panoptic map as (H, W) int32 segment numbers: red + 256 green + 65536 blue, or the values of a grey PNG.

    Raises ImageError if the file is missing, damaged or not such an image.
    """
    path = Path(path)
    try:
        with _opened(path) as image:
            values = np.asarray(image)
    except DAMAGED as error:
        fault = _file_error(path, error).fault
        raise ImageFileError(FaultKind.UNREADABLE_MAP, path, "", fault.detail) from None
    if values.ndim == _GREY and values.dtype.kind in "ui":
        return values.astype(np.int32)
    if values.ndim == _GREY or values.dtype != np.uint8 or values.shape[2] not in (3, 4):
        raise ImageFileError(
            FaultKind.UNREADABLE_MAP, path, "", "neither grey nor 8-bit RGB: save it as a PNG like COCO's"
        )
    red, green, blue = (values[:, :, channel].astype(np.int32) for channel in range(3))
    return red | green << 8 | blue << 16


def write_map(path: str | Path, segments: np.ndarray) -> None:
    """Write (H, W) segment numbers, 0 to 2^24 - 1, as a PNG that `read_map` reads."""
    channels = [(segments >> shift & 255).astype(np.uint8) for shift in (0, 8, 16)]
    Image.fromarray(np.stack(channels, axis=-1)).save(path, "PNG", compress_level=1)


def is_animated(path: str | Path) -> bool:
    """Whether an image has several frames, of which only the first is read. Raises ImageError."""
    try:
        with _opened(Path(path)) as image:
            # A second image in a JPEG is a preview or a depth map.
            return image.format != "MPO" and getattr(image, "is_animated", False)
    except DAMAGED as error:
        raise _file_error(Path(path), error) from None


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert an image of any mode to 8-bit RGB. Raises ValueError for 32-bit values, whose range is unknown."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode in _WIDE_MODES:
        return _upper_byte(image)
    if image.mode == "F":
        raise ValueError("32-bit values; save the image with 8 or 16 bits")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def _upper_byte(image: Image.Image) -> Image.Image:
    values = np.asarray(image)
    if values.size and (values.min() < 0 or values.max() > _MAX_16_BIT):
        raise ValueError("32-bit values; save the image with 8 or 16 bits")
    return Image.fromarray((values.astype(np.uint32) >> 8).astype(np.uint8)).convert("RGB")


def _read(path: Path, *, oriented: bool) -> np.ndarray:
    try:
        with _opened(path) as image:
            if oriented:
                ImageOps.exif_transpose(image, in_place=True)
            return np.array(to_rgb(image))
    except DAMAGED as error:
        raise _file_error(path, error) from None


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """The image in a file, not decoded yet.

    Raises Pillow's errors, and ImageError for a missing file or too many pixels for the size of the file.
    """
    if not is_file(path):  # opening a pipe would block
        raise ImageFileError(FaultKind.UNREADABLE_IMAGE, path, "", "no such file")
    Image.init()
    with Image.open(path, formats=[name for name in _FORMATS if name in Image.OPEN]) as image:
        width, height = image.size
        if not is_plausible_size(height, width, path.stat().st_size):
            detail = (
                f"{width}x{height} pixels are too many for a file of {path.stat().st_size:,} bytes; replace the image"
            )
            raise ImageFileError(FaultKind.OVERSIZED_IMAGE, path, "", detail)
        yield image


def is_plausible_size(height: int, width: int, length: int) -> bool:
    """Whether an image of this size may be decoded from a file of `length` bytes."""
    return width * height <= max(_ALWAYS_SAFE_PIXELS, _PIXELS_PER_BYTE * length)


def _stored_size(image: Image.Image) -> tuple[int, int]:
    """Width and height before the EXIF orientation. For a TIFF, newer versions of Pillow apply it to `image.size`."""
    if isinstance(image, TiffImageFile):
        return image.tag_v2[ExifTags.Base.ImageWidth], image.tag_v2[ExifTags.Base.ImageLength]
    return image.size


def _orientation(image: Image.Image, path: Path) -> int | None:
    """The EXIF orientation. Pillow decodes a whole PNG to read it, so a marker is searched for first."""
    if image.format == "PNG" and not _has_orientation_mark(path):
        return None
    return image.getexif().get(ExifTags.Base.Orientation)


def _has_orientation_mark(path: Path) -> bool:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return any(content.find(mark) >= 0 for mark in _PNG_ORIENTATION_MARKS)


def _file_error(path: Path, error: Exception) -> ImageFileError:
    if isinstance(error, ImageFileError):
        return error
    kind = FaultKind.UNREADABLE_IMAGE
    if path.stat().st_size == 0:
        kind, detail = FaultKind.EMPTY_FILE, "the file is empty; replace it"
    elif isinstance(error, Image.UnidentifiedImageError):
        detail = "not an image in a supported format; convert it to JPEG or PNG, or leave it out"
    else:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        detail = f"the image cannot be read ({reason}); replace it"
        if isinstance(error, Image.DecompressionBombError):
            kind = FaultKind.OVERSIZED_IMAGE
    return ImageFileError(kind, path, "", detail)
