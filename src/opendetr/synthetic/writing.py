"""Writes scenes as a dataset in the COCO layout: with instance and panoptic annotations, or with captions."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import Any, Generic, TypeVar

from PIL import Image

from opendetr.data import DataError, write_map
from opendetr.files import write_atomically
from opendetr.synthetic.config import CATEGORIES, DEFAULT_CONFIG, SceneConfig
from opendetr.synthetic.described import DescribedConfig, DescribedScene, draw_described_scene
from opendetr.synthetic.drawing import Scene, draw_scene
from opendetr.synthetic.labels import Segment
from opendetr.synthetic.language import Caption, Mention, Question
from opendetr.synthetic.polygons import mask_to_polygons, mask_to_rle

DEFAULT_COUNTS: Mapping[str, int] = MappingProxyType({"train": 2000, "val": 300})
"""Default number of scenes per split of :func:`write_scenes`."""

_GENERATOR = "OpenDETR scenes 1"
_MARKER = "scenes.json"
_KINDS = ("instances", "panoptic", "captions")  # of JSON files
Drawn = TypeVar("Drawn")  # what is drawn for an index


def write_scenes(
    folder: str | Path,
    *,
    counts: Mapping[str, int] = DEFAULT_COUNTS,
    seed: int = 0,
    config: SceneConfig = DEFAULT_CONFIG,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write a dataset of scenes in the COCO layout, with instance and panoptic annotations.

    The files of the split "train" are ``folder/train/000000.png`` ..., ``folder/annotations/instances_train.json``,
    ``folder/annotations/panoptic_train.json`` and ``folder/annotations/panoptic_train/000000.png`` ...; those of other
    splits are named likewise. The JSON files are written last, so a dataset without them is incomplete. The image ids
    are the indices of the scenes. Crowd objects are annotated with RLE, all others with polygons.

    Args:
        folder: the folder to write to; it is created if missing. Splits that an earlier call wrote there under the same
            name are replaced.
        counts: number of scenes per split.
        seed: seed of the dataset.
        config: the configuration of the scenes.
        progress: called after every scene with the number of finished scenes and the total number.

    Raises:
        DataError: the folder contains other files, or a split has an invalid name or count.
    """
    root = Path(folder)
    things = [record for record in CATEGORIES if record["isthing"] and record["name"] in config.classes]

    def new_writer(split: str, info: dict[str, Any]) -> _SceneWriter:
        return _SceneWriter(root / split, root / "annotations", info, things)

    def draw(index: int, split: str) -> Scene:
        return draw_scene(index, split=split, seed=seed, config=config)

    _write(root, counts, {"seed": seed, "config": asdict(config)}, new_writer, draw, progress)


