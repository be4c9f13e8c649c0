import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image, features

from folders import make_image, one_line
from opendetr.data import images
from opendetr.data.faults import FaultKind
from opendetr.data.images import ImageError, image_size, read_image, read_record
from opendetr.data.records import DataError, DataFault, ImageRecord
from opendetr.files import READABLE_SUFFIXES


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
@pytest.mark.parametrize("suffix", READABLE_SUFFIXES)
@pytest.mark.parametrize("fault", BROKEN)
def test_a_file_that_cannot_be_read_is_named(tmp_path, fault, suffix):
    change, message = BROKEN[fault]
    path = save(tmp_path / f"a{suffix}", Image.fromarray(make_image()))
    change(path)
    with pytest.raises(ImageError, match=message) as error:
        read_image(path)
    assert str(path) in one_line(error.value)


# ----------------------------------------------------------------------------------------------- 16 bits, cut off, HEIC


@pytest.fixture(autouse=True)
def nothing_logged(monkeypatch):
    """Warnings are logged once in a process; here, once in a test."""
    monkeypatch.setattr(images, "_logged", {})


def ramp(low: int, high: int) -> np.ndarray:
    return np.linspace(low, high, 256).round().astype(np.uint16).reshape(16, 16)


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def write_deep_png(path: Path, values: np.ndarray) -> Path:
    """A PNG of 16 bits per channel, (H, W, 3 or 4); Pillow cannot write it."""
    height, width, channels = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    head = struct.pack(">IIBBBBB", width, height, 16, {3: 2, 4: 6}[channels], 0, 0, 0)
    chunks = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunks)
    return path


def write_deep_tiff(path: Path, values: np.ndarray, order: str) -> Path:
    """An uncompressed TIFF of 16 bits per channel, (H, W, 3)."""
    height, width, _ = values.shape
    pixels, bits = values.astype(f"{order}u2").tobytes(), struct.pack(f"{order}3H", 16, 16, 16)
    entries = [(256, 3, 1, width), (257, 3, 1, height), (258, 3, 3, 8), (259, 3, 1, 1), (262, 3, 1, 2),
               (273, 4, 1, 14), (277, 3, 1, 3), (278, 3, 1, height), (279, 4, 1, len(pixels))]  # fmt: skip
    content = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", 14 + len(pixels)) + bits + pixels
    content += struct.pack(f"{order}H", len(entries))
    for tag, kind, count, value in entries:
        is_short = kind == 3 and count == 1
        packed = struct.pack(f"{order}HH" if is_short else f"{order}I", *((value, 0) if is_short else (value,)))
        content += struct.pack(f"{order}HHI", tag, kind, count) + packed
    path.write_bytes(content + struct.pack(f"{order}I", 0))
    return path


RANGES = {"12 bits": (0, 4095), "14 bits": (0, 16382), "thermal": (29_000, 31_500), "8 bits": (0, 255)}


@pytest.mark.parametrize("suffix", [".png", ".tif", ".pgm"])
@pytest.mark.parametrize("name", RANGES)
def test_16_bits_are_scaled_by_their_real_range_with_a_warning(tmp_path, name, suffix, caplog):
    path = save(tmp_path / f"a{suffix}", Image.fromarray(ramp(*RANGES[name])))
    faults: list[DataFault] = []
    image = read_image(path, faults.append)
    np.testing.assert_allclose(image[..., 0].astype(int), GREY, atol=1)
    assert (image.min(), image.max()) == (0, 255)
    assert [(fault.kind, fault.file) for fault in faults] == [(FaultKind.LOW_CONTRAST, str(path))]
    low, high = RANGES[name]
    assert faults[0].detail == f"values from {low:,} to {high:,} of 65,535"
    for _ in range(2):
        read_image(path)
    assert [record.message.startswith(f"{path}: a 16-bit image of low contrast") for record in caplog.records] == [True]


def test_differences_below_a_step_of_8_bits_are_not_enlarged(tmp_path):
    """Noise in a dark image is not made an image, and values of 8 bits in a file of 16 stay as they are."""
    for values in (np.array([[0, 3], [7, 200]]), np.array([[500, 500], [500, 500]])):
        path = save(tmp_path / "a.png", Image.fromarray(values.astype(np.uint16)))
        np.testing.assert_array_equal(read_image(path)[..., 0], values - values.min())


COLOURS = np.random.default_rng(0).integers(100, 4000, (24, 32, 3)).astype(np.uint16)
DEEP = {
    "png": write_deep_png,
    "transparent png": lambda path, values: write_deep_png(path, np.dstack([values, np.full((24, 32), 65535)])),
    "little-endian tiff": lambda path, values: write_deep_tiff(path, values, "<"),
    "big-endian tiff": lambda path, values: write_deep_tiff(path, values, ">"),
}


