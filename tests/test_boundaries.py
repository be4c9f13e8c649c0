"""The boundaries of the library: members with other samples, losses and state need no change in the package."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import members
from members import TASKS, new_loader, new_task, train
from opendetr.structures import ClipBatch, ImageBatch
from opendetr.synthetic import write_scenes
from opendetr.training.callbacks import MetricsFile, read_metrics
from opendetr.training.events import Observer
from opendetr.training.trainer import STATE
from test_processes import ENVIRONMENT, in_processes, needs_fork

NAMES = sorted(TASKS)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    write_scenes(folder, counts={"train": 8, "val": 2})
    return folder


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "last" / STATE)


class StopAfterOne(Observer):
    """Asks for a stop after the first step, as Ctrl-C does."""

    def on_step(self, event) -> None:
        if event.step == 1:
            import signal

            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("name", NAMES)
def test_two_steps_change_the_weights_and_resume_to_the_same_bits(name, scenes, tmp_path):
    whole = train(name, scenes, tmp_path / "whole")
    first = train(name, scenes, tmp_path / "stopped", observers=[StopAfterOne()])
    assert (first.step, first.interrupted) == (1, True)
    second = train(name, scenes, tmp_path / "stopped", resume=True)
    assert (whole.step, second.step) == (2, 2)
    ours, theirs = tensors_of(tmp_path / "whole"), tensors_of(tmp_path / "stopped")
    assert ours.keys() == theirs.keys()
    assert not [key for key in ours if not torch.equal(ours[key], theirs[key])]
    before = new_task(name).state_dict()
    learned = [key for key in before if not torch.equal(before[key], ours[f"task/{key}"])]
    assert len(learned) > 50


@pytest.mark.parametrize("name", NAMES)
def test_batches_are_the_same_with_loader_processes(name, scenes):
    here, there = (next(iter(new_loader(name, scenes, workers).epoch(1))) for workers in (0, 1))
    assert equal(here, there)
    assert here.seed == there.seed != next(iter(new_loader(name, scenes).epoch(2))).seed


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_splits_pads_and_moves_whole(name, scenes):
    batch = next(iter(new_loader(name, scenes).epoch(0)))
    parts = batch.split(2)
    assert [len(part) for part in parts] == [2, 2]
    assert all(type(part) is type(batch) and part.shape == batch.shape for part in parts)
    assert sorted(count for part in parts for count in part.object_counts) == sorted(batch.object_counts)
    if not isinstance(batch, ClipBatch):
        assert equal(batch.images.pixels, torch.cat([part.images.pixels for part in parts]))
    height, width = batch.shape
    padded = batch.pad_to(height + 5, width + 3)
    assert padded.shape == (height + 5, width + 3)
    if isinstance(batch, ClipBatch):
        assert all(frame.shape == padded.shape for frame in padded.frames)
        assert padded.images is padded.frames[-1].images
        assert all(frame.targets == own.targets for frame, own in zip(padded.frames, batch.frames, strict=True))
    assert equal(batch, batch.to("cpu"))
    assert {tensor.device.type for tensor in tensors_in(batch.to("meta"))} == {"meta"}


def tensors_in(value: object) -> Iterator[torch.Tensor]:
    """Every tensor of a batch."""
    if isinstance(value, torch.Tensor):
        yield value
    parts = (
        value
        if isinstance(value, tuple)
        else ([getattr(value, name) for name in getattr(value, "__dataclass_fields__", ())])
    )
    for part in parts:
        yield from tensors_in(part)


def equal(one: object, other: object) -> bool:
    """Whether two values are the same, tensors compared entry by entry."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    if hasattr(one, "__dataclass_fields__"):
        return all(equal(getattr(one, name), getattr(other, name)) for name in one.__dataclass_fields__)
    return one == other


