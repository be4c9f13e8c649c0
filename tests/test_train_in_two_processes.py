"""What two processes share: batch-norm statistics, substituted images, dropout's seed, panoptic scores.

This file is also the program that trains (`python test_train_in_two_processes.py FOLDER`): it imports everything once
and then forks the processes.
"""

from __future__ import annotations

import itertools
import json
import logging
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

import opendetr
from folders import write_image
from opendetr import distributed
from opendetr.categories import Categories
from opendetr.data.config import AugmentationConfig, DataConfig
from opendetr.data.formats.recognise import open_split
from opendetr.data.loader import train_loader
from opendetr.data.records import DetectionData, ImageRecord, ObjectRecord
from opendetr.inference.predictor import Predictor
from opendetr.models.masks import MaskedDetector
from opendetr.presets import miniature
from opendetr.recipe import Recipe
from opendetr.scoring import SoftmaxNoObject
from opendetr.structures import Batch, ImageBatch, LazyMasks, Output, Predictions
from opendetr.synthetic import write_scenes
from opendetr.training.diagnosis import diagnose_run
from opendetr.training.events import Callback, StepTaken
from opendetr.training.trainer import Trainer
from stand_ins import CountingTask, RandomLoader
from test_processes import ENVIRONMENT, in_processes, needs_fork

STEPS = 4
RECIPE = Recipe(learning_rate=1e-2, backbone_learning_rate=1e-2, batch_size=4, max_steps=STEPS, num_evaluations=STEPS,
                save_every=1000)  # fmt: skip


class Steps(Callback):
    """Keeps the loss, the gradient's norm and the number of images of every step."""

    def __init__(self) -> None:
        self.steps: list[tuple[float, float, int]] = []

    def on_step(self, event: StepTaken) -> None:
        self.steps.append((event.loss, event.gradient_norm, event.num_images))


