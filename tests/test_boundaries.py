"""The boundaries of the library: members with other samples, losses and state need no change in the package."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import field, make_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import member_presets
import members
import opendetr
from members import TASKS, new_config, new_loader, new_task, train
from opendetr import open_data
from opendetr.data.images import read_record
from opendetr.data.loader import sample_rng
from opendetr.data.transforms import LabelledImage
from opendetr.losses import Normaliser
from opendetr.presets import register_preset, registry
from opendetr.structures import Batch, ClipBatch, ImageBatch, Target
from opendetr.synthetic import write_scenes
from opendetr.training.callbacks import MetricsFile, read_metrics
from opendetr.training.events import Callback
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


class StopAfterOne(Callback):
    """Asks for a stop after the first step, as Ctrl-C does."""

    def on_step(self, event) -> None:
        if event.step == 1:
            import signal

            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("name", NAMES)
def test_two_steps_change_the_weights_and_resume_to_the_same_bits(name, scenes, tmp_path):
    whole = train(name, scenes, tmp_path / "whole")
    first = train(name, scenes, tmp_path / "stopped", callbacks=[StopAfterOne()])
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
    frames = len(batch.frames) if isinstance(batch, ClipBatch) else 1
    for count, sizes in ((1, [4]), (2, [2, 2]), (3, [2, 2]), (9, [1, 1, 1, 1])):
        parts = batch.split(count)
        assert [len(part) for part in parts] == sizes
        assert all(type(part) is type(batch) and part.shape == batch.shape for part in parts)
        assert sorted(count for part in parts for count in part.object_counts) == sorted(batch.object_counts)
        assert equal(joined(parts), batch)
    height, width = batch.shape
    padded = batch.pad_to(height + 5, width + 3)
    assert padded.shape == (height + 5, width + 3)
    if isinstance(batch, ClipBatch):
        assert all(frame.shape == padded.shape for frame in padded.frames)
        for changed in (padded, parts[0], batch.to("meta")):
            assert changed.images is changed.frames[-1].images
        for seeded in (batch, padded, *parts, batch.to("cpu"), replace(batch, seed=7)):
            assert {frame.seed for frame in seeded.frames} == {seeded.seed} != {0}
        assert all(frame.targets == own.targets for frame, own in zip(padded.frames, batch.frames, strict=True))
    assert len(batch.image_names) == len(set(batch.image_names)) * frames == len(batch.object_counts)
    assert equal(batch, batch.to("cpu"))
    assert {tensor.device.type for tensor in tensors_in(batch.to("meta"))} == {"meta"}


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_is_collated_of_its_samples_in_their_order(name, scenes):
    config, device = new_config(name), torch.device("cpu")
    transform, data = config.training_transform(), open_data(scenes)["train"]
    images = [
        LabelledImage.from_record(record, read_record(record), data.categories, index)
        for index, record in enumerate(data.images)
    ]
    samples = [transform(image, sample_rng(0, 0, index), images) for index, image in enumerate(images[:4])]
    assert len({tuple(sample.pixels.shape) for sample in samples}) > 1  # there is something to pad
    shape = tuple(max(sample.pixels.shape[side] for sample in samples) + 1 for side in (1, 2))  # pads every image
    batch = config.collate(samples, shape, device)
    assert equal(joined([config.collate([sample], shape, device) for sample in samples]), batch)
    last = batch.frames[-1] if isinstance(batch, ClipBatch) else batch
    assert (last.shape, last.names) == (shape, tuple(sample.name for sample in samples))
    for index, sample in enumerate(samples):
        _, height, width = sample.pixels.shape
        assert last.images.sizes[index].tolist() == [height, width]
        assert equal(last.targets[index], sample.target)
        inside = torch.zeros(shape, dtype=torch.bool)
        inside[:height, :width] = True
        assert torch.equal(~last.images.padding[index], inside)
        assert not last.images.pixels[index, :, ~inside].any()
        mean, std = (torch.tensor(values)[:, None, None] for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
        shown = last.images.pixels[index, :, :height, :width] * std + mean
        torch.testing.assert_close(shown * 255, sample.pixels.float(), rtol=0, atol=1e-3)


def joined(values: Sequence[Any]) -> Any:
    """One value of those of parts of a batch: per-image entries one after another, clips frame by frame."""
    first = values[0]
    if isinstance(first, torch.Tensor):
        return torch.cat(tuple(values))
    if isinstance(first, tuple) and any(isinstance(each, Batch) for each in first):
        return tuple(map(joined, zip(*values, strict=True)))
    if isinstance(first, tuple):
        return sum(values, ())
    if hasattr(first, "__dataclass_fields__"):
        names = first.__dataclass_fields__
        return type(first)(**{name: joined([getattr(value, name) for value in values]) for name in names})
    assert all(value == first for value in values)
    return first


def batch_of_two(**further) -> Batch:
    """Two images of 8 by 8 pixels without objects, in a batch with further fields."""
    added = [(name, Any, field(kw_only=True)) for name in further]
    kind = make_dataclass("WideBatch", added, bases=(Batch,), frozen=True)
    target = Target(torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4), (8, 8), (8, 8), 5)
    return kind(ImageBatch.from_images([torch.zeros(3, 8, 8)] * 2), (target, replace(target, image_id=6)), **further)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("ab", "extra: a batch cannot split a str; use a tensor, a tuple"),
        (["a", "b"], "extra: a batch cannot split a list; use a tensor, a tuple"),
        ({"a": 1}, "extra: a batch cannot split a dict; use a tensor, a tuple"),
        (torch.tensor(1.0), r"extra: expected one entry for each of 2 images, got a tensor of shape \(\)"),
        (torch.zeros(3, 2), r"extra: expected one entry for each of 2 images, got a tensor of shape \(3, 2\)"),
        (("a",), "extra: expected one entry for each of 2 images, got 1 entries"),
        (members.Tokens([1, 2], torch.zeros(2)), "extra.ids: a batch cannot split a list"),
    ],
)
def test_a_field_without_an_entry_per_image_is_refused_when_the_batch_is_made(value, message):
    with pytest.raises(ValueError, match=f"^WideBatch.{message}"):
        batch_of_two(extra=value)


@pytest.mark.parametrize(
    "value", [None, 3, 0.5, torch.zeros(2, 4), ("a", "b"), members.Tokens(torch.ones(2), torch.zeros(2))]
)
def test_a_field_of_a_subclass_is_split(value):
    first, second = batch_of_two(extra=value).split(2)
    assert first.image_names + second.image_names == ("image 5", "image 6")
    if isinstance(value, members.Tokens):
        assert (first.extra.ids.tolist(), second.extra.padding.tolist()) == ([1], [0])
    elif isinstance(value, torch.Tensor | tuple):
        assert equal(first.extra, value[:1]) and equal(second.extra, value[1:])
    else:
        assert first.extra == second.extra == value


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
    first = task.model(batch.frames[0].images)
    targets = [replace(target, labels=target.labels % members.NUM_CLASSES) for target in batch.frames[0].targets]
    alone = task.losses(first, targets)  # the public half divides too
    parts = task.losses(first, targets, Normaliser(1.0, 1.0))
    assert all(torch.allclose(values * sum(map(len, targets)), parts[name]) for name, values in alone.items())
    expected = torch.stack([each.grad.norm() for each in task.parameters() if each.grad is not None]).norm().item()
    norms = []
    for parts in (1, 2):
        folder = tmp_path / str(parts)
        train("clips", scenes, folder, dropout=False, accumulate=parts, callbacks=[MetricsFile()])
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
                    name, data, folder / f"{name}-{count}", dropout=False, callbacks=[MetricsFile()]
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


# ------------------------------------------------------------------------------------------------------------- presets


@pytest.fixture
def registered(monkeypatch) -> None:
    monkeypatch.setattr(registry, "_PRESETS", dict(registry._PRESETS))
    for make in (member_presets.captions, member_presets.clips):
        register_preset(make)


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> Path:
    """Two validation videos of two frames."""
    folder = tmp_path_factory.mktemp("videos")
    write_scenes(folder, counts={"train": 4, "val": 4})
    return folder


@pytest.mark.parametrize(("name", "metric"), [("mini-captions", "token_recall"), ("mini-clips", "kept")])
def test_a_preset_trains_is_evaluated_and_loads_by_its_name(registered, name, metric, videos, tmp_path):
    run = opendetr.train(videos, model=name, weights="none", out=tmp_path / "run", device="cpu", say=lambda line: None)
    assert run.result.step == 2 and run.result.best["step"] == 2
    member_presets.CountingSession.resets = 0
    predictor = opendetr.load(run.folder, device="cpu")
    scores = predictor.metrics(open_data(videos)["val"], batch_size=2)
    assert scores == pytest.approx({metric: run.result.metrics[metric]}, abs=1e-6)
    assert 0 < scores[metric] <= 1
    if name == "mini-clips":
        assert scores[metric] == 0.5  # the second frame of each video continues the first one
        assert member_presets.CountingSession.resets == 2


def test_a_name_is_registered_once(registered):
    with pytest.raises(ValueError, match="mini-clips: the catalogue already has"):
        register_preset(member_presets.clips)
