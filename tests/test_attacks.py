"""Inputs that are made to do harm, or look as if: each is refused in one line and little memory, or simply read."""

from __future__ import annotations

import io
import json
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from faults import DataSet
from folders import make_image, one_line, voc_xml, write_image, write_voc_folder
from opendetr.cli.main import app
from opendetr.data.faults import FaultKind
from opendetr.data.formats.recognise import Format, open_data
from opendetr.data.images import ImageError, image_size, is_animated, read_image
from opendetr.data.records import DataError
from opendetr.data.tools.check import Demands, check_data
from opendetr.data.tools.convert import write_data

DEMANDS = Demands(image_size=256, max_size=427, num_queries=50)
MIB = 2**20


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, *chunks: bytes) -> bytes:
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join((chunk(b"IHDR", head), *chunks, chunk(b"IEND", b"")))


def tiff(width: int, height: int, tile: int) -> bytes:
    """One tile of `tile` x `tile` pixels, deflated, of which there are no bytes."""
    longs = {256: width, 257: height, 258: 8, 259: 8, 262: 1, 277: 1, 322: tile, 323: tile, 324: 8, 325: 100}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(longs.items()))
    return b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", len(longs)) + entries + bytes(4)


def saved(size: tuple[int, int], mode: str, suffix: str, **options: object) -> bytes:
    content = io.BytesIO()
    Image.new(mode, size).save(content, suffix, **options)
    return content.getvalue()


def jpeg(width: int, height: int) -> bytes:
    content = saved((8, 8), "RGB", "JPEG")
    place = content.index(b"\xff\xc0") + 5
    return content[:place] + struct.pack(">HH", height, width) + content[place + 4 :]


TRAPS = {
    "png of zeros": lambda: saved((12_000, 12_000), "1", "PNG"),
    "png beyond all limits": lambda: png(2**31 - 1, 2**31 - 1),
    "png of much text": lambda: png(8, 8, chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(200 * MIB)))),
    "png with a fat profile": lambda: png(8, 8, chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(200 * MIB)))),
    "gif": lambda: b"GIF89a" + struct.pack("<HH", 65_535, 65_535) + b"\x80\0\0" + bytes(6) + b"\x3b",
    "bmp": lambda: b"BM" + struct.pack("<IIIIiiHH", 54, 0, 54, 40, 30_000, 30_000, 1, 24) + bytes(24),
    "jpeg": lambda: jpeg(65_500, 65_500),
    "webp": lambda: saved((16_000, 16_000), "RGB", "WEBP", lossless=True, method=0, quality=0),
    "tiff": lambda: tiff(60_000, 60_000, 256),
    "tiff of a tile": lambda: tiff(16, 16, 65_520),
    "ppm": lambda: b"P6 40000 40000 255\n",
}


def test_traps_take_little_memory(tmp_path):
    """Each small file asks for gigabytes; all together are refused in another process, which tells its peak."""
    for name, make in TRAPS.items():
        (tmp_path / name).write_bytes(make())
        assert (tmp_path / name).stat().st_size < MIB
    code = (
        "import resource, sys\nfrom pathlib import Path\nfrom opendetr.data.images import *\n"
        "used = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024\n"
        "before = used()\n"
        "for path in sorted(Path(sys.argv[1]).iterdir()):\n"
        "    for read in (read_image, image_size, is_animated):\n"
        "        try: read(path)\n"
        "        except ImageError as error: print(error)\n"
        "        else: print('read')\n"
        "print(used() - before)\n"
    )
    result = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=True)
    *lines, peak = result.stdout.splitlines()
    assert len(lines) == 3 * len(TRAPS)
    for name, line in zip(sorted(TRAPS), lines[::3], strict=True):
        assert line.startswith(f"{tmp_path / name}: "), line
    assert int(peak) < 150, "MiB"
    assert result.stderr == ""


def test_a_large_image_with_the_bytes_for_it_is_read(tmp_path):
    noise = np.random.default_rng(0).integers(0, 2, (6_000, 6_000), dtype=np.uint8) * 255
    path = tmp_path / "map.png"
    Image.fromarray(noise).convert("1").save(path)
    assert read_image(path).shape == (6_000, 6_000, 3)


def test_other_programs_are_not_started_for_an_image(tmp_path):
    path = tmp_path / "a.jpg"
    path.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nquit\n")
    with pytest.raises(ImageError, match="not an image in a supported format") as error:
        read_image(path)
    one_line(error.value)


@pytest.mark.parametrize("suffix", [".gif", ".png", ".webp", ".tif"])
def test_of_many_frames_the_first_is_read(tmp_path, suffix):
    frames = [Image.fromarray(make_image(seed=seed)) for seed in range(3)]
    path = tmp_path / f"a{suffix}"
    options = {"lossless": True} if suffix == ".webp" else {}
    frames[0].save(path, save_all=True, append_images=frames[1:], **options)
    alone = tmp_path / f"b{suffix}"
    frames[0].save(alone, **options)
    np.testing.assert_array_equal(read_image(path), read_image(alone))
    assert image_size(path) == (48, 64)
    assert is_animated(path)
    assert not is_animated(alone)


def test_links_that_lead_nowhere_or_in_circles(tmp_path):
    loop = tmp_path / "loop.png"
    loop.symlink_to(loop)
    (tmp_path / "nowhere.png").symlink_to(tmp_path / "gone.png")
    for name in ("loop.png", "nowhere.png"):
        with pytest.raises(ImageError, match="no such file") as error:
            read_image(tmp_path / name)
        assert str(tmp_path / name) in one_line(error.value)
    with pytest.raises(DataError) as failure:
        open_data(loop)
    one_line(failure.value)


