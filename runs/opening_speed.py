"""How long it takes to open a dataset of many images, without and with the cache of image sizes.

    python runs/opening_speed.py --images 100000
    python runs/opening_speed.py --images 100000 --compare ../other/src

The dataset has files of a few bytes with valid PNG headers, each with two objects, as COCO and as YOLO. Every opening
is a process of its own. `--compare` measures the package in another folder in turn with this one. For each format, the
script prints the median of the seconds of the first opening (without a cache) and of the second: those on the clock,
and those of the processor, which other programs on the machine hardly change.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import struct
import subprocess
import sys
import tempfile
import zlib
from pathlib import Path

_CHILD = """
import sys, time
from opendetr.data.formats.recognise import open_data
began = time.perf_counter(), time.process_time()
data = open_data(sys.argv[1])
print(time.perf_counter() - began[0], time.process_time() - began[1], sum(map(len, data.values())))
"""


def png(width: int, height: int) -> bytes:
    """A PNG of one chunk of pixels that is never decoded."""
    chunks = ((b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), (b"IDAT", b"x"), (b"IEND", b""))
    body = b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + body


def write(folder: Path, count: int) -> None:
    """The dataset in both formats, with the same images."""
    for name in ("coco/images", "coco/annotations", "yolo/images/train", "yolo/labels/train"):
        (folder / name).mkdir(parents=True)
    images, annotations = [], []
    for index in range(count):
        width, height = 640 + index % 7, 480
        name = f"{index:06}.png"
        (folder / "coco/images" / name).write_bytes(png(width, height))
        os.link(folder / "coco/images" / name, folder / "yolo/images/train" / name)
        (folder / "yolo/labels/train" / name).with_suffix(".txt").write_text("0 0.5 0.5 0.2 0.2\n1 0.2 0.3 0.1 0.1\n")
        images.append({"id": index, "file_name": name, "width": width, "height": height})
        annotations += [
            {"id": 2 * index + k, "image_id": index, "category_id": k, "bbox": [9 * k, 5, 60, 50], "area": 3000,
             "iscrowd": 0}
            for k in (0, 1)
        ]  # fmt: skip
    content = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 0, "name": "a"}, {"id": 1, "name": "b"}],
    }
    (folder / "coco/annotations/instances_train.json").write_text(json.dumps(content))
    (folder / "yolo/data.yaml").write_text("train: images/train\nnames: [a, b]\n")


def seconds(source: Path, dataset: Path, cache: Path) -> tuple[float, float]:
    """The time of one opening in a process of its own, on the clock and of the processor."""
    environment = dict(os.environ, PYTHONPATH=str(source), OPENDETR_CACHE=str(cache))
    command = [sys.executable, "-c", _CHILD, str(dataset)]
    output = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    clock, processor, _ = output.split()
    return float(clock), float(processor)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--compare", type=Path, help="the folder with another version of the package")
    parser.add_argument("--folder", type=Path, help="keep the dataset in this folder, and use it again")
    options = parser.parse_args()
    folder = options.folder or Path(tempfile.mkdtemp())
    if not (folder / "yolo/data.yaml").exists():
        write(folder, options.images)
    sources = {"this": Path(__file__).parents[1] / "src"} | ({"other": options.compare} if options.compare else {})
    for name in ("coco", "yolo"):
        times: dict[tuple[str, str], list[tuple[float, float]]] = {}
        for _ in range(options.repeats):
            for label, source in sources.items():
                cache = folder / "cache"
                shutil.rmtree(cache, ignore_errors=True)
                for opening in ("first", "second"):
                    times.setdefault((label, opening), []).append(seconds(source, folder / name, cache))
        for (label, opening), values in times.items():
            clock, processor = map(statistics.median, zip(*values, strict=True))
            print(f"{name:5} {label:6} {opening:7} {clock:7.2f} s  processor {processor:6.2f} s", flush=True)
    if options.folder is None:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
