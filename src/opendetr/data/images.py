"""Image files as (H, W, 3) uint8 RGB arrays, whatever they are stored as; H and W after the EXIF orientation."""

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

from opendetr.data.faults import Kind
from opendetr.data.paths import is_file
from opendetr.data.records import DataError, FaultError, ImageRecord

# What Pillow's decoders raise for files that are damaged or no images.
_DAMAGED = (OSError, SyntaxError, ValueError, EOFError, struct.error, KeyError, IndexError, TypeError, OverflowError,
            Image.DecompressionBombError)  # fmt: skip
# EXIF orientations that swap height and width.
_SIDEWAYS = frozenset({5, 6, 7, 8})
_WIDE_MODES = frozenset({"I", "I;16", "I;16L", "I;16B", "I;16N"})
_MAX_16_BIT = 65535
_GREY = 2  # dimensions of an image without channels
# What images come in. Pillow knows more, some of which start other programs (EPS) or have no mark of their own (TGA).
_FORMATS = ("AVIF", "BMP", "DIB", "GIF", "HEIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TIFF", "WEBP")
# A file of some bytes can ask for gigabytes of memory. Up to so many pixels any may have; larger images must have the
# bytes for them: photographs have 1 to 40 pixels a byte, drawings more.
_ALWAYS_SAFE_PIXELS = 2**25
_PIXELS_PER_BYTE = 100
# How a PNG begins what may hold an EXIF orientation; it may stand behind the pixels.
_PNG_ORIENTATION_MARKS = (b"eXIf", b"Raw profile type exif", b"XML:com.adobe.xmp")

# The limits above, and Pillow's own error for twice as many pixels, take the place of its warning.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


class ImageError(DataError):
    """An image that cannot be read: one line with its name."""


class ImageFileError(ImageError, FaultError):
    """An image file that cannot be read."""


def read_image(path: str | Path) -> np.ndarray:
    """The image in a file as (H, W, 3) uint8 RGB, its EXIF orientation applied.

    Grey, palette and CMYK images are converted; transparent ones lie on white, as viewers show them; of 16 bits the
    upper 8 are taken. Raises ImageError for a file that is missing, empty, cut off, or no image.
    """
    return _read(Path(path), oriented=True)


def read_record(record: ImageRecord) -> np.ndarray:
    """The image of a record, (height, width, 3) uint8 RGB, in the frame that the record's boxes are in.

    That frame is the oriented one, except where the recorded size is that of the image as stored, before a quarter
    turn that EXIF asks for: then the boxes were drawn on the stored image, and that one is given. Raises ImageError
    for a file that cannot be read, DataError when the recorded size is neither.
    """
    image = read_image(record.path)
    if image.shape[:2] == (record.height, record.width):
        return image
    stored = _read(record.path, oriented=False)
    if stored.shape[:2] == (record.height, record.width):
        return stored
    height, width = image.shape[:2]
    detail = (
        f"the image is {width}x{height}, its annotations say {record.width}x{record.height}; "
        "correct the annotated size, or annotate this image"
    )
    raise FaultError(Kind.SIZE_MISMATCH, record.path, "", detail)


def image_size(path: str | Path) -> tuple[int, int]:
    """Height and width of an image after its EXIF orientation, read from the file's head. Raises ImageError."""
    try:
        with _opened(Path(path)) as image:
            width, height = _stored_size(image)
            sideways = _orientation(image, Path(path)) in _SIDEWAYS
    except _DAMAGED as error:
        raise _file_error(Path(path), error) from None
    return (width, height) if sideways else (height, width)