def write_captioned_scenes(
    folder: str | Path,
    *,
    counts: Mapping[str, int] = DEFAULT_COUNTS,
    seed: int = 0,
    config: DescribedConfig | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write a dataset of described scenes in MDETR's layout: COCO with a caption per image.

    The files of the split "train" are ``folder/train/000000.png`` ... and ``folder/annotations/captions_train.json``. A
    scene has three entries in the JSON file: a referring expression, a caption that names several objects, and a
    question with its answer. Each has the objects that it names, with the characters of their words. The arguments and
    errors are those of :func:`write_scenes`.
    """
    root, config = Path(folder), config or DescribedConfig()

    def new_writer(split: str, info: dict[str, Any]) -> _CaptionWriter:
        return _CaptionWriter(root / split, root / "annotations", info)

    def draw(index: int, split: str) -> DescribedScene:
        return draw_described_scene(index, split=split, seed=seed, config=config)

    _write(root, counts, {"seed": seed, "config": asdict(config)}, new_writer, draw, progress)


def _write(
    folder: Path,
    counts: Mapping[str, int],
    info: dict[str, Any],
    new_writer: Callable[[str, dict[str, Any]], _SplitWriter[Drawn]],
    draw: Callable[[int, str], Drawn],
    progress: Callable[[int, int], None] | None,
) -> None:
    """Write the splits, each with its own writer, into a folder that is checked first."""
    check_counts(counts)
    claim_folder(folder)
    info = {"description": _GENERATOR} | info
    writers = {split: new_writer(split, info | {"split": split}) for split in counts}
    done, total = 0, sum(counts.values())
    for split, count in counts.items():
        for index in range(count):
            writers[split].add(index, draw(index, split))
            done += 1
            if progress is not None:
                progress(done, total)
    for writer in writers.values():
        writer.finish()


def _instance_record(scene: Scene, label: Segment) -> dict[str, Any]:
    """COCO instance annotation of a thing without ids: with polygons, or with RLE if it is a crowd."""
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
    """Entry of ``segments_info`` in a COCO panoptic annotation."""
    x0, y0, x1, y1 = label.box
    return {
        "id": label.id,
        "category_id": label.category_id,
        "bbox": [x0, y0, x1 - x0, y1 - y0],
        "area": label.area,
        "iscrowd": int(label.iscrowd),
    }


def check_counts(counts: Mapping[str, int]) -> None:
    """Raise DataError for an invalid split name or count."""
    for split, count in counts.items():
        if not split.isidentifier() or split == "annotations":
            raise DataError(
                f"counts: split {split!r} is not a valid name: use letters, digits and _, but not 'annotations'"
            )
        if count < 0:
            raise DataError(f"counts[{split!r}]={count}: must be 0 or more")


def claim_folder(folder: Path) -> None:
    """Create the folder and its marker file. Raises DataError if the folder contains other files."""
    if folder.exists() and not folder.is_dir():
        raise DataError(f"{folder} is a file: choose a folder that is empty or does not exist")
    if folder.exists() and any(folder.iterdir()) and not (folder / _MARKER).is_file():
        raise DataError(f"{folder} contains files that are not scenes: choose a folder that is empty or does not exist")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _MARKER).write_text(json.dumps({"description": _GENERATOR}) + "\n")


class _SplitWriter(ABC, Generic[Drawn]):
    """Writes the images of a split one by one and its JSON files at the end.

    Args:
        images: the folder of the images; its name is that of the split.
        annotations: the folder of the JSON files.
    """

    def __init__(self, images: Path, annotations: Path) -> None:
        self._images = images
        self._annotations = annotations
        self._split = images.name
        self._clear()

    def _clear(self) -> None:
        """Create and empty the folders, JSON files first. So an interrupted write never looks complete.

        The files of other kinds of scenes are removed as well: their images are replaced.
        """
        for kind in _KINDS:
            (self._annotations / f"{kind}_{self._split}.json").unlink(missing_ok=True)
        for folder in (self._images, self._annotations):
            folder.mkdir(parents=True, exist_ok=True)
        for folder in (self._images, self._maps):
            for image in folder.glob("*.png"):
                image.unlink()
        if self._maps.is_dir():
            self._maps.rmdir()

    @property
    def _maps(self) -> Path:
        return self._annotations / f"panoptic_{self._split}"

    def _save_image(self, index: int, scene: Scene) -> dict[str, Any]:
        """Write the image of a scene. Returns its entry in a JSON file, without an id."""
        name = f"{index:06d}.png"
        Image.fromarray(scene.image).save(self._images / name, compress_level=1)
        height, width = scene.segments.shape
        return {"file_name": name, "width": width, "height": height}

    @abstractmethod
    def _files(self) -> dict[str, dict[str, Any]]:
        """The contents of the JSON files by kind, one of `_KINDS`."""

    @abstractmethod
    def add(self, index: int, drawn: Drawn) -> None:
        """Write the image of a scene and add its annotations."""

    def finish(self) -> None:
        """Write the JSON files, each completely or not at all."""
        for kind, content in self._files().items():
            path = self._annotations / f"{kind}_{self._split}.json"
            write_atomically(path, json.dumps(content, separators=(",", ":")))


class _SceneWriter(_SplitWriter[Scene]):
    """Writes scenes with instance and panoptic annotations."""

    def __init__(self, images: Path, annotations: Path, info: dict[str, Any], things: list[dict[str, Any]]) -> None:
        super().__init__(images, annotations)
        self._maps.mkdir()
        stuff = [record for record in CATEGORIES if not record["isthing"]]
        common: dict[str, Any] = {"info": info, "images": []}
        self._instances: dict[str, Any] = common | {"annotations": [], "categories": _plain_categories(things)}
        self._panoptic: dict[str, Any] = common | {"annotations": [], "categories": things + stuff}

    def _files(self) -> dict[str, dict[str, Any]]:
        return {"instances": self._instances, "panoptic": self._panoptic}

    def add(self, index: int, drawn: Scene) -> None:
        """Write the image and the panoptic map of a scene, and add its labels."""
        row = {"id": index} | self._save_image(index, drawn)
        write_map(self._maps / row["file_name"], drawn.segments)
        self._instances["images"].append(row)
        annotations = self._instances["annotations"]
        for label in drawn.objects:
            # Ids start at 1: COCO's evaluation treats a match with annotation id 0 as no match.
            ids = {"id": len(annotations) + 1, "image_id": index}
            annotations.append(ids | _instance_record(drawn, label))
        segments_info = [_segment_record(label) for label in drawn.objects + drawn.stuff]
        entry = {"image_id": index, "file_name": row["file_name"], "segments_info": segments_info}
        self._panoptic["annotations"].append(entry)


class _CaptionWriter(_SplitWriter[DescribedScene]):
    """Writes described scenes, with an entry per text."""

    def __init__(self, images: Path, annotations: Path, info: dict[str, Any]) -> None:
        super().__init__(images, annotations)
        things = _plain_categories([record for record in CATEGORIES if record["isthing"]])
        self._content: dict[str, Any] = {"info": info, "images": [], "annotations": [], "categories": things}

    def _files(self) -> dict[str, dict[str, Any]]:
        return {"captions": self._content}

    def add(self, index: int, drawn: DescribedScene) -> None:
        """Write the image of a scene, and add its expression, its caption and its question."""
        row = self._save_image(index, drawn.scene) | {"original_id": index}
        expression, caption, question = drawn.expression, drawn.caption, drawn.question
        target = Caption(text=expression.text, mentions=(Mention(expression.span, (expression.target,)),))
        self._add_text(row | {"dataset_name": "scenes_refexp", "expression_kind": expression.kind}, drawn, target)
        phrases = [[list(mention.span)] for mention in caption.mentions]
        self._add_text(row | {"dataset_name": "scenes_captions", "tokens_positive_eval": phrases}, drawn, caption)
        self._add_text(row | {"dataset_name": "scenes_qa"} | _answer(question, index), drawn, question)

    def _add_text(self, row: dict[str, Any], drawn: DescribedScene, text: Caption) -> None:
        """Add a text with the objects that it names. An object has all spans that name it."""
        images, annotations = self._content["images"], self._content["annotations"]
        image_id = len(images)
        whole = [[0, len(text.text)]]
        images.append({"id": image_id} | row | {"caption": text.text, "tokens_negative": whole})
        spans: dict[int, list[list[int]]] = {}
        for mention in text.mentions:
            for thing in mention.things:
                spans.setdefault(thing, []).append(list(mention.span))
        for thing, positive in spans.items():
            record = _instance_record(drawn.scene, drawn.scene.objects[thing])
            ids = {"id": len(annotations) + 1, "image_id": image_id}
            annotations.append(ids | record | {"tokens_positive": positive})


def _answer(question: Question, index: int) -> dict[str, Any]:
    """The fields of a question, named as in GQA's file."""
    return {"questionId": str(index), "question_type": question.type, "answer": question.answer}


def _plain_categories(records: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: record[key] for key in ("id", "name", "supercategory")} for record in records]
