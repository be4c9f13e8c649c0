"""Compares how fast the members of the family learn: AP over training images and over seconds, from random weights.

    python runs/convergence.py train scenes --folder WORK --results docs/convergence --images 40000 4000
    python runs/convergence.py train BCCD --folder WORK --results RESULTS --images 32000 --image-size 192
    python runs/convergence.py show docs/convergence --out docs/images/convergence.png

All members have the same size (half-width ResNet-18, width 128, two encoder and three decoder layers, 50 queries). They
start from random weights and are trained on the same images with the same recipe, except for the batch size (`Member`).
Each member keeps its own attention, losses and matching. Each number of images is a separate run, whose learning rate
decays to zero at its end.

The dataset "scenes" contains drawn scenes of 128 pixels with 2 to 6 discs. The smallest disc is 15 pixels long. More
classes are too difficult for DETR in this time: with the twelve classes of default scenes its AP is below 0.01 after
30,000 images, with three classes 0.02 after 16,000.

RESULTS receives one file per run, with its curve. A run that already has a file is skipped, so the command can be
interrupted and repeated.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import opendetr
from opendetr.data.records import DataError
from opendetr.synthetic import EASY_SCENES, write_scenes
from opendetr.training.callbacks import read_metrics
from opendetr.training.run import resume, train
from opendetr.visualize import contact_sheet, draw_curves


@dataclass(frozen=True)
class Member:
    """A model of the catalogue and its batch size.

    For DETR and the two-stage model, batch sizes 4 and 8 were tried, and the one with the higher AP after the same
    number of images was kept. Conditional DETR uses that of DETR, the other models that of the two-stage model.
    """

    preset: str
    batch: int


MEMBERS = {
    "DETR": Member("detr-tiny", 8),
    "Conditional DETR": Member("conditional-detr-tiny", 8),
    "Deformable DETR": Member("deformable-detr-r50", 4),
    "+ box refinement": Member("deformable-detr-r50-refine", 4),
    "+ two-stage": Member("deformable-detr-r50-two-stage", 4),
}
SIZE = {
    "backbone": {"depth": 18, "half_width": True},
    "transformer": {
        "width": 128, "num_heads": 4, "ffn_width": 512, "encoder_layers": 2, "decoder_layers": 3, "dropout": 0.0
    },
    "num_queries": 50,
}  # fmt: skip
RECIPE = {
    "learning_rate": 5e-4, "backbone_learning_rate": 5e-4, "weight_decay": 1e-4, "clip_norm": 1.0,
    "schedule": "cosine", "sampling_rate_factor": 1.0, "precision": "auto", "ema_decay": 0.99, "num_evaluations": 20,
}  # fmt: skip
FLIPS = {"augmentation": {"multi_scale": False, "crop": False}}
BCCD_SPLITS = {"train_split": "trainval", "val_split": "test"}
EASY = "scenes"
REACHED = "images to DETR's AP", "fraction", "seconds", "fraction"


def run_all(
    data: str, folder: Path, results: Path, budgets: list[int], image_size: int, seeds: list[int], members: list[str]
) -> None:
    """Train all runs that have no result yet. The first seed of all members comes first."""
    source = _scenes(folder) if data == EASY else Path(data)
    results.mkdir(parents=True, exist_ok=True)
    for seed, member, images in itertools.product(seeds, members, budgets):
        name = f"{source.name}-{MEMBERS[member].preset}-{images}-{seed}"
        if not (results / f"{name}.json").exists():
            facts = _run(source, folder / name, member, seed, images, image_size)
            (results / f"{name}.json").write_text(json.dumps(facts) + "\n")


def _scenes(folder: Path) -> Path:
    scenes = folder / EASY
    if not (scenes / "annotations" / "panoptic_val.json").exists():
        write_scenes(scenes, counts={"train": 16000, "val": 300}, config=EASY_SCENES)
    return scenes


def _run(source: Path, out: Path, member: str, seed: int, images: int, image_size: int) -> dict[str, Any]:
    """Train one member, or resume its run. Returns the content of its file in RESULTS."""
    preset, batch = MEMBERS[member].preset, MEMBERS[member].batch
    steps = images // batch
    changes: dict[str, Any] = {
        "model": SIZE,
        "recipe": RECIPE | {"batch_size": batch, "warmup_steps": min(200, steps // 10)},
        "data": {"num_workers": 1, "side_multiple": 32, **(FLIPS if source.name == EASY else BCCD_SPLITS)},
    }
    print(f"{member}, {images:,} images, seed {seed}: {out}", flush=True)
    if out.exists():
        run = resume(out)
    else:
        run = train(
            source, model=preset, weights="none", out=out, changes=changes, seed=seed,
            image_size=image_size, max_steps=steps,
        )  # fmt: skip
    if run.result.interrupted:  # an incomplete curve must not be stored
        raise SystemExit(f"{out}: interrupted at step {run.result.step} of {steps}; repeat the command to continue")
    parameters = sum(parameter.numel() for parameter in opendetr.load(out).model.parameters())
    curve = list(_evaluations(read_metrics(out), batch))
    print(f"{member}, {images:,} images, seed {seed}: AP {run.result.metrics['AP']:.3f}", flush=True)
    facts = {
        "member": member,
        "data": source.name,
        "images": images,
        "batch": batch,
        "seed": seed,
        "parameters": parameters,
    }
    return facts | {"curve": curve}


def _evaluations(rows: list[dict[str, Any]], batch: int) -> Iterator[dict[str, Any]]:
    """For each evaluation: images and seconds of training before it, and its metrics."""
    seconds: list[float] = []
    for row in rows:
        if row["kind"] == "step":  # a long run has a row only for every second or third step
            seconds.append(row["seconds"])
        elif row["kind"] == "evaluation":
            metrics = {name: _rounded(row["metrics"].get(name)) for name in ("AP", "AP50", "AP_S", "AP_M", "AP_L")}
            trained = round(row["step"] * statistics.mean(seconds), 1)
            yield {"images": row["step"] * batch, "seconds": trained, **metrics}


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 5)


Runs = list[dict[str, Any]]


def show(folder: Path, out: Path | None) -> None:
    """Print a table for each dataset, and draw the curves of each member's longest runs, averaged over the seeds."""
    charts = []
    runs = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    if not runs:
        raise SystemExit(f"{folder}: contains no curves; create some with the command train --results {folder}")
    for data in sorted({run["data"] for run in runs}):
        groups = _groups([run for run in runs if run["data"] == data])
        _print_table(data, groups)
        # The longest runs of a member come first; in reversed order they overwrite the others.
        longest = {name: seeds for (name, _), seeds in reversed(groups.items())}
        for axis, label in (("images", "training images"), ("seconds", "seconds of training")):
            for metric in ("AP", "AP_S"):
                curves = {name: _mean_curve(longest[name], axis, metric) for name in MEMBERS if name in longest}
                charts.append(draw_curves(curves, x_label=label, y_label=f"{data}: {metric}"))
    if out is not None:
        contact_sheet(charts, columns=2).save(out)