def read_map(path: str | Path) -> np.ndarray:
    """A panoptic map as (H, W) int32 numbers of segments: red + 256 green + 65536 blue, or the values of a grey PNG.

    Raises ImageError for a file that is missing, damaged, or no such image.
    """
    path = Path(path)
    try:
        with _opened(path) as image:
            values = np.asarray(image)
    except _DAMAGED as error:
        fault = _file_error(path, error).fault
        raise ImageFileError(Kind.UNREADABLE_MAP, path, "", fault.detail) from None
    if values.ndim == _GREY and values.dtype.kind in "ui":
        return values.astype(np.int32)
    if values.ndim == _GREY or values.dtype != np.uint8 or values.shape[2] not in (3, 4):
        raise ImageFileError(Kind.UNREADABLE_MAP, path, "", "neither grey nor 8-bit RGB: save it as COCO's PNG")
    red, green, blue = (values[:, :, channel].astype(np.int32) for channel in range(3))
    return red | green << 8 | blue << 16


def write_map(path: str | Path, segments: np.ndarray) -> None:
    """Write numbers of segments (H, W), 0 to 2^24 - 1, as the PNG that `read_map` reads."""
    channels = [(segments >> shift & 255).astype(np.uint8) for shift in (0, 8, 16)]
    Image.fromarray(np.stack(channels, axis=-1)).save(path, "PNG", compress_level=1)


def is_animated(path: str | Path) -> bool:
    """Whether an image has more frames than the first, which is the one that is read. Raises ImageError."""
    try:
        with _opened(Path(path)) as image:
            # A second image in a JPEG is a preview or a depth map.
            return image.format != "MPO" and getattr(image, "is_animated", False)
    except _DAMAGED as error:
        raise _file_error(Path(path), error) from None


def to_rgb(image: Image.Image) -> Image.Image:
    """An image of any mode as 8-bit RGB. Raises ValueError for 32-bit numbers, whose range nobody knows."""
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
        with _opened(path) as image:
            if oriented:
                ImageOps.exif_transpose(image, in_place=True)
            return np.array(to_rgb(image))
    except _DAMAGED as error:
        raise _file_error(path, error) from None


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """The image in a file, not decoded yet. Raises whatever Pillow does, and ImageError when it is a trap."""
    if not is_file(path):  # opening a pipe would wait for ever
        raise ImageFileError(Kind.UNREADABLE_IMAGE, path, "", "no such file")
    Image.init()
    with Image.open(path, formats=[name for name in _FORMATS if name in Image.OPEN]) as image:
        width, height = image.size
        if width * height > max(_ALWAYS_SAFE_PIXELS, _PIXELS_PER_BYTE * path.stat().st_size):
            detail = f"{width}x{height} pixels in a file of {path.stat().st_size:,} bytes is a trap; replace it"
            raise ImageFileError(Kind.OVERSIZED_IMAGE, path, "", detail)
        yield image


def _stored_size(image: Image.Image) -> tuple[int, int]:
    """Width and height before the EXIF orientation. Newer Pillows give those of a TIFF after it."""
    if isinstance(image, TiffImageFile):
        return image.tag_v2[ExifTags.Base.ImageWidth], image.tag_v2[ExifTags.Base.ImageLength]
    return image.size


def _orientation(image: Image.Image, path: Path) -> int | None:
    """The EXIF orientation. Pillow decodes the whole of a PNG to find it, so that is done only where there is one."""
    if image.format == "PNG" and not _has_orientation_mark(path):
        return None
    return image.getexif().get(ExifTags.Base.Orientation)


def _has_orientation_mark(path: Path) -> bool:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return any(content.find(mark) >= 0 for mark in _PNG_ORIENTATION_MARKS)


def _file_error(path: Path, error: Exception) -> ImageFileError:
    if isinstance(error, ImageFileError):
        return error
    kind = Kind.UNREADABLE_IMAGE
    if path.stat().st_size == 0:
        kind, detail = Kind.EMPTY_FILE, "the file is empty; replace it"
    elif isinstance(error, Image.UnidentifiedImageError):
        detail = "not an image that can be read; replace it"
    else:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        detail = f"the image cannot be read ({reason}); replace it"
        if isinstance(error, Image.DecompressionBombError):
            kind = Kind.OVERSIZED_IMAGE
    return ImageFileError(kind, path, "", detail)