def keep(found: Any, folder: Path) -> None:
    """Write what a process has found, for the tests to read."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(found, folder / f"process-{distributed.rank()}.pt")


def kept(folder: Path, rank: int = 0) -> Any:
    return torch.load(folder / f"process-{rank}.pt")


def expected_statistics(runs: Path, weights: str) -> list[tuple[Tensor, Tensor]]:
    """Mean and variance of the batch norm after every step of the main process; for an average of the weights, too."""
    average, rows = (torch.zeros(8), torch.ones(8)), []
    for step, current in enumerate(kept(runs / "two" / weights)["statistics"]):
        decay = min(0.5, (1 + step) / (10 + step)) if weights == "averaged" else 0.0
        average = tuple(decay * before + (1 - decay) * now for before, now in zip(average, current, strict=True))
        rows.append(average)
    return rows


# -------------------------------------------------------------------------------------------------- batch norm, dropout


class SharingLoader(RandomLoader):
    """Each process gets its own part of every batch, of sizes of its own."""

    def batch(self, epoch: int, position: int) -> Batch:
        whole = super().batch(epoch, position)
        return whole.split(distributed.world_size())[distributed.rank()]


class WatchedTask(CountingTask):
    """Keeps what its dropout leaves, and counts the statistics of its batch norm by hand."""

    def __init__(self) -> None:
        super().__init__(dropout=0.5)
        self.left: list[tuple[bool, ...]] = []
        self.statistics = [(torch.zeros(8), torch.ones(8))]
        self.backbone[1].register_forward_pre_hook(self.watch)

    def watch(self, norm: nn.Module, inputs: tuple[Tensor]) -> None:
        (x,) = inputs
        mean, variance = self.statistics[-1]
        self.statistics.append(
            (0.9 * mean + 0.1 * x.detach().mean((0, 2, 3)), 0.9 * variance + 0.1 * x.detach().var((0, 2, 3)))
        )

    def forward(self, batch: Batch, normaliser: float) -> dict[str, Tensor]:
        self.left.append(tuple(self.head[0](torch.ones(64)).bool().tolist()))
        return super().forward(batch, normaliser)


def train_batch_norm(folder: Path, ema_decay: float) -> None:
    task, evaluated = WatchedTask(), []

    def evaluate(deployed: nn.Module) -> dict[str, float]:
        evaluated.append({name: buffer.clone() for name, buffer in deployed.named_buffers()})
        return {"AP": float(len(evaluated))}

    recipe = replace(RECIPE, ema_decay=ema_decay)
    Trainer(task, SharingLoader(), recipe, folder, evaluate=evaluate, device="cpu").train()
    keep({"evaluated": evaluated, "statistics": task.statistics[1:], "left": task.left}, folder)


# -------------------------------------------------------------------------------------------------- a substituted image


UNREADABLE = 2  # an upright image, as all are but the next, which stands in for it


def damaged_data(folder: Path) -> DetectionData:
    """Eight images, one of which cannot be read, with one object more in each."""
    images = []
    for index in range(8):
        height, width = (32, 64) if index == UNREADABLE + 1 else (64, 32)
        path = folder / f"{index}.png"
        if index == UNREADABLE:
            path.write_bytes(b"no image")
        else:
            write_image(path, height, width, seed=index)
        objects = [ObjectRecord(id=n, category_id=1, box=(2, 3, 20, 25), area=500) for n in range(index + 1)]
        images.append(ImageRecord(id=index, path=path, height=height, width=width, objects=tuple(objects)))
    return DetectionData(
        categories=Categories.from_names(("disc",)), images=tuple(images), split="train", folder=folder
    )


class WatchedLoader:
    """Keeps the images of each batch and the shape that the loader pads them to."""

    def __init__(self, loader: Any) -> None:
        self._loader = loader
        self.met: list[tuple[tuple[int, ...], tuple[int, int]]] = []

    def __len__(self) -> int:
        return len(self._loader)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        for batch in self._loader.epoch(epoch, start):
            ids = tuple(target.image_id for target in batch.targets)
            self.met.append((ids, tuple(batch.images.pixels.shape[2:])))
            yield batch


def train_with_a_substitute(data: DetectionData, folder: Path) -> None:
    """A task that notices padding: it takes the mean over whole images."""
    task = CountingTask(dropout=0.0)
    task.backbone[1] = nn.GroupNorm(2, 8)
    config = DataConfig(num_workers=0, augmentation=AugmentationConfig(crop=False)).resized(32)
    share = (distributed.rank(), distributed.world_size())
    loader = WatchedLoader(train_loader(data, config, batch_size=4, seed=0, share=share))
    steps = Steps()
    Trainer(task, loader, replace(RECIPE, max_steps=2 * STEPS), folder, callbacks=[steps], device="cpu").train()
    weights = {name: tensor.clone() for name, tensor in task.state_dict().items()}
    keep({"met": loader.met, "steps": steps.steps, "weights": weights}, folder)


# ------------------------------------------------------------------------------------------------------ skipped images


class Messages(logging.Handler):
    """Keeps what is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


def train_on_skipped_images(data: Path, folder: Path) -> None:
    """One step with all images of the dataset, then an evaluation."""
    logged = Messages()
    logging.getLogger("opendetr").addHandler(logged)
    changes = {"data": {"num_workers": 0}, "model": {"num_queries": 10}}
    opendetr.train(data, out=folder / "run", model="detr-tiny", weights="none", changes=[changes], max_steps=1,
                   batch_size=8, image_size=64, device="cpu", say=print_nothing)  # fmt: skip
    keep(logged.messages, folder)


def print_nothing(_line: str) -> None:
    pass


def write_damaged_scenes(folder: Path) -> None:
    """Eight training images, of which four cannot be read, and two validation images."""
    write_scenes(folder, counts={"train": 8, "val": 2})
    for path in sorted((folder / "train").glob("*.png"))[::2]:
        path.write_bytes(b"no image")


# ------------------------------------------------------------------------------------------------------ panoptic scores


REDS = (40, 100, 160, 220)
CLASSES = [{"id": number, "name": name, "isthing": isthing}
           for number, (name, isthing) in enumerate([("cat", 1), ("dog", 1), ("sky", 0), ("sea", 0)], 1)]  # fmt: skip


