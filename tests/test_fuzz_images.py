"""Image files with random faults: an image, or one line with the file's name; little memory, little time.

See `fuzzing` for the number of cases.
"""

from __future__ import annotations

import io
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from folders import make_image, one_line
from fuzzing import edited, edits, fuzzed, no_hang
from opendetr.data.images import ImageError, image_size, is_animated, read_image


def encoded(suffix: str, mode: str, **options: object) -> bytes:
    content = io.BytesIO()
    exif = Image.Exif()
    exif[274] = 6
    kept = {"exif": exif} if suffix in ("JPEG", "PNG", "WEBP", "TIFF") else {}
    Image.fromarray(make_image(24, 32)).convert(mode).save(content, suffix, **kept, **options)
    return content.getvalue()


def animated(suffix: str) -> bytes:
    content = io.BytesIO()
    frames = [Image.fromarray(make_image(24, 32, seed)) for seed in range(3)]
    frames[0].save(content, suffix, save_all=True, append_images=frames[1:])
    return content.getvalue()


FILES = {
    "jpeg": encoded("JPEG", "RGB"),
    "progressive jpeg": encoded("JPEG", "CMYK", progressive=True),
    "png": encoded("PNG", "RGBA"),
    "palette png": encoded("PNG", "P"),
    "16 bit png": encoded("PNG", "I;16"),
    "gif": encoded("GIF", "P"),
    "bmp": encoded("BMP", "RGB"),
    "tiff": encoded("TIFF", "RGB"),
    "lzw tiff": encoded("TIFF", "RGB", compression="tiff_lzw"),
    "webp": encoded("WEBP", "RGB"),
    "lossless webp": encoded("WEBP", "RGBA", lossless=True),
    "ppm": encoded("PPM", "RGB"),
    "jpeg 2000": encoded("JPEG2000", "RGB"),
    "animated gif": animated("GIF"),
    "animated png": animated("PNG"),
    "animated webp": animated("WEBP"),
    "many pages": animated("TIFF"),
}


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz") / "image"


def require_order(path, content: bytes) -> None:
    path.write_bytes(content)
    with no_hang(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        answers = [answer(read, path) for read in (read_image, image_size, is_animated)]
    image = answers[0]
    if isinstance(image, np.ndarray):
        assert (image.dtype, image.ndim, image.shape[2]) == (np.uint8, 3, 3)
        assert min(image.shape) > 0
        assert answers[1] == image.shape[:2]


def answer(read, path):
    try:
        return read(path)
    except ImageError as error:
        assert one_line(error).startswith(f"{path}: ")
        return None


@fuzzed
@given(st.sampled_from(sorted(FILES)), edits())
def test_images_with_random_edits(path, name, changes):
    require_order(path, edited(FILES[name], changes))


@fuzzed
@given(st.sampled_from([content[:32] for content in FILES.values()]), st.binary(max_size=500))
def test_bytes_behind_the_head_of_an_image(path, head, rest):
    require_order(path, head + rest)


@fuzzed
@given(st.sampled_from(sorted(FILES)), st.floats(0, 1))
def test_images_that_are_cut_off(path, name, part):
    content = FILES[name]
    require_order(path, content[: round(part * len(content))])