@pytest.mark.parametrize("name", ["COCO", "VOC", "YOLO", "CSV"])
def test_a_data_set_with_links_in_circles_is_read(tmp_path, name):
    data = DataSet(name, tmp_path / "set")
    data.folder.mkdir()
    data.write()
    for folder in {data.folder, data.image(0).parent, data.annotations(0).parent}:
        (folder / "again").symlink_to(data.folder)
        (folder / "loop.png").symlink_to(folder / "loop.png")
    assert len(open_data(data.folder)["train"]) == 4
    assert not {kind for kind in check_data(data.folder, DEMANDS).faults if kind is not FaultKind.UNLISTED_IMAGE}


def test_a_description_that_names_the_whole_disk(tmp_path):
    data = DataSet("YOLO", tmp_path)
    data.write()
    for place in ("/", "..", "images/train/../../.."):
        (tmp_path / "data.yaml").write_text(f"train: {place}\nval: images/val\nnames: [cat, dog]\n")
        with pytest.raises(DataError, match=r"contains the dataset .*; name the folder") as error:
            open_data(tmp_path)
        one_line(error.value)


NAMES = {
    "unicode": "Ünïcödé 猫 🐈.png",
    "right to left": "\u202egnp.exe",
    "spaces": "  a  b .png",
    "quotes": """it's "one".png""",
    "dots": "a.b.c..png",
    "percent": "%2e%2e%2f.png",
    "line break": "a\nb.png",
    "terminal": "\x1b[2Ja.png",
    "option": "--help.png",
    "longest": "a" * 251 + ".png",
}


@pytest.mark.parametrize("to", [Format.COCO, Format.VOC, Format.YOLO])
@pytest.mark.parametrize("name", NAMES)
def test_strange_names_are_read_and_written(tmp_path, name, to):
    data = DataSet("COCO", tmp_path / "set")
    data.images[0].name = NAMES[name]
    data.folder.mkdir()
    data.write()
    read = open_data(data.folder)
    assert NAMES[name] in {image.path.name for image in read["train"].images}
    write_data(read, tmp_path / "copy", to)
    again = open_data(tmp_path / "copy")
    assert [len(again[split]) for split in ("train", "val")] == [4, 2]
    for image in again["train"].images:
        assert read_image(image.path).shape == (96, 128, 3)
    result = CliRunner().invoke(app, ["data", "check", str(data.folder), "--no-images"])
    assert result.exit_code == 0
    assert result.exception is None or isinstance(result.exception, SystemExit)


@pytest.mark.parametrize("name", ["a" * 300 + ".png", "a/" * 3000 + "a.png", "\ud800.png", "a\0.png"])
def test_names_that_no_file_can_have(tmp_path, name):
    data = DataSet("COCO", tmp_path)
    data.write()
    path = data.annotations(0)
    content = json.loads(path.read_text())
    content["images"][1]["file_name"] = name
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"images\[1\]: ") as error:
        open_data(tmp_path)
    one_line(error.value)


def test_xml_that_multiplies_itself_is_refused(tmp_path):
    write_voc_folder(tmp_path)
    entities = "".join(f'<!ENTITY e{n} "{f"&e{n - 1};" * 10}">' for n in range(1, 10))
    lol = f'<!DOCTYPE annotation [<!ENTITY e0 "{"a" * 100}">{entities}]>'
    outside = '<!DOCTYPE annotation [<!ENTITY e9 SYSTEM "file:///etc/passwd">]>'
    for head in (lol, outside):
        xml = head + voc_xml("image_0", [("&e9;", [1, 2, 3, 4])])
        (tmp_path / "Annotations" / "image_0.xml").write_text(xml)
        with pytest.raises(DataError, match=r"image_0.xml: declares XML entities") as error:
            open_data(tmp_path)
        one_line(error.value)


def test_yaml_that_multiplies_itself_is_refused(tmp_path):
    data = DataSet("YOLO", tmp_path)
    data.write()
    levels = [f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 10)}]" for n in range(1, 10)]
    description = ["l0: &l0 [a, a]", *levels, "train: images/train", "val: images/val", "names: *l9"]
    (tmp_path / "data.yaml").write_text("\n".join(description))
    with pytest.raises(DataError) as error:
        open_data(tmp_path)
    assert len(one_line(error.value)) < 1000


def test_places_that_cannot_be_written_to(tmp_path):
    data = DataSet("COCO", tmp_path / "set")
    data.folder.mkdir()
    data.write()
    data.image(0).write_bytes(b"")
    (tmp_path / "file").write_text("mine")
    places = [tmp_path / "file" / "copy", Path("/proc/copy"), tmp_path / ("a" * 300)]
    if os.geteuid():  # root may write anywhere
        (tmp_path / "locked").mkdir(mode=0o500)
        places.append(tmp_path / "locked" / "copy")
    for place in places:
        result = CliRunner().invoke(app, ["data", "check", str(data.folder), "--fix", str(place)])
        assert result.exit_code == 1
        assert [line for line in result.stderr.splitlines() if line.startswith("error: ")] == result.stderr.splitlines()
        assert len(result.stderr.splitlines()) == 1
        assert "Traceback" not in result.output
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "locked") == ["file", "set"]


def test_an_image_that_is_a_device_or_a_folder(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    write_image(tmp_path / "a.png")
    for path in (tmp_path / "pipe.png", tmp_path / "folder.png", Path("/dev/zero")):
        for read in (read_image, image_size, is_animated):
            with pytest.raises(ImageError) as error:
                read(path)
            assert str(path) in one_line(error.value)