class RedReader(MaskedDetector):
    """Finds a segment of each class where an image has the red of that class."""

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.scoring = SoftmaxNoObject()
        self.red = torch.empty(0)
        self.num_images = 0

    def forward(self, images: ImageBatch) -> Output:
        self.red = (images.pixels[:, 0] * 0.229 + 0.485) * 255
        self.num_images += len(images)
        logits = 20 * torch.eye(4, 5).expand(len(images), 4, 5)
        boxes = torch.full((len(images), 4, 4), 0.5)
        output = Output((Predictions(logits, boxes, self.scoring),), torch.zeros(1, 1, 1, 1), (), ())
        return replace(output, masks=LazyMasks(partial(self.masks, output), images.shape))

    def masks(self, output: Output, image: Tensor, query: Tensor) -> Tensor:
        return (20 - (self.red[image] - torch.tensor(REDS)[query][:, None, None]).abs())[:, 2::4, 2::4]


def write_panoptic_data(folder: Path) -> DetectionData:
    """Four images that show ever less of the cat that their ground truth has; the last one has no dog but two cats."""
    maps = folder / "annotations" / "panoptic_val"
    maps.mkdir(parents=True)
    (folder / "val").mkdir()
    images, annotations = [], []
    for number in range(1, 5):
        name = f"{number}.png"
        truth = np.full((64, 64), 3, dtype=np.uint8)
        truth[32:] = 4
        truth[8:24, 8:40] = 1
        truth[40:56, 8:40] = 2
        shown = truth.copy()
        shown[8:24, 40 - 4 * number : 40] = 3  # part of the cat
        if number == 4:
            shown[shown == 2] = 1
        Image.fromarray(np.take([0, *REDS], shown)[..., None].repeat(3, -1).astype(np.uint8)).save(
            folder / "val" / name
        )
        Image.fromarray(np.stack([truth, 0 * truth, 0 * truth], -1)).save(maps / name)
        images.append({"id": number, "file_name": name, "height": 64, "width": 64})
        info = [segment_info(truth, label) for label in (1, 2, 3, 4)]
        annotations.append({"image_id": number, "file_name": name, "segments_info": info})
    content = {"images": images, "annotations": annotations, "categories": CLASSES}
    (folder / "annotations" / "panoptic_val.json").write_text(json.dumps(content))
    return open_split(folder, "val", masks="panoptic")


def segment_info(truth: np.ndarray, label: int) -> dict[str, Any]:
    rows, columns = np.nonzero(truth == label)
    left, top, right, bottom = (int(side) for side in (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1))
    box = [left, top, right - left, bottom - top]
    return {"id": label, "category_id": label, "bbox": box, "area": len(rows), "iscrowd": 0}


def score_maps(data: DetectionData, folder: Path) -> None:
    preset = miniature("detr-tiny-panoptic")
    model = RedReader()
    scores = Predictor(model, preset, data.categories, device="cpu").evaluate(data, batch_size=2)
    keep({"metrics": scores.metrics, "per_class": scores.panoptic_per_class, "images": model.num_images}, folder)


# ------------------------------------------------------------------------------------------------------------ the tests


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    (folder / "images").mkdir()
    write_damaged_scenes(folder / "scenes")
    damaged, maps = damaged_data(folder / "images"), write_panoptic_data(folder / "maps")

    def work(name: str) -> None:
        torch.set_num_threads(1)
        train_with_a_substitute(damaged, folder / name / "substitute")
        score_maps(maps, folder / name / "panoptic")
        if name == "two":
            train_on_skipped_images(folder / "scenes", folder / name / "skipped")
            train_batch_norm(folder / name / "trained", 0.0)
            train_batch_norm(folder / name / "averaged", 0.5)

    print(json.dumps(in_processes(2, lambda: work("two")) + in_processes(1, lambda: work("one"))))


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    command = [sys.executable, __file__, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=ENVIRONMENT, timeout=120)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [0, 0, 0], done.stderr
    return folder


