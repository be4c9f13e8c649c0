"""How soon each member of the family learns: AP against images seen and against seconds, from nothing.

    python runs/convergence.py train scenes --folder WORK --results docs/convergence --images 40000 4000
    python runs/convergence.py train BCCD --folder WORK --results RESULTS --images 32000 --image-size 192
    python runs/convergence.py show docs/convergence --out docs/images/convergence.png

All members are of one size (half-width ResNet-18, width 128, two encoder and three decoder layers, 50 queries), see the
same images with the recipe of `opendetr train` from nothing, but for the images of a step (`Member`), and start from
random weights; each keeps its own attention, losses and matching. Every number of images is a run of its own, whose
learning rate falls to nothing at its end. "scenes" are drawn scenes of 128 pixels with 2 to 6 discs, the smallest 15
pixels long: with the twelve classes of default scenes DETR still has an AP below 0.01 after 30,000 images, with three
0.02 after 16,000. RESULTS gets one small file a run, its curve; a run whose file is there is not repeated, so that they
may be made on several days.
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
from opendetr.synthetic import SceneConfig, write_scenes
from opendetr.training.callbacks import read_metrics
from opendetr.training.run import resume, train
from opendetr.visualize import contact_sheet, draw_curves


@dataclass(frozen=True)
class Member:
    """A model of the catalogue, and the images of an optimiser step.

    Of 4 and 8 that with which it learns more from as many images, tried for DETR and two-stage; the others follow them.
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
SCENES = SceneConfig(size=128, min_objects=2, max_objects=6, min_scale=0.12, classes=("disc",))
EASY = "scenes"
PASSED = "images to DETR's AP", "share", "seconds", "share"


def run_all(
    data: str, folder: Path, results: Path, budgets: list[int], image_size: int, seeds: list[int], members: list[str]
) -> None:
    """Train what is not trained yet, seed by seed, so that the first seed of all members is there first."""
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
        write_scenes(scenes, counts={"train": 16000, "val": 300}, config=SCENES)
    return scenes


def _run(source: Path, out: Path, member: str, seed: int, images: int, image_size: int) -> dict[str, Any]:
    """Train one member; returns what is kept of it."""
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
    if run.result.interrupted:  # half a curve would pass for a whole one
        raise SystemExit(f"{out}: stopped at step {run.result.step} of {steps}; the same command goes on")
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
    """What was seen and how long it took, in training alone, before each evaluation; and its scores."""
    seconds: list[float] = []
    for row in rows:
        if row["kind"] == "step":  # of a long run, every second or third step has a row
            seconds.append(row["seconds"])
        elif row["kind"] == "evaluation":
            scores = {name: _rounded(row["metrics"].get(name)) for name in ("AP", "AP50", "AP_S", "AP_M", "AP_L")}
            trained = round(row["step"] * statistics.mean(seconds), 1)
            yield {"images": row["step"] * batch, "seconds": trained, **scores}


def _rounded(score: float | None) -> float | None:
    return None if score is None else round(score, 5)


Runs = list[dict[str, Any]]


def show(folder: Path, out: Path | None) -> None:
    """Print a table for each dataset, and draw the curves of each member's longest runs: the mean of the seeds."""
    charts = []
    runs = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    if not runs:
        raise SystemExit(f"{folder}: holds no curves; make some with the command train, --results {folder}")
    for data in sorted({run["data"] for run in runs}):
        groups = _groups([run for run in runs if run["data"] == data])
        _print_table(data, groups)
        # Of a member's runs those that come first, with the most images, are to stay.
        longest = {name: seeds for (name, _), seeds in reversed(groups.items())}
        for axis, label in (("images", "images seen"), ("seconds", "seconds of training")):
            for score in ("AP", "AP_S"):
                curves = {name: _mean_curve(longest[name], axis, score) for name in MEMBERS if name in longest}
                charts.append(draw_curves(curves, x_label=label, y_label=f"{data}: {score}"))
    if out is not None:
        contact_sheet(charts, columns=2).save(out)


def _groups(runs: Runs) -> dict[tuple[str, int], Runs]:
    """The seeds of each member and number of images: the most images first, members in the order of `MEMBERS`."""
    order = list(MEMBERS)
    groups: dict[tuple[str, int], Runs] = {}
    for run in sorted(runs, key=lambda run: (-run["images"], order.index(run["member"]), run["seed"])):
        groups.setdefault((run["member"], run["images"]), []).append(run)
    return groups


def _mean_curve(runs: Runs, axis: str, score: str) -> list[tuple[float, float]]:
    points = zip(*(run["curve"] for run in runs), strict=True)
    return [
        (statistics.mean(point[axis] for point in seeds), statistics.mean(point[score] or 0.0 for point in seeds))
        for seeds in points
    ]


def _print_table(data: str, groups: dict[tuple[str, int], Runs]) -> None:
    """Scores at the end, and when the mean curve passed what DETR ends with, as shares of DETR's images and seconds."""
    member, images = next(iter(groups))
    if member != "DETR":
        raise SystemExit(f"{data}: there is no run of DETR over {images:,} images to compare with")
    detr = groups[member, images]
    bar = _mean_curve(detr, "images", "AP")[-1][1]
    print(f"\n{data}: DETR ends at AP {bar:.3f} after {images:,} images\n")
    heads = "member", "parameters", "images", "AP", "of each seed", "AP50", "AP_S", "AP_M", *PASSED
    print(f"| {' | '.join(heads)} |\n{'|---' * len(heads)}|")
    for (name, images), runs in groups.items():
        ap, *others = [f"{_mean_curve(runs, 'images', score)[-1][1]:.3f}" for score in ("AP", "AP50", "AP_S", "AP_M")]
        seeds = ", ".join(f"{run['curve'][-1]['AP']:.3f}" for run in runs)
        cells = [name, f"{runs[0]['parameters']:,}", f"{images:,}", ap, seeds, *others]
        for axis in ("images", "seconds"):
            passed = next((x for x, y in _mean_curve(runs, axis, "AP") if y >= bar), None)
            whole = _mean_curve(detr, axis, "AP")[-1][0]
            cells += ["not", "-"] if passed is None else [f"{passed:,.0f}", f"{passed / whole:.2f}"]
        print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    training = commands.add_parser("train")
    training.add_argument("data", help=f"{EASY!r}, drawn for it, or the folder of BCCD")
    training.add_argument("--folder", type=Path, required=True, help="where the runs are kept")
    training.add_argument("--results", type=Path, required=True, help="where the curves are kept")
    training.add_argument("--images", type=int, nargs="+", required=True, help="images that a run sees")
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
