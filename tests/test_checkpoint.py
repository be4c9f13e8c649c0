"""Checkpoints: whole or not there, whatever happens while one is written."""

from __future__ import annotations

import itertools
import json
import os
import signal
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from opendetr.training import checkpoint
from opendetr.training.checkpoint import CheckpointError, find_checkpoint, load_checkpoint, save_checkpoint


def save(folder: Path, value: float) -> None:
    tensors = {"weight": torch.full((1000,), value)}
    save_checkpoint(
        folder, {"value": value, "nested": {"pair": (1, 2)}}, {"w.safetensors": partial(save_file, tensors)}
    )


def value_of(folder: Path) -> float:
    loaded = load_checkpoint(folder)
    assert (loaded.tensors("w.safetensors")["weight"] == loaded.facts["value"]).all()
    return loaded.facts["value"]


def test_round_trip_and_replacement(tmp_path):
    last = tmp_path / "run" / "last"
    for value in (1.0, 2.0, float("inf")):
        save(last, value)
        assert value_of(last) == value
        assert [path.name for path in last.parent.iterdir()] == ["last"]
    assert load_checkpoint(last).facts["nested"] == {"pair": [1, 2]}


def test_nothing_there(tmp_path):
    assert find_checkpoint(tmp_path / "last") is None
    with pytest.raises(CheckpointError, match="no checkpoint here"):
        load_checkpoint(tmp_path / "last")


@pytest.mark.parametrize("name", ["w.safetensors", "checkpoint.json"])
@pytest.mark.parametrize("damage", ["cut", "altered", "removed"])
def test_a_damaged_checkpoint_is_refused(tmp_path, name, damage):
    last = tmp_path / "last"
    save(last, 1.0)
    path = last / name
    content = bytearray(path.read_bytes())
    if damage == "removed":
        path.unlink()
    else:
        content[-20] ^= 1
        path.write_bytes(content[:-30] if damage == "cut" else content)
    with pytest.raises(CheckpointError) as error:
        load_checkpoint(last)
    assert "\n" not in str(error.value)


def test_an_altered_fact_is_refused(tmp_path):
    last = tmp_path / "last"
    save(last, 1.0)
    index = json.loads((last / "checkpoint.json").read_text())
    index["facts"]["value"] = 2.0
    (last / "checkpoint.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="altered"):
        load_checkpoint(last)


def test_another_format_is_refused(tmp_path, monkeypatch):
    last = tmp_path / "last"
    save(last, 1.0)
    monkeypatch.setattr(checkpoint, "FORMAT", 2)
    with pytest.raises(CheckpointError, match="of format 1"):
        load_checkpoint(last)


def test_a_writer_that_fails_leaves_what_was_there(tmp_path):
    last = tmp_path / "last"
    save(last, 1.0)

    def fail(path: Path) -> None:
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(last, {}, {"w.safetensors": fail})
    assert value_of(last) == 1.0
    assert [path.name for path in tmp_path.iterdir()] == ["last"]


def save_and_end(folder: Path, end: int) -> bool:
    """Save in a child process that ends, as by kill -9, before the `end`-th call that changes the disk."""
    calls = itertools.count(1)

    def counted(function):
        def call(*arguments, **options):
            if next(calls) == end:
                os._exit(9)
            return function(*arguments, **options)

        return call

    child = os.fork()
    if child == 0:
        for owner, names in ((os, ("fsync", "rmdir", "unlink", "mkdir")), (Path, ("rename", "write_text"))):
            for name in names:
                setattr(owner, name, counted(getattr(owner, name)))
        save(folder, 2.0)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, 9)
    return status == 9


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_an_end_at_any_moment_of_a_save_leaves_a_whole_checkpoint(tmp_path):
    last = tmp_path / "last"
    found = []
    for end in range(1, 40):
        save(last, 1.0)
        ended = save_and_end(last, end)
        found.append(value_of(last))
        if not ended:
            break
    assert found == sorted(found) and found[0] == 1.0 and found[-1] == 2.0
    assert len(found) > 8
    save(last, 3.0)
    assert value_of(last) == 3.0
    assert [path.name for path in tmp_path.iterdir()] == ["last"]


def save_with_room_for(folder: Path, limit: int) -> str:
    """Save in a child process whose files may not grow beyond `limit` bytes; what it has to say."""
    import resource

    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        try:
            save(folder, 2.0)
        except CheckpointError as error:
            os.write(writer, str(error).encode())
        os._exit(0)
    os.close(writer)
    os.waitpid(child, 0)
    return os.read(reader, 10_000).decode()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("limit", [0, 200, 2000])
def test_a_full_disk_keeps_the_checkpoint_and_says_so_in_one_line(tmp_path, limit):
    last = tmp_path / "last"
    save(last, 1.0)
    said = save_with_room_for(last, limit)
    assert said.startswith(f"cannot write {last}: ") and "File too large" in said and "--resume" in said
    assert "\n" not in said
    assert value_of(last) == 1.0
    assert [path.name for path in tmp_path.iterdir()] == ["last"]
