"""Masks of 20 real pictures learned by heart: does everything from the annotations to PQ and mask AP fit together?

    python runs/overfit_masks.py panoptic COCO128 --time 32m
    python runs/overfit_masks.py instances COCO128 --time 17m

COCO128 is a dataset with masks of that kind, or a folder that holds one as `panoptic_segmentation` or
`instance_segmentation`. The pictures and the run go to `runs/by-heart`, or where `--folder` says.

The first 20 training pictures are both what is trained on and what is scored; nothing is claimed about others.
"panoptic" learns things and stuff from COCO's panoptic maps and gives PQ under both merge rules, image by image and in
padded batches of 4: 0.719 and 0.743 by the default rule, 0.718 and 0.547 by the published one. "instances" learns
polygons and gives mask AP: 0.541. One thread, 1,191 and some 560 steps.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import opendetr
from opendetr.data.formats.recognise import Format, open_data, open_split
from opendetr.data.tools.convert import write_data

MODEL = "deformable-detr-tiny-panoptic"
NUM_PICTURES = 20
SUB_FOLDERS = {"panoptic": "panoptic_segmentation", "instances": "instance_segmentation"}
BY_HEART = {
    "recipe": {"learning_rate": 4e-4, "batch_size": 4, "warmup_steps": 100, "ema_decay": 0.99, "num_evaluations": 8},
    "data": {"augmentation": {"flip": False, "multi_scale": False, "crop": False}},
}


def data_of_kind(source: Path, kind: str) -> Path:
    """The folder of the masks of one kind, in a folder that holds several, or the folder itself."""
    inside = source / SUB_FOLDERS[kind]
    return inside if inside.is_dir() else source


def write_pictures(source: Path, folder: Path, kind: str) -> None:
    """The pictures as a data set of its own, whose two splits are the same."""
    train = open_data(source, masks=kind)["train"]
    chosen = train.images[:NUM_PICTURES]
    write_data({split: train.subset(chosen, split) for split in ("train", "val")}, folder, Format.COCO, link=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kind", choices=["panoptic", "instances"])
    parser.add_argument("source", type=Path, help="a dataset with masks of that kind, or a folder that holds one")
    parser.add_argument("--folder", type=Path, default=Path("runs/by-heart"), help="where pictures and run go")
    parser.add_argument("--time", default="30m")
    parser.add_argument("--image-size", type=int, default=256)
    parser.add_argument("--weights", default="published")
    options = parser.parse_args()
    pictures = options.folder / f"{options.kind}-pictures"
    if not pictures.exists():
        write_pictures(data_of_kind(options.source, options.kind), pictures, options.kind)
    changes = {**BY_HEART, "data": {**BY_HEART["data"], "masks": options.kind, "num_workers": 1}}
    run = opendetr.train(
        pictures, model=MODEL, weights=options.weights, out=options.folder / options.kind, time=options.time,
        image_size=options.image_size, changes=changes,
    )  # fmt: skip
    detector = opendetr.load(run.folder)
    for merge in ("default", "published"):
        for batch_size in (1, 4):
            data = open_split(pictures, "val", masks=options.kind)
            scores = detector.evaluate(data, batch_size=batch_size, merge=merge).metrics
            shown = "  ".join(f"{name} {scores[name]:.3f}" for name in ("PQ", "mask_AP", "AP") if name in scores)
            print(f"{merge} rule, batches of {batch_size}: {shown}", flush=True)


if __name__ == "__main__":
    main()