@needs_fork
@pytest.mark.parametrize("weights", ["trained", "averaged"])
def test_the_main_process_has_the_batch_norm_that_is_evaluated(runs, weights):
    main, other = (kept(runs / "two" / weights, rank) for rank in (0, 1))
    assert len(main["evaluated"]) == len(other["evaluated"]) == STEPS
    for step, (mean, variance) in enumerate(expected_statistics(runs, weights)):
        for evaluated in (main["evaluated"][step], other["evaluated"][step]):
            torch.testing.assert_close(evaluated["backbone.1.running_mean"], mean)
            torch.testing.assert_close(evaluated["backbone.1.running_var"], variance)
            assert evaluated["backbone.1.num_batches_tracked"] == step + 1
        assert not torch.allclose(other["statistics"][step][0], mean, atol=1e-3)  # it has seen other images


@needs_fork
@pytest.mark.parametrize("weights", ["trained", "averaged"])
@pytest.mark.parametrize("checkpoint", ["last", "best"])
def test_the_main_process_has_the_batch_norm_that_is_saved(runs, weights, checkpoint):
    saved = load_file(runs / "two" / weights / checkpoint / "model.safetensors")
    mean, variance = expected_statistics(runs, weights)[-1]
    torch.testing.assert_close(saved["backbone.1.running_mean"], mean)
    torch.testing.assert_close(saved["backbone.1.running_var"], variance)


@needs_fork
def test_dropout_differs_between_processes(runs):
    left = [kept(runs / "two" / "trained", rank)["left"] for rank in (0, 1)]
    assert len({*left[0], *left[1]}) == 2 * STEPS


@needs_fork
def test_a_substitute_in_one_process_changes_nothing_for_two(runs):
    """The substitute is wider than what it stands in for, so that the shares have to agree on padding."""
    whole = kept(runs / "one" / "substitute")
    main, other = (kept(runs / "two" / "substitute", rank) for rank in (0, 1))
    pairs = list(zip(main["met"], other["met"], strict=True))
    met = [ids for ids, _ in whole["met"]]
    assert [ours + theirs for (ours, _), (theirs, _) in pairs] == met
    assert Counter(itertools.chain(*met)) == {UNREADABLE + 1: 8, **dict.fromkeys((0, 1, 4, 5, 6, 7), 4)}
    assert any(ours != theirs for (_, ours), (_, theirs) in pairs)  # there was padding to agree on
    assert len(main["steps"]) == 2 * STEPS
    for step, expected in zip(main["steps"], whole["steps"], strict=True):
        assert step == pytest.approx(expected, rel=1e-4)
        assert step[2] == 4
    for each in (main, other):
        for name, tensor in whole["weights"].items():
            torch.testing.assert_close(each["weights"][name], tensor, rtol=1e-4, atol=1e-5)


@needs_fork
def test_the_main_process_logs_what_any_process_skipped_once(runs):
    main, other = (kept(runs / "two" / "skipped", rank) for rank in (0, 1))
    names = [re.fullmatch(r"skipped: .*/(\w+\.png): .*", message)[1] for message in main]
    damaged = [path.name for path in (runs / "scenes").rglob("*.png") if path.read_bytes() == b"no image"]
    assert sorted(names) == sorted(damaged) and len(damaged) == 4
    assert other == []


@needs_fork
def test_a_run_of_two_processes_can_be_diagnosed(runs):
    lines = diagnose_run(runs / "two" / "skipped" / "run", device="cpu")
    assert "in 1 step; probable cause:" in lines[0]


@needs_fork
def test_panoptic_scores_are_those_of_the_images_of_both_processes(runs):
    whole = kept(runs / "one" / "panoptic")
    for rank in (0, 1):
        scores = kept(runs / "two" / "panoptic", rank)
        assert scores["images"] == 2
        assert scores["metrics"] == pytest.approx(whole["metrics"])
        for name, qualities in whole["per_class"].items():
            assert scores["per_class"][name] == pytest.approx(qualities), name
    recognised = {name: qualities["RQ"] for name, qualities in whole["per_class"].items()}
    assert recognised == pytest.approx({"cat": 3 / 4, "dog": 6 / 7, "sky": 1, "sea": 1})


if __name__ == "__main__":
    main(Path(sys.argv[1]))
