"""Annotation files of tools with random faults: they are read, or refused in one line, and reading never hangs.

`OPENDETR_FUZZ_CASES=5000 python -m pytest tests/test_fuzz_layouts.py` is the longer run.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from folders import one_line
from fuzzing import TOKENS, edited, edits, fuzzed, no_hang
from layouts import LAYOUTS, Put
from opendetr.data.formats import open_data, read_splits
from opendetr.data.records import DataError, FaultLog
from test_fuzz_data import VALUES, change_json

CASES = int(os.environ.get("OPENDETR_FUZZ_CASES", "100"))
# Reader -> the export that it reads, and the kinds of files that are changed.
READERS = {
    "CVAT": ("CVAT for images 1.1", ".xml"),
    "labelme": ("its JSON files", ".json"),
    "VIA as JSON": ("annotations as JSON", ".json"),
    "VIA as CSV": ("annotations as CSV", ".csv"),
    "Open Images": ("boxes and class descriptions", ".csv"),
    "table without header": ("table without header", ".csv"),
    "Darknet": ("YOLO 1.1", ".data .names .txt"),
    "VOC in any folders": ("XML in each split", ".xml"),
    "names of a server": ("COCO", ".json"),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    made = {}
    for name, (export, _) in READERS.items():
        made[name] = tmp_path_factory.mktemp("fuzz") / "set"
        [layout] = [own for own in LAYOUTS if own.export == export and own.tool != "Roboflow"]
        layout.write(Put(made[name]))
    return made


def require_order(folder: Path) -> None:
    with no_hang():
        try:
            open_data(folder)
        except DataError as error:
            one_line(error)
        log = FaultLog(raises=False)
        read_splits(folder, log)
        assert all("\n" not in fault.detail for fault in log.faults)


def run(path: Path, change: Callable[[bytes], bytes], original: bytes, folder: Path) -> None:
    path.write_bytes(change(original))
    try:
        require_order(folder)
    finally:
        path.write_bytes(original)


@pytest.mark.parametrize("name", READERS)
def test_files_with_random_edits(folders, name):
    folder = folders[name]
    suffixes = READERS[name][1].split()
    files = {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.suffix in suffixes}

    @settings(fuzzed, max_examples=CASES)
    @given(st.sampled_from(sorted(files)), edits())
    def search(path: Path, changes: list[tuple[float, int, bytes]]) -> None:
        run(path, lambda content: edited(content, changes), files[path], folder)

    search()


@pytest.mark.parametrize("name", ["labelme", "VIA as JSON", "names of a server"])
def test_json_with_random_values(folders, name):
    path = sorted(folders[name].rglob("*.json"))[0]

    @settings(fuzzed, max_examples=CASES)
    @given(st.lists(st.tuples(st.integers(0, 10_000), VALUES, st.sampled_from(["put", "drop", "twice"])), max_size=5))
    def search(changes: list[tuple[int, Any, str]]) -> None:
        def change(original: bytes) -> bytes:
            content = json.loads(original)
            for place, value, kind in changes:
                change_json(content, place, value, kind)
            return json.dumps(content).encode()

        run(path, change, path.read_bytes(), folders[name])

    search()


CELLS = st.sampled_from([*TOKENS, "1.jpg", "set\\1.jpg", "cat", "5", "0.25", '{"name": "rect"}', "/m/01cat"])


@pytest.mark.parametrize("name", ["VIA as CSV", "Open Images", "table without header"])
def test_tables_with_random_cells(folders, name):
    path = sorted(folders[name].rglob("*.csv"))[0]
    header = b"" if name == "table without header" else path.read_bytes().splitlines()[0] + b"\n"

    @settings(fuzzed, max_examples=CASES)
    @given(st.lists(st.lists(CELLS, max_size=14), max_size=5))
    def search(rows: list[list[str]]) -> None:
        text = "\n".join(",".join(row) for row in rows)
        run(path, lambda _: header + text.encode(), path.read_bytes(), folders[name])

    search()


@pytest.mark.parametrize("tag", ["box", "polygon", "ellipse", "mask", "cuboid"])
def test_shapes_of_cvat_with_random_attributes(folders, tag):
    path = folders["CVAT"] / "annotations.xml"
    names = ["label", "xtl", "ytl", "xbr", "ybr", "rotation", "points", "cx", "cy", "rx", "ry", "left", "top", "width"]
    values = st.sampled_from([*(token for token in TOKENS if token.isprintable()), "1,2;3,4;5,1", "7", "cat"])

    @settings(fuzzed, max_examples=max(1, CASES // 5))
    @given(st.dictionaries(st.sampled_from(names), values))
    def search(attributes: dict[str, str]) -> None:
        from xml.sax.saxutils import quoteattr

        shape = " ".join(f"{name}={quoteattr(value)}" for name, value in attributes.items())
        image = f'<image id="0" name="0.png" width="64" height="48"><{tag} {shape}/></image>'
        content = f"<annotations>{image}</annotations>".encode("utf-8", "surrogatepass")
        run(path, lambda _: content, path.read_bytes(), folders["CVAT"])

    search()
