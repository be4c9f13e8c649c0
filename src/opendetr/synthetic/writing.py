"""Scenes as a dataset in the COCO layout, instances and panoptic."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import Any

from PIL import Image

from opendetr.data import DataError, write_map
from opendetr.files import write_atomically
from opendetr.synthetic.config import CATEGORIES, DEFAULT_CONFIG, SceneConfig
from opendetr.synthetic.drawing import Scene, draw_scene
from opendetr.synthetic.labels import Segment
from opendetr.synthetic.polygons import mask_to_polygons, mask_to_rle

DEFAULT_COUNTS: Mapping[str, int] = MappingProxyType({"train": 2000, "val": 300})
"""Scenes per split that :func:`write_scenes` draws unless told otherwise."""

_GENERATOR = "OpenDETR scenes 1"
_MARKER = "scenes.json"


def write_scenes(
    folder: str | Path,
    *,
    counts: Mapping[str, int] = DEFAULT_COUNTS,
    seed: int = 0,
    config: SceneConfig = DEFAULT_CONFIG,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write a dataset in the COCO layout, instances and panoptic.

    Writes ``folder/train/000000.png`` ..., ``folder/annotations/instances_train.json``,
    ``folder/annotations/panoptic_train.json`` and ``folder/annotations/panoptic_train/000000.png`` ..., and the same
    for every other split. The JSON files come last: while they are missing, the set is not finished. Image ids are the
    scenes' indices; a crowd is annotated by run lengths, any other object by polygons.

    Args:
        folder: where to; is made if missing. Splits of the same name that an earlier call wrote there are replaced.
        counts: number of scenes per split.
        seed: seed of the dataset.
        config: what scenes look like.
        progress: called after every scene with the number of scenes done and the number of all scenes.

    Raises:
        DataError: the folder holds something else, or a split has a bad name or count.
    """
    folder = Path(folder)
    _check_counts(counts)
    _claim(folder)
    info = {"description": _GENERATOR, "seed": seed, "config": asdict(config)}
    writers = {split: _SplitWriter(folder, split, info | {"split": split}, config) for split in counts}
    done, total = 0, sum(counts.values())
    for split, count in counts.items():
        for index in range(count):
            writers[split].add(index, draw_scene(index, split=split, seed=seed, config=config))
            done += 1
            if progress is not None:
                progress(done, total)
    for writer in writers.values():
        writer.finish()


def _instance_record(scene: Scene, label: Segment) -> dict[str, Any]:
    """COCO instance annotation of a thing, without ids: polygons, or run lengths if it is a crowd."""
    x0, y0, x1, y1 = label.box
    visible = scene.segments[y0:y1, x0:x1] == label.id
    return {
        "category_id": label.category_id,
        "bbox": [x0, y0, x1 - x0, y1 - y0],
        "area": label.area,
        "iscrowd": int(label.iscrowd),
        "segmentation": mask_to_rle(scene.segments == label.id)
        if label.iscrowd
        else mask_to_polygons(visible, origin=(x0, y0)),
    }


def _segment_record(label: Segment) -> dict[str, Any]:
    """COCO panoptic ``segments_info`` entry."""
    x0, y0, x1, y1 = label.box
    return {
        "id": label.id,
        "category_id": label.category_id,
        "bbox": [x0, y0, x1 - x0, y1 - y0],
        "area": label.area,
        "iscrowd": int(label.iscrowd),
    }


def _check_counts(counts: Mapping[str, int]) -> None:
    """Refuse splits that cannot be written."""
    for split, count in counts.items():
        if not split.isidentifier() or split == "annotations":
            raise DataError(f"counts: split {split!r} names files: use letters, digits and _, and not 'annotations'")
        if count < 0:
            raise DataError(f"counts[{split!r}]={count}: must be 0 or more")


def _claim(folder: Path) -> None:
    """Make and mark the folder, or refuse one that holds something else."""
    if folder.exists() and not folder.is_dir():
        raise DataError(f"{folder} is a file: name a folder that is empty or does not exist")
    if folder.exists() and any(folder.iterdir()) and not (folder / _MARKER).is_file():
        raise DataError(f"{folder} holds files that are not scenes: name a folder that is empty or does not exist")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _MARKER).write_text(json.dumps({"description": _GENERATOR}) + "\n")


class _SplitWriter:
    """Writes the images of a split one by one and its COCO files at the end."""

    def __init__(self, folder: Path, split: str, info: dict[str, Any], config: SceneConfig) -> None:
        self._images_shown = folder / split
        self._annotations = folder / "annotations"
        self._split = split
        images: list[dict[str, Any]] = []
        categories = [each for each in CATEGORIES if not each["isthing"] or each["name"] in config.classes]
        of_things = [each for each in categories if each["isthing"]]
        things = [{key: record[key] for key in ("id", "name", "supercategory")} for record in of_things]
        self._instances: dict[str, Any] = {"info": info, "images": images, "annotations": [], "categories": things}
        self._panoptic: dict[str, Any] = {"info": info, "images": images, "annotations": [], "categories": categories}
        self._clear()

    def _clear(self) -> None:
        """Make the folders and empty them, JSON first, so that an interrupted write never looks finished."""
        for name in self._files():
            (self._annotations / name).unlink(missing_ok=True)
        for folder in (self._images_shown, self._annotations / f"panoptic_{self._split}"):
            folder.mkdir(parents=True, exist_ok=True)
            for image in folder.glob("*.png"):
                image.unlink()

    def _files(self) -> dict[str, dict[str, Any]]:
        """Names and contents of the COCO files."""
        return {f"instances_{self._split}.json": self._instances, f"panoptic_{self._split}.json": self._panoptic}

    def add(self, index: int, scene: Scene) -> None:
        """Write both images of a scene and note its labels."""
        name = f"{index:06d}.png"
        Image.fromarray(scene.image).save(self._images_shown / name, compress_level=1)
        write_map(self._annotations / f"panoptic_{self._split}" / name, scene.segments)
        height, width = scene.segments.shape
        self._instances["images"].append({"id": index, "file_name": name, "width": width, "height": height})
        annotations = self._instances["annotations"]
        for label in scene.objects:
            # Ids start from 1: the COCO evaluation takes a match with id 0 for no match.
            ids = {"id": len(annotations) + 1, "image_id": index}
            annotations.append(ids | _instance_record(scene, label))
        segments_info = [_segment_record(label) for label in scene.objects + scene.stuff]
        self._panoptic["annotations"].append({"image_id": index, "file_name": name, "segments_info": segments_info})

    def finish(self) -> None:
        """Write the COCO files, each of them completely or not at all."""
        for name, content in self._files().items():
            write_atomically(self._annotations / name, json.dumps(content, separators=(",", ":")))
