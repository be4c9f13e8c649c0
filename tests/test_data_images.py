from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image

from folders import make_image, one_line
from opendetr.data.images import ImageError, image_size, read_image, read_record
from opendetr.data.records import DataError, ImageRecord
from opendetr.files import IMAGE_SUFFIXES


def save(path: Path, image: Image.Image, **options) -> Path:
    image.save(path, **options)
    return path


def with_orientation(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    return exif


def test_rgb_comes_out_as_stored(tmp_path):
    expected = make_image()
    image = read_image(save(tmp_path / "a.png", Image.fromarray(expected)))
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image, expected)


# How an image looks on a screen is what these undo: orientation -> from the upright image to the stored one.
STORED = {
    1: lambda image: image,
    2: lambda image: image[:, ::-1],
    3: lambda image: image[::-1, ::-1],
    4: lambda image: image[::-1],
    5: lambda image: image.transpose(1, 0, 2),
    6: np.rot90,
    7: lambda image: image[::-1, ::-1].transpose(1, 0, 2),
    8: lambda image: np.rot90(image, -1),
}


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("orientation", STORED)
def test_exif_orientation_is_applied(tmp_path, orientation, suffix):
    upright = make_image(48, 64)
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation](upright)))
    path = save(tmp_path / f"a{suffix}", stored, exif=with_orientation(orientation))
    np.testing.assert_array_equal(read_image(path), upright)
    assert image_size(path) == (48, 64)


def test_the_size_of_a_png_is_read_without_its_pixels(tmp_path):
    path = save(tmp_path / "a.png", Image.fromarray(make_image(48, 64)))
    path.write_bytes(path.read_bytes()[:200])
    assert image_size(path) == (48, 64)
    with pytest.raises(ImageError):
        read_image(path)


def test_an_orientation_may_stand_behind_the_pixels(tmp_path):
    path = save(tmp_path / "a.png", Image.fromarray(make_image(48, 64)), exif=with_orientation(6))
    content = path.read_bytes()
    start = content.index(b"eXIf") - 4
    length = int.from_bytes(content[start : start + 4], "big") + 12
    exif, end = content[start : start + length], len(content) - 12
    path.write_bytes(content[:start] + content[start + length : end] + exif + content[end:])
    assert image_size(path) == read_image(path).shape[:2] == (64, 48)


GREY = np.arange(256, dtype=np.uint8).reshape(16, 16)


WIDE = GREY.astype(np.uint16) * 257
GREYS = {
    "8 bits.png": (Image.fromarray(GREY), GREY),
    "palette.png": (Image.fromarray(GREY).convert("P"), GREY),
    "1 bit.png": (Image.fromarray(GREY > 99), (GREY > 99) * 255),
    "alpha.png": (Image.merge("LA", [Image.fromarray(GREY), Image.new("L", (16, 16), 255)]), GREY),
    "16 bits.png": (Image.fromarray(WIDE), GREY),
    "16 bits.tif": (Image.fromarray(WIDE), GREY),
    "16 bits, cut.png": (Image.fromarray(WIDE // 256 * 256 + 255), GREY),
    "16 bits.pgm": (Image.fromarray(WIDE), GREY),
    "16 bits in 32.tif": (Image.fromarray(WIDE.astype(np.int32)), GREY),
}


@pytest.mark.parametrize("name", GREYS)
def test_grey_of_all_kinds_becomes_rgb(tmp_path, name):
    image, expected = GREYS[name]
    result = read_image(save(tmp_path / name, image))
    for channel in range(3):
        np.testing.assert_array_equal(result[..., channel], expected)


def test_a_palette_gives_its_colours(tmp_path):
    image = Image.fromarray(make_image()).quantize(8)
    expected = np.array(image.convert("RGB"))
    np.testing.assert_array_equal(read_image(save(tmp_path / "a.png", image)), expected)


def test_what_is_transparent_lies_on_white(tmp_path):
    rgba = np.zeros((2, 3, 4), dtype=np.uint8)
    rgba[0, :] = [200, 100, 0, 255]
    rgba[1, 0] = [0, 0, 0, 128]
    expected = np.full((2, 3, 3), 255)
    expected[0] = [200, 100, 0]
    expected[1, 0] = 127
    np.testing.assert_array_equal(read_image(save(tmp_path / "a.png", Image.fromarray(rgba))), expected)
    palette = Image.fromarray(np.array([[0, 1]], dtype=np.uint8), "P")
    palette.putpalette([10, 20, 30, 40, 50, 60])
    path = save(tmp_path / "p.png", palette, transparency=1)
    np.testing.assert_array_equal(read_image(path), [[[10, 20, 30], [255, 255, 255]]])
    keyed = Image.fromarray(np.array([[[1, 2, 3], [4, 5, 6]]], dtype=np.uint8))
    path = save(tmp_path / "k.png", keyed, transparency=(1, 2, 3))
    np.testing.assert_array_equal(read_image(path), [[[255, 255, 255], [4, 5, 6]]])


def test_cmyk_is_not_inverted(tmp_path):
    colours = {(255, 255, 255): (0, 0, 0, 0), (255, 0, 0): (0, 255, 255, 0), (0, 0, 0): (0, 0, 0, 255)}
    for rgb, cmyk in colours.items():
        path = save(tmp_path / "a.jpg", Image.new("CMYK", (16, 16), cmyk), quality=100)
        assert np.abs(read_image(path).astype(int) - rgb).max() <= 3


def truncated(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


BROKEN = {
    "missing": (lambda path: path.unlink(), "no such file"),
    "empty": (lambda path: path.write_bytes(b""), "the file is empty"),
    "text": (lambda path: path.write_text("hello"), "not an image"),
    "cut off": (truncated, "cannot be read"),
    "cut off in its head": (lambda path: path.write_bytes(path.read_bytes()[:30]), "cannot be read|not an image"),
}


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize("suffix", IMAGE_SUFFIXES)
@pytest.mark.parametrize("fault", BROKEN)
def test_a_file_that_cannot_be_read_is_named(tmp_path, fault, suffix):
    change, message = BROKEN[fault]
    path = save(tmp_path / f"a{suffix}", Image.fromarray(make_image()))
    change(path)
    with pytest.raises(ImageError, match=message) as error:
        read_image(path)
    assert str(path) in one_line(error.value)


@pytest.mark.parametrize("mode", ["F", "I"])
def test_numbers_of_unknown_range_are_refused(tmp_path, mode):
    values = np.array([[0, 1_000_000]], dtype=np.float32 if mode == "F" else np.int32)
    path = save(tmp_path / "a.tif", Image.fromarray(values))
    with pytest.raises(ImageError, match="32-bit values; save the image with 8 or 16 bits"):
        read_image(path)


def test_a_folder_is_no_image(tmp_path):
    with pytest.raises(ImageError, match="no such file"):
        read_image(tmp_path)


def test_the_recorded_size_says_which_frame_the_boxes_are_in(tmp_path):
    stored = make_image(48, 64)
    path = save(tmp_path / "a.png", Image.fromarray(stored), exif=with_orientation(6))
    upright = ImageRecord(id=1, path=path, height=64, width=48)
    np.testing.assert_array_equal(read_record(upright), np.rot90(stored, -1))
    lying = ImageRecord(id=1, path=path, height=48, width=64)
    np.testing.assert_array_equal(read_record(lying), stored)
    with pytest.raises(DataError, match="the image is 48x64, its annotation says 10x20") as error:
        read_record(ImageRecord(id=1, path=path, height=20, width=10))
    assert not isinstance(error.value, ImageError)
    assert str(path) in one_line(error.value)