def test_what_is_known_after_the_forward_pass_divides_once(scenes, tmp_path):
    """The clip-averaged loss of a step in two parts is that of the whole; a plain loop is the reference."""
    batch = next(iter(new_loader("clips", scenes).epoch(0)))
    task = new_task("clips").eval()
    sums = task(batch)
    count = sums.pop("count")
    away = count.item() - sum(batch.object_counts)
    assert away > 0  # some objects are away from a frame
    (task.total(sums) / count).backward()
    expected = torch.stack([each.grad.norm() for each in task.parameters() if each.grad is not None]).norm().item()
    norms = []
    for parts in (1, 2):
        folder = tmp_path / str(parts)
        train("clips", scenes, folder, dropout=False, accumulate=parts, observers=[MetricsFile()])
        row = next(row for row in read_metrics(folder) if row["kind"] == "step")
        assert row["loss"] == pytest.approx(task.total(sums).item() / count.item(), rel=1e-4)
        norms.append(row["gradient_norm"])
    assert norms == pytest.approx([expected, expected], rel=1e-3)


def test_tracks_keep_their_object_in_every_layer(scenes):
    batch = next(iter(new_loader("clips", scenes).epoch(0)))
    task = new_task("clips").eval()
    met = []
    match = task.criterion.match
    task.criterion.match = lambda *given, **options: met.append((match(*given, **options), options)) or met[-1][0]
    task(batch)
    assert len(met) == 3 and len(met[0][1]["fixed"]) == 0 and len(met[2][1]["fixed"]) > 0
    for matches, options in met:
        fixed = options["fixed"]
        pairs = set(zip(*(values.tolist() for values in (fixed.image, fixed.query, fixed.target)), strict=True))
        for layer in range(2):
            own = matches.of_layer(layer)
            found = set(zip(*(values.tolist() for values in (own.image, own.query, own.target)), strict=True))
            assert pairs <= found
            free = {(image, query) for image, query, _ in found - pairs}
            assert all(options["candidates"][image, query] for image, query in free)


@pytest.mark.parametrize("name", ["pairs", "clips"])
def test_a_clip_of_three_frames_has_state_at_inference(name):
    rng = np.random.default_rng(0)
    frames = [ImageBatch.from_images([torch.from_numpy(rng.normal(size=(3, 48, 64))).float()]) for _ in range(3)]
    model = new_task(name).model
    before = {key: value.clone() for key, value in model.state_dict().items()}
    session = members.TrackingSession(model)
    first = [session.step(frame) for frame in frames]
    assert torch.equal(first[2].state.ids, first[0].state.ids)  # tracks go on
    alone = members.TrackingSession(model).step(frames[2])
    assert not torch.equal(first[2].final.logits, alone.final.logits)  # what was before counts
    session.reset()
    again = [session.step(frame) for frame in frames]
    assert all(torch.equal(a.final.boxes, b.final.boxes) for a, b in zip(first, again, strict=True))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


# ----------------------------------------------------------------------------------------------------------- processes


def main(data: Path, folder: Path) -> None:
    """Train every member in two processes and in one."""
    codes = []
    for name in NAMES:
        for count in (1, 2):
            codes += in_processes(
                count,
                lambda name=name, count=count: train(
                    name, data, folder / f"{name}-{count}", dropout=False, observers=[MetricsFile()]
                ),
            )
    print(json.dumps(codes))


@pytest.fixture(scope="module")
def runs(scenes, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    command = [sys.executable, __file__, str(scenes), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [0] * 3 * len(NAMES), done.stderr
    return folder


@needs_fork
@pytest.mark.parametrize("name", NAMES)
def test_two_processes_equal_one(name, runs):
    one, two = ([row for row in read_metrics(runs / f"{name}-{n}") if row["kind"] == "step"] for n in (1, 2))
    assert len(one) == len(two) == 2
    for ours, theirs in zip(one, two, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
        assert ours["gradient_norm"] == pytest.approx(theirs["gradient_norm"], rel=1e-4)
        assert ours["losses"].keys() == theirs["losses"].keys()
        for term, values in ours["losses"].items():
            assert theirs["losses"][term] == pytest.approx(values, rel=1e-4, abs=1e-5), term


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
