"""Label efficiency: AP after fine-tuning with 5 to 100 % of the labels, with and without UP-DETR's pre-training.

    python runs/up_detr_label_efficiency.py train scenes --folder WORK --results docs/label-efficiency
    python runs/up_detr_label_efficiency.py train BCCD --folder WORK --results docs/label-efficiency
    python runs/up_detr_label_efficiency.py show docs/label-efficiency --out docs/images/label-efficiency.png

`train` first pre-trains `up-detr-tiny` on all training images without their labels. It then trains `detr-tiny` on a
part of the images with labels, from these weights and from random ones. Both have the same images, settings and number
of steps. Every run writes one JSON file. Runs that have one are not repeated, and an interrupted run is resumed, so
repeat the command until it prints "complete". No run is started that would end after `--minutes`. BCCD is trained on
"trainval" and evaluated on "test". With `--pretrained`, the weights are those of a run of `opendetr pretrain` on the
same training images.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from opendetr import open_data
from opendetr.data import DataError, DetectionData
from opendetr.data.formats.splits import chance
from opendetr.presets import get_preset
from opendetr.synthetic import write_scenes
from opendetr.training import Run, pretrain, resume, train
from opendetr.training.callbacks import read_metrics
from opendetr.training.checkpoint import load_checkpoint
from opendetr.visualize import draw_curves

SCENES = "scenes"
COUNTS = {"train": 4000, "val": 300}
BCCD_SPLITS = {"train_split": "trainval", "val_split": "test"}
PRETRAINED, SCRATCH = "pre-trained", "random"
# Of fine-tuning; both kinds of initial weights get the same.
RECIPE = {"learning_rate": 5e-4, "backbone_learning_rate": 5e-4, "batch_size": 8, "num_evaluations": 1}
METRICS = ("AP", "AP50", "AP75", "AP_S", "AP_M", "AP_L")
FOUND = ("found", "found_control", "patch_iou", "feature_variance")


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
    name = SCENES if options.data == SCENES else Path(options.data).name
    source = _scenes(options.folder) if name == SCENES else Path(options.data)
    data = open_data(source, **({} if name == SCENES else BCCD_SPLITS))
    clock = Clock(options.minutes)
    pretrained = _pretrained(options, name, data["train"], clock)
    for seed, percent, start in product(options.seeds, options.percent, (SCRATCH, PRETRAINED)):
        label = f"{name}-{percent}-{start}-{seed}"
        if (options.results / f"{label}.json").exists():
            continue
        if not clock.has_time():
            raise SystemExit("the time is over; repeat the command to continue")
        labelled = _labelled(options.folder / f"{name}-{percent}-{seed}", data, percent, seed)
        weights = pretrained if start == PRETRAINED else "none"
        run = clock.run(partial(_fine_tune, options, labelled, weights, options.folder / label, seed))
        facts = {"data": name, "percent": percent, "start": start, "seed": seed, "steps": options.steps}
        facts |= {"images": sum(1 for _ in open_data(labelled)["train"].images)}
        facts |= {metric: run.result.metrics.get(metric) for metric in METRICS} | {"seconds": run.result.seconds}
        _write(options.results / f"{label}.json", facts)
    print("complete")


def _scenes(folder: Path) -> Path:
    scenes = folder / SCENES
    if not (scenes / "annotations" / "panoptic_val.json").exists():
        write_scenes(scenes, counts=COUNTS)
    return scenes


def _pretrained(options: argparse.Namespace, name: str, data: DetectionData, clock: Clock) -> Path:
    """The run folder of the pre-training on all training images; it is made if it has no result and none is given."""
    out, result = options.folder / f"{name}-pretrained", options.results / f"{name}-pretraining.json"
    if options.pretrained is not None:
        _write_pretraining(result, name, len(data), options.pretrained)
        return Path(options.pretrained)
    images = options.folder / f"{name}-images"
    images.mkdir(parents=True, exist_ok=True)
    for image in data.images:
        link = images / image.path.name
        if not link.exists():
            link.symlink_to(image.path.resolve())
    if not (result.exists() and out.exists()):
        changes = [{"recipe": {"num_evaluations": 10}}, *_size(options), *options.set]
        _start_or_resume(
            out, clock, lambda: pretrain(images, weights="none", out=out, time=options.pretraining, changes=changes)
        )
        _write_pretraining(result, name, len(data), out)
    return out


def _write_pretraining(result: Path, name: str, num_images: int, run: Path) -> None:
    curve = [{"step": row["step"], **{metric: row["metrics"].get(metric) for metric in FOUND}}
             for row in read_metrics(run) if row["kind"] == "evaluation"]  # fmt: skip
    state = load_checkpoint(run / "last").facts
    facts = {"data": name, "images": num_images, "steps": state["step"], "seconds": state["seconds"]}
    _write(result, facts | {"curve": curve})


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


def _fine_tune(options: argparse.Namespace, data: Path, weights: str | Path, out: Path, seed: int) -> Run:
    changes: list[Any] = [{"recipe": RECIPE, "dense": {"weight": 1.0}}, *_size(options)]
    model = "detr-tiny" if weights == "none" else None
    return _start_or_resume(
        out,
        None,
        lambda: train(data, model=model, weights=weights, out=out, changes=changes, seed=seed, max_steps=options.steps),
    )


def _size(options: argparse.Namespace) -> list[dict[str, Any]]:
    """The changes that set the image size, if it is given."""
    if not options.image_size:
        return []
    data = get_preset("up-detr-tiny").data.resized(options.image_size)
    return [{"data": {"image_size": data.image_size, "max_size": data.max_size}}]


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
        print(f"{row['data']}: pre-trained on {row['images']:,} images, {row['steps']:,} steps: {found}")
    names = sorted({row["data"] for row in tuned})
    for name in names:
        _print_table(name, [row for row in tuned if row["data"] == name])
    if out is not None and names:
        most = max(names, key=lambda name: len({row["percent"] for row in tuned if row["data"] == name}))
        of_data = [row for row in tuned if row["data"] == most]
        curves = {f"{start} weights": list(_curve(of_data, start)) for start in (SCRATCH, PRETRAINED)}
        draw_curves(curves, x_label="labelled images, %", y_label=f"{most}: AP").save(out)


def _print_table(name: str, rows: Sequence[dict[str, Any]]) -> None:
    print(f"\n{name}: AP after fine-tuning, mean of the seeds (AP of each seed)\n")
    print(f"| labels | images | {SCRATCH} weights | {PRETRAINED} | difference |\n|---|---|---|---|---|")
    for percent in sorted({row["percent"] for row in rows}):
        of_percent = [row for row in rows if row["percent"] == percent]
        cells = [f"{percent} %", f"{of_percent[0]['images']:,}"]
        means = []
        for start in (SCRATCH, PRETRAINED):
            seeds = [row["AP"] or 0.0 for row in sorted(of_percent, key=lambda row: row["seed"])
                     if row["start"] == start]  # fmt: skip
            means.append(statistics.mean(seeds) if seeds else None)
            cells.append(f"{means[-1]:.3f} ({', '.join(f'{ap:.3f}' for ap in seeds)})" if seeds else "-")
        cells.append("-" if None in means else f"{means[1] - means[0]:+.3f}")
        print(f"| {' | '.join(cells)} |")


def _curve(rows: Sequence[dict[str, Any]], start: str) -> Iterator[tuple[float, float]]:
    for percent in sorted({row["percent"] for row in rows}):
        seeds = [row["AP"] or 0.0 for row in rows if (row["percent"], row["start"]) == (percent, start)]
        if seeds:
            yield percent, statistics.mean(seeds)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    training = commands.add_parser("train")
    training.add_argument("data", help=f"{SCENES!r}, which the script draws, or the folder of BCCD")
    training.add_argument("--folder", type=Path, required=True, help="folder for data and runs")
    training.add_argument("--results", type=Path, required=True, help="folder for the results")
    training.add_argument("--percent", type=int, nargs="+", default=[10, 100, 5, 20, 50], help="labelled images in %%")
    training.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    training.add_argument("--steps", type=int, default=4000, help="steps of every fine-tuning")
    training.add_argument("--pretraining", default="95m", help="time of the pre-training")
    training.add_argument("--pretrained", type=Path, help="the run folder of a pre-training on the same images")
    training.add_argument("--minutes", type=float, default=95, help="start no run that would end later")
    training.add_argument("--image-size", type=int, help="short side of the images; by default that of the models")
    training.add_argument(
        "--set", nargs="*", default=[], help="settings of the pre-training, such as data.patch_size=32"
    )
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
