"""Annotation files with random faults: the readers say one line, or read them; `data check` never fails.

See `fuzzing` for the number of cases.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from faults import FORMATS, DataSet
from folders import one_line
from fuzzing import TOKENS, edited, edits, fuzzed, no_hang
from opendetr.data.faults import Effect
from opendetr.data.formats.recognise import open_data
from opendetr.data.records import DataError
from opendetr.data.tools.check import Demands, check_data
from opendetr.data.tools.fix import fixed, write_fixed

DEMANDS = Demands(image_size=64, max_size=128, num_queries=5)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(TOKENS) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["id", "bbox", "name"]), inner),
    max_leaves=5,
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """A small dataset in every format."""
    folders = {name: tmp_path_factory.mktemp("fuzz") / "set" for name in FORMATS}
    for name, folder in folders.items():
        folder.mkdir()
        data = DataSet(name, folder)
        data.images = [data.images[0], data.images[1], data.images[4]]
        for image in data.images:
            del image.things[2:]
        data.write()
    return folders


def annotation_files(folder: Path) -> list[Path]:
    suffixes = (".json", ".xml", ".txt", ".yaml", ".csv", ".ini")
    return sorted(path for path in folder.rglob("*") if path.suffix in suffixes)


def require_order(folder: Path, written: Path | None = None) -> None:
    """The folder is read, or refused in one line; a check names everything; a copy is there whole or not at all."""
    with no_hang():
        try:
            opened = open_data(folder)
        except DataError as error:
            one_line(error)
            opened = None
        report = check_data(folder, DEMANDS, read_images=written is not None)
        assert opened is not None or report.with_effect(Effect.STOPS)
        assert all(fault.file and "\n" not in fault.detail for found in report.faults.values() for fault in found)
        if written is not None:
            shutil.rmtree(written, ignore_errors=True)
            require_whole_copy(report, written)


def require_whole_copy(report: Any, written: Path) -> None:
    if not fixed(report):
        with pytest.raises(DataError):
            write_fixed(report, written)
        assert list(written.parent.iterdir()) == [report.folder]
        return
    try:
        write_fixed(report, written)
    except DataError as error:
        one_line(error)
        assert not written.exists()
    else:
        assert [kind for kind in check_data(written, DEMANDS).faults if kind.fixable] == []
    assert {path.name for path in written.parent.iterdir()} <= {report.folder.name, written.name}


@pytest.mark.parametrize("name", FORMATS)
def test_files_with_random_edits(folders, name):
    folder = folders[name]
    files = {path: path.read_bytes() for path in annotation_files(folder)}

    @fuzzed
    @given(st.sampled_from(sorted(files)), edits(), st.integers(0, 9))
    def run(path: Path, changes: list[tuple[float, int, bytes]], number: int) -> None:
        path.write_bytes(edited(files[path], changes))
        try:
            require_order(folder, folder.with_name("copy") if number == 0 else None)
        finally:
            path.write_bytes(files[path])

    run()


def test_coco_with_random_values(folders):
    path = folders["COCO"] / "annotations" / "instances_train.json"
    original = path.read_text()

    @fuzzed
    @given(st.lists(st.tuples(st.integers(0, 10_000), VALUES, st.sampled_from(["put", "drop", "twice"])), max_size=5))
    def run(changes: list[tuple[int, Any, str]]) -> None:
        content = json.loads(original)
        for place, value, change in changes:
            change_json(content, place, value, change)
        path.write_text(json.dumps(content))
        try:
            require_order(path.parents[1], path.parents[2] / "copy" if len(changes) == 1 else None)
        finally:
            path.write_text(original)

    run()


def change_json(content: Any, place: int, value: Any, change: str) -> None:
    """Walk down to a place that a number tells, and change what is there."""
    holder: Any = content
    while True:
        keys: list[Any] = sorted(holder, key=str) if isinstance(holder, dict) else list(range(len(holder)))
        if not keys:
            return
        place, choice = divmod(place, len(keys))
        key = keys[choice]
        if place and isinstance(holder[key], dict | list) and holder[key]:
            holder = holder[key]
            continue
        if change == "put":
            holder[key] = value
        elif change == "drop":
            del holder[key]
        elif isinstance(holder, list):
            holder.append(holder[key])
        return


CELLS = st.sampled_from([*TOKENS, "0.png", "1.png", "4.png", "cat", "train", "5", "0.25"])


@pytest.mark.parametrize(("name", "separator"), [("YOLO", " "), ("CSV", ","), ("MOT", ",")])
def test_rows_of_random_fields(folders, name, separator):
    path = next(path for path in annotation_files(folders[name]) if path.suffix in (".csv", ".txt"))
    original = path.read_bytes()
    header = original.splitlines()[0] + b"\n" if name == "CSV" else b""

    @fuzzed
    @given(st.lists(st.lists(CELLS, max_size=9), max_size=6))
    def run(rows: list[list[str]]) -> None:
        text = "\n".join(separator.join(row) for row in rows)
        path.write_bytes(header + text.encode())
        try:
            require_order(folders[name])
        finally:
            path.write_bytes(original)

    run()