@pytest.mark.parametrize("name", DEEP)
def test_colours_of_16_bits_are_scaled_alike(tmp_path, name):
    path = DEEP[name](tmp_path / "a", COLOURS)
    faults: list[DataFault] = []
    expected = (COLOURS - COLOURS.min()) * (255 / (int(COLOURS.max()) - int(COLOURS.min())))
    np.testing.assert_allclose(read_image(path, faults.append), expected, atol=0.51)
    assert [fault.kind for fault in faults] == [FaultKind.LOW_CONTRAST]
    full = COLOURS.astype(int) * 16
    DEEP[name](path, full)
    np.testing.assert_allclose(read_image(path, faults.append), expected, atol=0.51)
    assert len(faults) == 1


@pytest.mark.parametrize("orientation", [3, 6])
def test_orientation_is_applied_to_16_bits(tmp_path, orientation):
    upright = ramp(0, 4000)
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation](upright)))
    for suffix in (".png", ".tif"):
        path = save(tmp_path / f"a{suffix}", stored, exif=with_orientation(orientation))
        np.testing.assert_allclose(read_image(path)[..., 0].astype(int), GREY, atol=1)


@pytest.mark.parametrize("progressive", [False, True], ids=["baseline", "progressive"])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("num_bytes", [3, 30])
def test_a_jpeg_without_its_last_bytes_is_used_with_a_warning(tmp_path, mode, progressive, num_bytes, caplog):
    image = Image.fromarray(make_image(96, 128)).convert(mode)
    path = save(tmp_path / "a.jpg", image, progressive=progressive, exif=with_orientation(3))
    whole = read_image(path)
    path.write_bytes(path.read_bytes()[:-num_bytes])
    faults: list[DataFault] = []
    cut = read_image(path, faults.append)
    assert cut.shape == whole.shape
    # The image is turned, so that the missing end is at the top.
    if not progressive:
        np.testing.assert_array_equal(cut[24:], whole[24:])
    assert np.abs(cut.astype(int) - whole).mean() < 12
    assert [(fault.kind, fault.file) for fault in faults] == [(FaultKind.TRUNCATED_IMAGE, str(path))]
    read_image(path)
    assert f"{path}: the file breaks off near its end" in caplog.text


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("part", [0.2, 0.5, 0.7])
def test_a_jpeg_that_lacks_much_is_not_used(tmp_path, part, progressive):
    path = save(tmp_path / "a.jpg", Image.fromarray(make_image(96, 128)), progressive=progressive and part < 0.5)
    path.write_bytes(path.read_bytes()[: int(part * path.stat().st_size)])
    with pytest.raises(ImageError, match="cannot be read"):
        read_image(path)


def test_only_the_first_images_with_a_warning_are_named(tmp_path, caplog):
    for number in range(8):
        read_image(save(tmp_path / f"{number}.png", Image.fromarray(ramp(0, 99))))
    assert len(caplog.records) == images._MAX_LOGGED + 1
    assert "are not named" in caplog.records[-1].message


HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(40)


def test_a_heic_image_is_named_with_the_extra_that_reads_it(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "_registers_heif", lambda: False)
    for name in ("a.HEIC", "a.jpg"):  # the content decides
        (tmp_path / name).write_bytes(HEIC)
        with pytest.raises(ImageError, match=r"a HEIC image.*pip install 'opendetr\[heif\]'") as caught:
            read_image(tmp_path / name)
        assert str(tmp_path / name) in one_line(caught.value)


def test_a_heic_image_is_read_with_the_extra(tmp_path):
    pillow_heif = pytest.importorskip("pillow_heif")
    # Without noise, whose colours HEIC stores at half the resolution; rows, columns and channels all differ.
    y, x = np.mgrid[:48, :64]
    smooth = np.stack((3 * x, 5 * y, np.full_like(x, 40)), -1).astype(np.uint8)
    pillow_heif.from_pillow(Image.fromarray(smooth)).save(tmp_path / "a.heic", quality=-1)
    assert image_size(tmp_path / "a.heic") == (48, 64)
    assert np.abs(read_image(tmp_path / "a.heic").astype(int) - smooth).mean() < 6


def test_an_avif_image_is_read_or_named(tmp_path, monkeypatch):
    if features.check("avif"):
        path = save(tmp_path / "a.avif", Image.fromarray(make_image(48, 64)))
        assert read_image(path).shape == (48, 64, 3)
    monkeypatch.delitem(Image.OPEN, "AVIF", raising=False)
    (tmp_path / "b.avif").write_bytes(b"\0\0\0\x18ftypavif\0\0\0\0mif1avif" + bytes(40))
    with pytest.raises(ImageError, match="an AVIF image, which needs Pillow"):
        read_image(tmp_path / "b.avif")


def test_the_format_of_a_camera_is_named(tmp_path):
    (tmp_path / "a.CR3").write_bytes(bytes(100))
    with pytest.raises(ImageError, match=r"\.cr3 is not a supported format; convert it to JPEG"):
        read_image(tmp_path / "a.CR3")


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
