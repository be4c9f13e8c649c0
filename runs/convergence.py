"""How soon each member of the family learns: AP against images seen and against seconds, from nothing.

    python runs/convergence.py train scenes --folder WORK --results RESULTS --images 400000
    python runs/convergence.py train BCCD --folder WORK --results RESULTS --images 32000 --image-size 192
    python runs/convergence.py show RESULTS --out docs/pictures/convergence.png

All members are of one size (half-width ResNet-18, width 128, two encoder and three decoder layers, 50 queries), see the
same images with the same recipe, that of `opendetr train` from nothing, and start from random weights; each keeps its
own attention, losses and matching. "scenes" are drawn scenes of 128 pixels with 1 to 6 objects of three classes, the
smallest 15 pixels long: on default scenes DETR still has an AP below 0.01 after 30,000 images. RESULTS gets one small
file a run, its curve; a run whose file is there is not repeated, so that they may be made on several days.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import opendetr
from opendetr.data.scenes import SceneConfig, write_scenes
from opendetr.observers import read_metrics
from opendetr.training import resume, train
from opendetr.visualize import contact_sheet, draw_curves

MEMBERS = {
    "DETR": "detr-tiny",
    "Conditional DETR": "conditional-detr-tiny",
    "Deformable DETR": "deformable-detr-r50",
    "+ box refinement": "deformable-detr-r50-refine",
    "+ two-stage": "deformable-detr-r50-two-stage",
}
SIZE = {
    "backbone": {"depth": 18, "half_width": True},
    "transformer": {
        "width": 128, "num_heads": 4, "ffn_width": 512, "encoder_layers": 2, "decoder_layers": 3, "dropout": 0.0
    },
    "num_queries": 50,
}  # fmt: skip
BATCH = 16
RECIPE = {
    "learning_rate": 5e-4, "backbone_learning_rate": 5e-4, "weight_decay": 1e-4, "clip_norm": 1.0, "batch_size": BATCH,
    "schedule": "cosine", "warmup_steps": 200, "precision": "auto", "ema_decay": 0.99, "num_evaluations": 20,
}  # fmt: skip
FLIPS = {"augmentation": {"multi_scale": False, "crop": False}}
BCCD_SPLITS = {"train_split": "trainval", "val_split": "test"}
SCENES = SceneConfig(size=128, max_objects=6, min_scale=0.12, classes=("ring", "square", "star"))
EASY = "scenes"


def run_all(
    data: str, folder: Path, results: Path, images: int, image_size: int, seeds: list[int], members: list[str]
) -> None:
    """Train what is not trained yet, seed by seed, so that the first seed of all members is there first."""
    source = _scenes(folder) if data == EASY else Path(data)
    results.mkdir(parents=True, exist_ok=True)
    for seed in seeds:
        for member in members:
            name = f"{source.name}-{MEMBERS[member]}-{seed}"
            if not (results / f"{name}.json").exists():
                facts = _run(source, folder / name, member, seed, images, image_size)
                (results / f"{name}.json").write_text(json.dumps(facts))


def _scenes(folder: Path) -> Path:
    scenes = folder / EASY
    if not (scenes / "annotations" / "panoptic_val.json").exists():
        write_scenes(scenes, counts={"train": 16000, "val": 300}, config=SCENES)
    return scenes


def _run(source: Path, out: Path, member: str, seed: int, images: int, image_size: int) -> dict[str, Any]:
    """Train one member; returns what is kept of it."""
    changes: dict[str, Any] = {
        "model": SIZE,
        "recipe": RECIPE,
        "data": {"num_workers": 1, **(FLIPS if source.name == EASY else BCCD_SPLITS)},
    }
    print(f"{member}, seed {seed}: {out}", flush=True)
    if out.exists():
        run = resume(out)
    else:
        run = train(
            source, model=MEMBERS[member], weights="none", out=out, changes=changes, seed=seed,
            image_size=image_size, max_steps=images // BATCH,
        )  # fmt: skip
    parameters = sum(parameter.numel() for parameter in opendetr.load(out).model.parameters())
    curve = list(_evaluations(read_metrics(out)))
    print(f"{member}, seed {seed}: AP {run.result.metrics['AP']:.3f}", flush=True)
    return {"member": member, "data": source.name, "seed": seed, "parameters": parameters, "curve": curve}


def _evaluations(rows: list[dict[str, Any]]) -> Iterator[dict[str, float]]:
    """What was seen and how long it took, in training alone, before each evaluation; and its scores."""
    images, seconds = 0, 0.0
    for row in rows:
        if row["kind"] == "step":
            images, seconds = images + row["images"], seconds + row["seconds"]
        elif row["kind"] == "evaluation":
            scores = {name: row["metrics"].get(name) for name in ("AP", "AP50", "AP_S", "AP_M", "AP_L")}
            yield {"images": images, "seconds": seconds, **scores}


def show(folder: Path, out: Path | None) -> None:
    """Print a table for each data set, and draw the curves: the mean of the seeds."""
    charts = []
    runs = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    for data in sorted({run["data"] for run in runs}):
        of_members = {
            name: [run for run in runs if run["data"] == data and run["member"] == name]
            for name in MEMBERS
            if any(run["data"] == data and run["member"] == name for run in runs)
        }
        _print_table(data, of_members)
        for axis, label in (("images", "images seen"), ("seconds", "seconds of training")):
            for score in ("AP", "AP_S"):
                curves = {name: _mean_curve(members, axis, score) for name, members in of_members.items()}
                charts.append(draw_curves(curves, x_label=label, y_label=f"{data}: {score}"))
    if out is not None:
        contact_sheet(charts, columns=2).save(out)


def _mean_curve(runs: list[dict[str, Any]], axis: str, score: str) -> list[tuple[float, float]]:
    points = zip(*(run["curve"] for run in runs), strict=True)
    return [
        (statistics.mean(point[axis] for point in seeds), statistics.mean(point[score] or 0.0 for point in seeds))
        for seeds in points
    ]


def _print_table(data: str, of_members: dict[str, list[dict[str, Any]]]) -> None:
    """AP at the end, and after how many images and seconds the final AP of DETR was passed, on the mean curve."""
    bar = _mean_curve(of_members["DETR"], "images", "AP")[-1][1]
    print(f"\n{data}: {len(of_members['DETR'])} seeds, DETR ends at AP {bar:.3f}\n")
    print("| member | parameters | AP | AP of each seed | AP_S | images to DETR's AP | share | seconds | share |")
    print("|---|---|---|---|---|---|---|---|---|")
    whole = {axis: _mean_curve(of_members["DETR"], axis, "AP")[-1][0] for axis in ("images", "seconds")}
    for name, runs in of_members.items():
        final = [run["curve"][-1] for run in runs]
        ap, small = (statistics.mean(point[score] or 0.0 for point in final) for score in ("AP", "AP_S"))
        seeds = ", ".join(f"{point['AP']:.3f}" for point in final)
        cells = []
        for axis in ("images", "seconds"):
            passed = next((x for x, y in _mean_curve(runs, axis, "AP") if y >= bar), None)
            cells += ["not", "-"] if passed is None else [f"{passed:,.0f}", f"{passed / whole[axis]:.2f}"]
        print(f"| {name} | {runs[0]['parameters']:,} | {ap:.3f} | {seeds} | {small:.3f} | {' | '.join(cells)} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    training = commands.add_parser("train")
    training.add_argument("data", help=f"{EASY!r}, drawn for it, or the folder of BCCD")
    training.add_argument("--folder", type=Path, required=True, help="where the runs are kept")
    training.add_argument("--results", type=Path, required=True, help="where the curves are kept")
    training.add_argument("--images", type=int, required=True, help="images that every member sees")
    training.add_argument("--image-size", type=int, default=128)
    training.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    training.add_argument("--members", nargs="+", choices=list(MEMBERS), default=list(MEMBERS))
    showing = commands.add_parser("show")
    showing.add_argument("folder", type=Path)
    showing.add_argument("--out", type=Path, help="a picture of the curves")
    options = parser.parse_args()
    if options.command == "train":
        run_all(
            options.data, options.folder, options.results, options.images, options.image_size, options.seeds,
            options.members,
        )  # fmt: skip
    else:
        show(options.folder, options.out)