def _groups(runs: Runs) -> dict[tuple[str, int], Runs]:
    """The runs of each member and number of images, one per seed. Most images first, then the order of `MEMBERS`."""
    order = list(MEMBERS)
    groups: dict[tuple[str, int], Runs] = {}
    for run in sorted(runs, key=lambda run: (-run["images"], order.index(run["member"]), run["seed"])):
        groups.setdefault((run["member"], run["images"]), []).append(run)
    return groups


def _mean_curve(runs: Runs, axis: str, metric: str) -> list[tuple[float, float]]:
    points = zip(*(run["curve"] for run in runs), strict=True)
    return [
        (statistics.mean(point[axis] for point in seeds), statistics.mean(point[metric] or 0.0 for point in seeds))
        for seeds in points
    ]


def _print_table(data: str, groups: dict[tuple[str, int], Runs]) -> None:
    """Print the final metrics, and the images and seconds until the mean curve reaches the final AP of DETR.

    The columns "fraction" divide these by the images and seconds of DETR.
    """
    member, images = next(iter(groups))
    if member != "DETR":
        raise SystemExit(f"{data}: there is no run of DETR with {images:,} images to compare with; train it first")
    detr = groups[member, images]
    detr_ap = _mean_curve(detr, "images", "AP")[-1][1]
    print(f"\n{data}: DETR ends at AP {detr_ap:.3f} after {images:,} images\n")
    heads = "model", "parameters", "images", "AP", "AP of each seed", "AP50", "AP_S", "AP_M", *REACHED
    print(f"| {' | '.join(heads)} |\n{'|---' * len(heads)}|")
    for (name, images), runs in groups.items():
        ap, *others = [f"{_mean_curve(runs, 'images', metric)[-1][1]:.3f}" for metric in ("AP", "AP50", "AP_S", "AP_M")]
        seeds = ", ".join(f"{run['curve'][-1]['AP']:.3f}" for run in runs)
        cells = [name, f"{runs[0]['parameters']:,}", f"{images:,}", ap, seeds, *others]
        for axis in ("images", "seconds"):
            reached = next((x for x, y in _mean_curve(runs, axis, "AP") if y >= detr_ap), None)
            total = _mean_curve(detr, axis, "AP")[-1][0]
            cells += ["not reached", "-"] if reached is None else [f"{reached:,.0f}", f"{reached / total:.2f}"]
        print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    training = commands.add_parser("train")
    training.add_argument("data", help=f"{EASY!r}, which the script draws, or the folder of BCCD")
    training.add_argument("--folder", type=Path, required=True, help="folder for the runs")
    training.add_argument("--results", type=Path, required=True, help="folder for the curves")
    training.add_argument(
        "--images", type=int, nargs="+", required=True, help="training images per run, repeated ones counted"
    )
    training.add_argument("--image-size", type=int, default=128)
    training.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    training.add_argument("--members", nargs="+", choices=list(MEMBERS), default=list(MEMBERS))
    showing = commands.add_parser("show")
    showing.add_argument("folder", type=Path)
    showing.add_argument("--out", type=Path, help="an image of the curves")
    options = parser.parse_args()
    if options.command == "train":
        try:
            run_all(
                options.data, options.folder, options.results, options.images, options.image_size, options.seeds,
                options.members,
            )  # fmt: skip
        except DataError as error:
            raise SystemExit(f"error: {error}") from None
    else:
        show(options.folder, options.out)
