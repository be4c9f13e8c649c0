"""Reads image files as (H, W, 3) uint8 RGB arrays; H and W after the EXIF orientation is applied."""

from __future__ import annotations

import functools
import importlib
import logging
import math
import mmap
import struct
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageFile, ImageOps
from PIL.TiffImagePlugin import TiffImageFile

from opendetr.config import needs_package
from opendetr.data.deep_images import deep_pixels, describe_range, scaled, uses_few_values
from opendetr.data.faults import FaultKind
from opendetr.data.paths import is_file
from opendetr.data.records import DataError, DataFault, FaultError, ImageRecord
from opendetr.data.signatures import is_avif, is_heif
from opendetr.data.truncated_jpeg import restored
from opendetr.files import UNSUPPORTED_SUFFIXES

# What Pillow's decoders raise for files that are damaged or not images.
DAMAGED = (OSError, SyntaxError, ValueError, EOFError, struct.error, KeyError, IndexError, TypeError, OverflowError,
           Image.DecompressionBombError)  # fmt: skip
# EXIF orientations that swap height and width.
_SIDEWAYS = frozenset({5, 6, 7, 8})
_MAX_LOGGED = 5  # images of a kind of warning
_WARNINGS = {
    FaultKind.LOW_CONTRAST: "a 16-bit image of low contrast, scaled from its darkest to its brightest value",
    FaultKind.TRUNCATED_IMAGE: "the file breaks off near its end, and is used as it is",
}
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


Report = Callable[[DataFault], None]
_logged: dict[FaultKind, set[str]] = {}
_log = logging.getLogger(__name__)


class ImageError(DataError):
    """An image cannot be read. The message is one line with the name of the image."""


class ImageFileError(ImageError, FaultError):
    """An image file cannot be read."""


def read_image(path: str | Path, report: Report | None = None) -> np.ndarray:
    """Read an image file as (H, W, 3) uint8 RGB, with its EXIF orientation applied.

    Grey, palette and CMYK images are converted. Transparent images get a white background. The values of 16-bit images
    are scaled from their darkest and brightest one to 0..255. The pixels that a JPEG lacks because a few bytes are
    missing at its end get a plain colour.

    Args:
        path: the file.
        report: called with each warning about the image. By default the first images with a warning are logged.

    Raises:
        ImageError: the file is missing, empty, broken off or not an image.
    """
    return _read(Path(path), oriented=True, report=report)


def read_record(record: ImageRecord, report: Report | None = None) -> np.ndarray:
    """Read the image of a record as (height, width, 3) uint8 RGB, in the frame of the record's boxes.

    That frame is the image with its EXIF orientation applied. The exception is a record whose size is that of the
    stored image, before EXIF swaps height and width: its boxes were drawn on the stored image, so that one is returned.

    Args:
        record: the image.
        report: as in `read_image`.

    Raises:
        ImageError: the file cannot be read.
        DataError: the recorded size matches neither image.
    """
    image = read_image(record.path, report)
    if image.shape[:2] == (record.height, record.width):
        return image
    stored = _read(record.path, oriented=False, report=_ignore)
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
    deep = deep_pixels(image)
    if deep is not None:
        return to_rgb(scaled(deep))
    if image.mode == "F":
        raise ValueError("32-bit values; save the image with 8 or 16 bits")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def _read(path: Path, *, oriented: bool, report: Report | None) -> np.ndarray:
    report = report or log_image_warning
    try:
        with _opened(path) as file:
            image = _decoded(file, path, report)
            if oriented:
                ImageOps.exif_transpose(image, in_place=True)
            return np.array(to_rgb(image))
    except DAMAGED as error:
        raise _file_error(path, error) from None


def _decoded(image: Image.Image, path: Path, report: Report) -> Image.Image:
    """The decoded image, of at most 8 bits per channel, with its EXIF orientation."""
    try:
        image.load()
    except OSError:
        whole = restored(path) if image.format in ("JPEG", "MPO") else None
        if whole is None:
            raise
        image, missing = whole
        what = f"the last {math.ceil(100 * missing)}% of its pixels" if missing else "some bytes"
        report(DataFault(FaultKind.TRUNCATED_IMAGE, str(path), detail=f"{what} are missing; copy it again"))
    deep = deep_pixels(image, lambda: _opened(path))
    if deep is None:
        return image
    if uses_few_values(deep):
        report(DataFault(FaultKind.LOW_CONTRAST, str(path), detail=describe_range(deep)))
    result = scaled(deep)
    orientation = image.getexif().get(ExifTags.Base.Orientation)
    if orientation is not None:
        result.getexif()[ExifTags.Base.Orientation] = orientation
    return result


def _ignore(_fault: DataFault) -> None:
    """Discard the warning."""


def log_image_warning(fault: DataFault) -> None:
    """Log a warning about an image, each image once, and only the first images of each kind."""
    known = _logged.setdefault(fault.kind, set())
    if fault.file in known or len(known) >= _MAX_LOGGED:
        return
    known.add(fault.file)
    _log.warning("%s: %s", fault.file, f"{_WARNINGS[fault.kind]} ({fault.detail})")
    if len(known) == _MAX_LOGGED:
        _log.warning("further images with this warning are not named; `opendetr data check` lists those of a dataset")


@contextmanager
def _opened(path: Path) -> Iterator[ImageFile.ImageFile]:
    """The image in a file, not decoded yet.

    Raises Pillow's errors, and ImageError for a missing file or too many pixels for the size of the file.
    """
    if not is_file(path):  # opening a pipe would block
        raise ImageFileError(FaultKind.UNREADABLE_IMAGE, path, "", "no such file")
    with _open(path) as image:
        width, height = image.size
        if not is_plausible_size(height, width, path.stat().st_size):
            detail = (
                f"{width}x{height} pixels are too many for a file of {path.stat().st_size:,} bytes; replace the image"
            )
            raise ImageFileError(FaultKind.OVERSIZED_IMAGE, path, "", detail)
        yield image


def _open(path: Path) -> ImageFile.ImageFile:
    """Open an image file with Pillow, or with pillow-heif if it is installed."""
    Image.init()
    try:
        return Image.open(path, formats=[name for name in _FORMATS if name in Image.OPEN])
    except Image.UnidentifiedImageError:
        if not (is_heif(path) and _registers_heif()):
            raise
        return Image.open(path, formats=["HEIF"])


@functools.lru_cache
def _registers_heif() -> bool:
    """Let Pillow read HEIF with an optional package. Returns whether it is installed."""
    try:
        pillow_heif = importlib.import_module("pillow_heif")
    except ImportError:
        return False
    pillow_heif.register_heif_opener()
    return True


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
        detail = _advice(path)
    else:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        detail = f"the image cannot be read ({reason}); replace it"
        if isinstance(error, Image.DecompressionBombError):
            kind = FaultKind.OVERSIZED_IMAGE
    return ImageFileError(kind, path, "", detail)


def _advice(path: Path) -> str:
    """What a file is that Pillow does not recognise, and what to do."""
    if is_heif(path) and not _registers_heif():
        return f"a HEIC image: {needs_package('pillow-heif')}, or convert it to JPEG"
    if is_avif(path) and "AVIF" not in Image.OPEN:
        return "an AVIF image, which needs Pillow 11.3: `python -m pip install -U pillow`, or convert it to JPEG"
    suffix = path.suffix.lower()
    what = (
        f"{suffix} is not a supported format"
        if suffix in UNSUPPORTED_SUFFIXES
        else "not an image in a supported format"
    )
    return f"{what}; convert it to JPEG or PNG, or leave it out"
