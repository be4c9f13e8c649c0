"""Label efficiency: AP after fine-tuning with 5 to 100 % of the labels, with and without UP-DETR's pre-training.

    python runs/up_detr_label_efficiency.py train BCCD --folder WORK --results docs/label-efficiency
    python runs/up_detr_label_efficiency.py train scenes --folder WORK --results docs/label-efficiency
    python runs/up_detr_label_efficiency.py show docs/label-efficiency --out docs/images/label-efficiency.png

`train` first pre-trains `up-detr-tiny` on all training images without their labels. It then trains `detr-tiny` on a
part of the images with labels, from these weights and from random ones. Both have the same images, settings and number
of steps (`SETTINGS`); these were chosen for random weights. Every run writes one JSON file. Runs that have one are not
repeated, and an interrupted run is resumed, so repeat the command until it prints "complete". No run is started that
would end after `--minutes`.

BCCD is trained on "trainval" and evaluated on "test". The scenes have discs on drawn backgrounds: with the twelve
classes of default scenes, DETR learns nothing in minutes (`runs/convergence.py`).

There are two kinds of pre-training (`PRETRAININGS`): one with a query for each patch, after which the decoder of the
detector is random, and one with several queries, after which the decoder is kept. `--starts` selects what is compared.
With `--pretrained`, the weights are those of a run of `opendetr pretrain` on the same training images.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from opendetr import open_data
from opendetr.data import DataError, DetectionData
from opendetr.data.formats.splits import chance
from opendetr.presets import get_preset
from opendetr.synthetic import SceneConfig, write_scenes
from opendetr.training import Run, pretrain, resume, train
from opendetr.training.callbacks import read_metrics
from opendetr.training.checkpoint import load_checkpoint
from opendetr.visualize import draw_curves

SCENES = "scenes"
SCENE = SceneConfig(size=64, min_objects=1, max_objects=3, min_scale=0.25, max_scale=0.6, classes=("disc",))
COUNTS = {"train": 2000, "val": 300}
BCCD_SPLITS = {"train_split": "trainval", "val_split": "test"}
RANDOM, PRETRAINED, SEVERAL = "random", "pre-trained", "several"
PRETRAININGS: dict[str, dict[str, Any]] = {
    PRETRAINED: {},
    SEVERAL: {"query_shuffle": False},  # and fewer patches, see `Setting.num_groups`
}
"""Changes of the model in pre-training, for each kind of it."""
TITLES = {RANDOM: "random weights", PRETRAINED: "pre-trained", SEVERAL: "pre-trained, several queries per patch"}
METRICS = ("AP", "AP50", "AP75", "AP_S", "AP_M", "AP_L")
FOUND = ("found", "found_control", "patch_iou", "feature_variance")


@dataclass(frozen=True, kw_only=True)
class Setting:
    """The settings of a dataset. In fine-tuning, all initial weights have the same.

    Attributes:
        image_size: short side of the images in pixels.
        steps: steps of fine-tuning.
        batch: images per step, of fine-tuning.
        learning_rate: learning rate of fine-tuning, chosen for random weights.
        num_queries: number of queries; by default that of the models.
        augmentation: changes of the augmentation in fine-tuning.
        pretraining_steps: steps of the pre-training, of 8 images.
        num_patches: patches of an image in pre-training.
        num_groups: largest number of patches where each has several queries.
    """

    image_size: int
    steps: int
    batch: int
    learning_rate: float
    num_queries: int = 50
    augmentation: dict[str, Any] = field(default_factory=dict)
    pretraining_steps: int
    num_patches: int = 5
    num_groups: int

    def size(self) -> list[dict[str, Any]]:
        """The changes of all runs: the size of the images, and the number of queries."""
        data = get_preset("up-detr-tiny").data.resized(self.image_size)
        sizes = {"image_size": data.image_size, "max_size": data.max_size}
        return [{"data": sizes, "model": {"num_queries": self.num_queries}}]

    def pretraining(self, start: str) -> list[dict[str, Any]]:
        """The changes of a kind of pre-training."""
        groups = self.num_groups if start == SEVERAL else self.num_queries
        return [
            {"data": {"patch_size": 32, "num_patches": self.num_patches}},
            {"model": {"num_patches": groups, **PRETRAININGS[start]}, "recipe": {"num_evaluations": 10}},
        ]

    def fine_tuning(self) -> list[dict[str, Any]]:
        """The changes of fine-tuning, the same for all initial weights."""
        rates = {"learning_rate": self.learning_rate, "backbone_learning_rate": self.learning_rate}
        recipe = {**rates, "batch_size": self.batch, "num_evaluations": 1}
        return [{"recipe": recipe, "dense": {"weight": 1.0}, "data": {"augmentation": self.augmentation}}]


SETTINGS = {
    "bccd": Setting(image_size=128, steps=2000, batch=8, learning_rate=5e-4, pretraining_steps=3394, num_groups=10),
    SCENES: Setting(
        image_size=64,
        steps=1200,
        batch=16,
        learning_rate=1e-3,
        num_queries=10,
        augmentation={"multi_scale": False, "crop": False},
        pretraining_steps=8000,
        num_groups=5,
    ),
}


class Clock:
    """Says whether another run fits into the time of this call.

    Args:
        minutes: the time of this call.
    """

    def __init__(self, minutes: float) -> None:
        self._began = time.perf_counter()
        self._seconds = 60 * minutes
        self._longest = 0.0

    def has_time(self) -> bool:
        """Whether a run as long as the longest so far would end in time."""
        return time.perf_counter() - self._began + self._longest < self._seconds

    def run(self, work: Callable[[], Run]) -> Run:
        """Do the work, and remember how long it took."""
        began = time.perf_counter()
        run = work()
        self._longest = max(self._longest, time.perf_counter() - began)
        return run


def train_all(options: argparse.Namespace) -> None:
    """Make the runs that have no result yet: the pre-training, then the first seed of all fractions."""
    options.results.mkdir(parents=True, exist_ok=True)
    name = SCENES if options.data == SCENES else Path(options.data).name.lower()
    if name not in SETTINGS:
        raise SystemExit(f"{options.data}: has no settings; add them to SETTINGS, or use {' or '.join(SETTINGS)}")
    setting = SETTINGS[name]
    source = _scenes(options.folder) if name == SCENES else Path(options.data)
    data = open_data(source, **({} if name == SCENES else BCCD_SPLITS))
    clock = Clock(options.minutes)
    weights = {start: "none" if start == RANDOM else _pretrained(options, name, start, data["train"], clock)
               for start in options.starts}  # fmt: skip
    for seed, percent, start in product(options.seeds, options.percent, options.starts):
        label = f"{name}-{percent}-{start}-{seed}"
        if (options.results / f"{label}.json").exists():
            continue
        if not clock.has_time():
            raise SystemExit("the time is over; repeat the command to continue")
        labelled = _labelled(options.folder / f"{name}-{percent}-{seed}", data, percent, seed)
        run = clock.run(partial(_fine_tune, setting, labelled, weights[start], options.folder / label, seed))
        facts = {"data": name, "percent": percent, "start": start, "seed": seed, "steps": setting.steps}
        facts |= {"images": sum(1 for _ in open_data(labelled)["train"].images)}
        facts |= {metric: run.result.metrics.get(metric) for metric in METRICS} | {"seconds": run.result.seconds}
        _write(options.results / f"{label}.json", facts)
    print("complete")


def _scenes(folder: Path) -> Path:
    scenes = folder / SCENES
    if not (scenes / "annotations" / "panoptic_val.json").exists():
        write_scenes(scenes, counts=COUNTS, config=SCENE)
    return scenes


def _pretrained(options: argparse.Namespace, name: str, start: str, data: DetectionData, clock: Clock) -> Path:
    """The run folder of the pre-training on all training images; it is made if it has no result and none is given."""
    out, result = options.folder / f"{name}-{start}", options.results / f"{name}-pretraining-{start}.json"
    if options.pretrained is not None:
        if not result.exists():
            _write_pretraining(result, name, start, len(data), options.pretrained)
        return Path(options.pretrained)
    images = options.folder / f"{name}-images"
    images.mkdir(parents=True, exist_ok=True)
    for image in data.images:
        link = images / image.path.name
        if not link.exists():
            link.symlink_to(image.path.resolve())
    if not (result.exists() and out.exists()):
        setting = SETTINGS[name]
        changes = [*setting.size(), *setting.pretraining(start)]
        steps = setting.pretraining_steps
        _start_or_resume(
            out, clock, lambda: pretrain(images, weights="none", out=out, max_steps=steps, changes=changes)
        )
        _write_pretraining(result, name, start, len(data), out)
    return out


def _write_pretraining(result: Path, name: str, start: str, num_images: int, run: Path) -> None:
    curve = [{"step": row["step"], **{metric: row["metrics"].get(metric) for metric in FOUND}}
             for row in read_metrics(run) if row["kind"] == "evaluation"]  # fmt: skip
    state = load_checkpoint(run / "last").facts
    facts = {"data": name, "pretraining": start, "images": num_images}
    _write(result, facts | {"steps": state["step"], "seconds": state["seconds"], "curve": curve})


def _labelled(folder: Path, data: dict[str, DetectionData], percent: int, seed: int) -> Path:
    """A COCO folder with the labels of some of the training images, and of all validation images."""
    (folder / "annotations").mkdir(parents=True, exist_ok=True)
    train_data = data["train"]
    count = max(1, round(len(train_data) * percent / 100))
    order = sorted(train_data.images, key=lambda image: chance(seed, image.path.name))
    chosen = {image.id for image in order[:count]}
    part = train_data.subset([image for image in train_data.images if image.id in chosen], "train")
    for split, content in (("train", part), ("val", data["val"])):
        (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(content.to_coco()))
    if not (folder / "images").exists():
        (folder / "images").symlink_to(train_data.folder.resolve())
    return folder


def _fine_tune(setting: Setting, data: Path, weights: str | Path, out: Path, seed: int) -> Run:
    changes = [*setting.size(), *setting.fine_tuning()]
    model = "detr-tiny" if weights == "none" else None
    return _start_or_resume(
        out,
        None,
        lambda: train(data, model=model, weights=weights, out=out, changes=changes, seed=seed, max_steps=setting.steps),
    )


def _start_or_resume(out: Path, clock: Clock | None, start: Callable[[], Run]) -> Run:
    work = (lambda: resume(out)) if (out / "config.yaml").exists() else start
    run = work() if clock is None else clock.run(work)
    if run.result.interrupted:
        raise SystemExit(f"{out}: interrupted after {run.result.step} steps; repeat the command to continue")
    return run


def _write(path: Path, facts: dict[str, Any]) -> None:
    rounded = {name: round(value, 5) if isinstance(value, float) else value for name, value in facts.items()}
    path.write_text(json.dumps(rounded) + "\n", encoding="utf-8")
    print(path.name, path.read_text(encoding="utf-8").strip(), flush=True)


# ---------------------------------------------------------------------------------------------------------------- show


def show(results: Path, out: Path | None) -> None:
    """Print the tables, and draw the curve of the dataset with the most fractions."""
    rows = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(results.glob("*.json"))]
    tuned, pretraining = ([row for row in rows if ("percent" in row) is of_tuning] for of_tuning in (True, False))
    if not rows:
        raise SystemExit(f"{results}: contains no results; make some with the command train --results {results}")
    for row in pretraining:
        last = row["curve"][-1] if row["curve"] else {}
        found = ", ".join(f"{name} {last[name]:.3f}" for name in FOUND if last.get(name) is not None)
        title = TITLES[row["pretraining"]]
        print(f"{row['data']}: {title} on {row['images']:,} images, {row['steps']:,} steps: {found}")
    names = sorted({row["data"] for row in tuned})
    for name in names:
        _print_table(name, [row for row in tuned if row["data"] == name])
    if out is not None and names:
        most = max(names, key=lambda name: len({row["percent"] for row in tuned if row["data"] == name}))
        of_data = [row for row in tuned if row["data"] == most]
        curves = {TITLES[start]: list(_curve(of_data, start)) for start in _starts(of_data)}
        draw_curves(curves, x_label="labelled images, %", y_label=f"{most}: AP").save(out)


def _starts(rows: Sequence[dict[str, Any]]) -> list[str]:
    """The kinds of initial weights of some results."""
    return [start for start in TITLES if any(row["start"] == start for row in rows)]


def _print_table(name: str, rows: Sequence[dict[str, Any]]) -> None:
    starts = _starts(rows)
    heads = ["labels", "images"]
    for start in starts:
        heads += [TITLES[start]] if start == RANDOM else [TITLES[start], "difference"]
    print(f"\n{name}: AP after fine-tuning, mean of the seeds (AP of each seed)\n")
    print(f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
    for percent in sorted({row["percent"] for row in rows}):
        of_percent = [row for row in rows if row["percent"] == percent]
        cells = [f"{percent} %", f"{of_percent[0]['images']:,}"]
        for start in starts:
            seeds = _by_seed(of_percent, start)
            each = ", ".join(f"{ap:.3f}" for ap in seeds.values())
            cells.append(f"{statistics.mean(seeds.values()):.3f} ({each})" if seeds else "-")
            if start != RANDOM:
                cells.append(_difference(_by_seed(of_percent, RANDOM), seeds))
        print(f"| {' | '.join(cells)} |")


def _by_seed(rows: Sequence[dict[str, Any]], start: str) -> dict[int, float]:
    """The AP of each seed."""
    return {row["seed"]: row["AP"] or 0.0 for row in sorted(rows, key=lambda row: row["seed"]) if row["start"] == start}


def _difference(random: dict[int, float], other: dict[int, float]) -> str:
    """The difference of the means over the seeds that both have."""
    both = random.keys() & other.keys()
    return f"{statistics.mean(other[seed] - random[seed] for seed in both):+.3f}" if both else "-"


def _curve(rows: Sequence[dict[str, Any]], start: str) -> Iterator[tuple[float, float]]:
    for percent in sorted({row["percent"] for row in rows}):
        seeds = _by_seed([row for row in rows if row["percent"] == percent], start)
        if seeds:
            yield percent, statistics.mean(seeds.values())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    training = commands.add_parser("train")
    training.add_argument("data", help=f"{SCENES!r}, which the script draws, or the folder of BCCD")
    training.add_argument("--folder", type=Path, required=True, help="folder for data and runs")
    training.add_argument("--results", type=Path, required=True, help="folder for the results")
    training.add_argument("--percent", type=int, nargs="+", default=[10, 100, 5, 20, 50], help="labelled images in %%")
    training.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    training.add_argument("--starts", nargs="+", choices=list(TITLES), default=[RANDOM, PRETRAINED])
    training.add_argument("--pretrained", type=Path, help="the run folder of a pre-training on the same images")
    training.add_argument("--minutes", type=float, default=95, help="start no run that would end later")
    showing = commands.add_parser("show")
    showing.add_argument("results", type=Path)
    showing.add_argument("--out", type=Path, help="an image of the curve")
    options = parser.parse_args()
    if options.command == "train":
        try:
            train_all(options)
        except DataError as error:
            raise SystemExit(f"error: {error}") from None
    else:
        show(options.results, options.out)
