"""What can be wrong with a dataset: each fault, how to make it in each format, and where it is to be found.

`tests/test_check.py` makes every one of them on disk; the table in `docs/data.md` is made from this list by

    python tests/faults.py
"""

from __future__ import annotations

import csv
import io
import json
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import ExifTags, Image

from folders import make_image
from opendetr.data.faults import Effect, FaultKind
from opendetr.data.formats.recognise import Format
from opendetr.data.images import read_map, write_map
from opendetr.data.tools.convert import convert

COCO, VOC, YOLO, CSV, MOT = FORMATS = ("COCO", "VOC", "YOLO", "CSV", "MOT")
HEIGHT, WIDTH = 96, 128
PAGE = Path(__file__).parents[1] / "docs" / "data.md"
_BEGIN, _END = "<!-- faults: made by `python tests/faults.py` -->", "<!-- end of faults -->"


# ------------------------------------------------------------------------------------- one dataset in all the formats


class Thing(NamedTuple):
    """One object: its class, and x, y, width, height in pixels."""

    name: str
    box: tuple[float, float, float, float]


@dataclass
class Drawn:
    """One image of a dataset."""

    name: str
    split: str
    things: list[Thing]


@dataclass
class DataSet:
    """A dataset without faults in one format, to be changed before or after it is written."""

    format: str
    folder: Path
    images: list[Drawn] = field(default_factory=lambda: [_drawn(index) for index in range(6)])
    classes: list[str] = field(default_factory=lambda: ["cat", "dog"])

    def write(self) -> None:
        for index in range(len(self.images)):
            path = self.image(index)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(_png(index))
        getattr(self, f"_write_{self.format.lower()}")()

    def image(self, index: int) -> Path:
        """The file of an image."""
        image = self.images[index]
        folders = {
            COCO: "images",
            VOC: "JPEGImages",
            YOLO: f"images/{image.split}",
            CSV: "images",
            MOT: f"{image.split}/video-{image.split}/img1",
        }
        return self.folder / folders[self.format] / image.name

    def annotations(self, index: int = 0) -> Path:
        """The file that annotates an image."""
        image = self.images[index]
        names = {
            COCO: f"annotations/instances_{image.split}.json",
            VOC: f"Annotations/{Path(image.name).stem}.xml",
            YOLO: f"labels/{image.split}/{Path(image.name).stem}.txt",
            CSV: "boxes.csv",
            MOT: f"{image.split}/video-{image.split}/gt/gt.txt",
        }
        return self.folder / names[self.format]

    def place(self, index: int, number: int) -> Place:
        """Where a fault of an object is to be: COCO's name the image, and the annotation by its id."""
        before = sum(len(image.things) for image in self.images[:index]) + number
        if self.format == MOT:
            split = self.images[index].split
            in_video = number + sum(len(image.things) for image in self.images[:index] if image.split == split)
            return Place(self.annotations(index), f"line {in_video + 1}")
        if self.format == COCO:
            return Place(self.image(index), f"annotation {before + 1}")
        at = {VOC: f"object {number + 1}", YOLO: f"line {number + 1}", CSV: f"line {before + 2}"}
        return Place(self.annotations(index), at[self.format])

    def _write_coco(self) -> None:
        categories = [{"id": number, "name": name} for number, name in enumerate(self.classes, start=1)]
        number = 0
        for split in dict.fromkeys(image.split for image in self.images):
            content: dict[str, Any] = {"images": [], "annotations": [], "categories": categories}
            for index, image in enumerate(self.images):
                if image.split != split:
                    continue
                content["images"].append({"id": index, "file_name": image.name, "height": HEIGHT, "width": WIDTH})
                for thing in image.things:
                    number += 1
                    row = {"id": number, "image_id": index, "category_id": 1 + self.classes.index(thing.name)}
                    content["annotations"].append({**row, "bbox": thing.box, "iscrowd": 0})
            path = self.folder / "annotations" / f"instances_{split}.json"
            path.parent.mkdir(exist_ok=True)
            path.write_text(json.dumps(content))

    def _write_voc(self) -> None:
        lists = self.folder / "ImageSets" / "Main"
        lists.mkdir(parents=True)
        for index, image in enumerate(self.images):
            path = self.annotations(index)
            path.parent.mkdir(exist_ok=True)
            size = f"<size><width>{WIDTH}</width><height>{HEIGHT}</height></size>"
            things = "\n".join(map(_voc_object, image.things))
            path.write_text(f"<annotation><filename>{image.name}</filename>{size}\n{things}\n</annotation>")
            with (lists / f"{image.split}.txt").open("a") as file:
                file.write(f"{path.stem}\n")

    def _write_yolo(self) -> None:
        splits = dict.fromkeys(image.split for image in self.images)
        lines = [*(f"{split}: images/{split}" for split in splits), f"names: {json.dumps(self.classes)}"]
        (self.folder / "data.yaml").write_text("\n".join(lines) + "\n")
        for index, image in enumerate(self.images):
            path = self.annotations(index)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(self._yolo_row(thing) for thing in image.things))

    def _yolo_row(self, thing: Thing) -> str:
        x, y, w, h = thing.box
        numbers = ((x + w / 2) / WIDTH, (y + h / 2) / HEIGHT, w / WIDTH, h / HEIGHT)
        return f"{self.classes.index(thing.name)} {' '.join(map(str, numbers))}\n"

    def _write_csv(self) -> None:
        with self.annotations().open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["image", "split", "label", "x", "y", "width", "height"])
            for image in self.images:
                rows = [[thing.name, *thing.box] for thing in image.things] or [["", "", "", "", ""]]
                writer.writerows([image.name, image.split, *row] for row in rows)

    def _write_mot(self) -> None:
        """A video per split. Object number n of every image belongs to the track n, from 1."""
        for split in dict.fromkeys(image.split for image in self.images):
            images = [image for image in self.images if image.split == split]
            truth = self.annotations(self.images.index(images[0]))
            truth.parent.mkdir(parents=True, exist_ok=True)
            truth.with_name("labels.txt").write_text("\n".join(self.classes))
            rows = [
                f"{frame},{track},{','.join(map(str, thing.box))},1,{1 + self.classes.index(thing.name)},1\n"
                for frame, image in enumerate(images, start=1)
                for track, thing in enumerate(image.things, start=1)
            ]
            truth.write_text("".join(rows))
            size = f"imWidth={WIDTH}\nimHeight={HEIGHT}"
            (truth.parents[1] / "seqinfo.ini").write_text(f"[Sequence]\nseqLength={len(images)}\n{size}\n")


@cache
def _png(seed: int) -> bytes:
    content = io.BytesIO()
    Image.fromarray(make_image(HEIGHT, WIDTH, seed)).save(content, "PNG")
    return content.getvalue()


def _drawn(index: int) -> Drawn:
    """Image number 0 to 3 to train on, 4 and 5 to score on; each with six objects of two classes, well apart."""
    things = [
        Thing(("cat", "dog")[(column + row) % 2], (4 + 40 * column, 5 + 45 * row, 30, 36))
        for row in range(2)
        for column in range(3)
    ]
    return Drawn(f"{index}.png", "val" if index > 3 else "train", things)


def _voc_object(thing: Thing) -> str:
    x, y, w, h = thing.box
    box = f"<xmin>{x}</xmin><ymin>{y}</ymin><xmax>{x + w}</xmax><ymax>{y + h}</ymax>"
    return f"<object><name>{thing.name}</name><bndbox>{box}</bndbox></object>"


# ------------------------------------------------------------------------------------------------------ how to make one


class Place(NamedTuple):
    """Where a fault is: the file, and the position in it."""

    file: Path
    at: str = ""


# Writes a dataset with the fault, and tells where it is.
Maker = Callable[[DataSet], Place]


@dataclass(frozen=True)
class Fault:
    """One row of the table: a kind, an example in words, and how to make it in the formats where it can be."""

    kind: FaultKind
    example: str
    makers: dict[str, Maker]


def before(change: Callable[[DataSet], Place]) -> Maker:
    """A change of what is drawn; the place is asked for when the change is made."""

    def make(data: DataSet) -> Place:
        place = change(data)
        data.write()
        return place

    return make


def after(change: Callable[[DataSet], Place]) -> Maker:
    """A change of the files."""

    def make(data: DataSet) -> Place:
        data.write()
        return change(data)

    return make


def everywhere(maker: Maker, *formats: str) -> dict[str, Maker]:
    return dict.fromkeys(formats or FORMATS, maker)


def box(*numbers: float) -> Maker:
    """The third object of the second image gets this box."""

    def change(data: DataSet) -> Place:
        data.images[1].things[2] = data.images[1].things[2]._replace(box=numbers)  # type: ignore[arg-type]
        return data.place(1, 2)

    return before(change)


def repeat(name: str) -> Maker:
    """The first image gets an object more, with nearly the box of the first cat."""

    def change(data: DataSet) -> Place:
        data.images[0].things.append(Thing(name, (4, 5, 30, 36.5)))
        return data.place(0, 6)

    return before(change)


def coco(change: Callable[[dict[str, Any]], Any], at: str = "", split: str = "train") -> Maker:
    """A change of COCO's content, to be found at `at` in its file."""

    def make(data: DataSet) -> Place:
        path = data.folder / "annotations" / f"instances_{split}.json"
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))
        return Place(path, at)

    return after(make)


def text(old: str, new: str, at: str = "", index: int = 1) -> Maker:
    """A piece of the second image's annotation file replaced, once."""

    def make(data: DataSet) -> Place:
        path = data.annotations(index)
        content = path.read_text()
        assert old in content
        path.write_text(content.replace(old, new, 1))
        return Place(path, at)

    return after(make)


def row(line: int, content: str) -> Maker:
    """A line of the second image's label file, or of the table, replaced."""

    def make(data: DataSet) -> Place:
        path = data.annotations(1)
        lines = path.read_text().splitlines()
        lines[line - 1] = content
        path.write_text("\n".join(lines) + "\n")
        return Place(path, f"line {line}")

    return after(make)


def described(change: Callable[[str], str], at: str = "") -> Maker:
    """A change of `data.yaml`."""

    def make(data: DataSet) -> Place:
        path = data.folder / "data.yaml"
        path.write_text(change(path.read_text()))
        return Place(path, at)

    return after(make)


def image(change: Callable[[Path], Any]) -> Maker:
    """A change of the second image's file."""

    def make(data: DataSet) -> Place:
        change(data.image(1))
        return Place(data.image(1))

    return after(make)


def save(height: int, width: int, **options: Any) -> Callable[[Path], None]:
    """Another image in a file."""
    return lambda path: Image.fromarray(make_image(height, width, 9)).save(path, **options)


def set_at(key: str, index: int, name: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(content: dict[str, Any]) -> None:
        content[key][index][name] = value

    return change


def captions(spans: list[list[int]], at: str = "", caption: str = "a cat beside the dog") -> Maker:
    """Every image of the training split gets a caption, every object the span of its first words, and one others."""

    def change(content: dict[str, Any]) -> None:
        for image_row in content["images"]:
            image_row["caption"] = caption
        for annotation in content["annotations"]:
            annotation["tokens_positive"] = [[0, 5]]
        content["annotations"][2]["tokens_positive"] = spans

    return coco(change, at)


def tracked(change: Callable[[dict[str, Any]], Any], at: str) -> Maker:
    """The training images are the frames of a video, and object number n of each belongs to the track n, from 1."""

    def with_tracks(content: dict[str, Any]) -> None:
        for frame, image_row in enumerate(content["images"], start=1):
            image_row |= {"video": "street", "frame_id": frame}
        for annotation in content["annotations"]:
            annotation["track_id"] = 1 + (annotation["id"] - 1) % 6
        change(content)

    return coco(with_tracks, at)


def pop_at(key: str, index: int, name: str) -> Callable[[dict[str, Any]], None]:
    return lambda content: content[key][index].pop(name)


def put(path: Path, content: str) -> Path:
    path.write_text(content)
    return path


def class_place(data: DataSet, name: str) -> Place:
    return Place(data.folder, f"class '{name}'")


def rename(data: DataSet, index: int, old: str, new: str) -> None:
    things = data.images[index].things
    data.images[index].things = [thing._replace(name=new) if thing.name == old else thing for thing in things]


# ---------------------------------------------------------------------------------------------------------- the faults


def _gone(data: DataSet) -> Place:
    shutil.rmtree(data.folder)
    return Place(Path())


def _test_alone(data: DataSet) -> Place:
    for drawn in data.images:
        drawn.split = "test"
    data.images[0].split = "night"
    return Place(data.folder)


def _no_val_objects(data: DataSet) -> Place:
    for drawn in data.images[4:]:
        drawn.things.clear()
    return Place(data.folder, "split 'val'")


def _no_objects(data: DataSet) -> Place:
    data.images[1].things.clear()
    at = {CSV: data.place(1, 0).at, MOT: "frame 2"}.get(data.format, "")
    return Place(data.image(1) if data.format == COCO else data.annotations(1), at)


def _missing_image(data: DataSet) -> Place:
    data.image(1).unlink()
    at = {COCO: "images[1]", VOC: "", CSV: "line 8"}[data.format]
    return Place(data.annotations(1), at)


def _two_of_a_name(data: DataSet) -> Place:
    place = data.image(1)
    for folder in ("a", "b"):
        (data.folder / folder).mkdir()
        shutil.copyfile(place, data.folder / folder / place.name)
    return _missing_image(data)


def _respelled(data: DataSet) -> Place:
    path = data.annotations(1)
    if data.format == YOLO:
        return Place(path.rename(path.with_name("%31.txt")))
    put(path, path.read_text().replace("1.png", "http://server/data/1.PNG"))
    return Place(path, {COCO: "images[1]", CSV: "line 8"}[data.format])


def _missing_in_list(data: DataSet) -> Place:
    path = put(data.folder / "train.txt", "images/train/0.png\nimages/train/nine.png\n")
    described(lambda content: content.replace("train: images/train", "train: train.txt"))(data)
    return Place(path, "line 2")


def _unlisted(data: DataSet) -> Place:
    extra = data.image(1).with_name("extra.png")
    shutil.copyfile(data.image(1), extra)
    return Place(extra)


def _listed_twice(data: DataSet) -> Place:
    if data.format == VOC:
        put(data.folder / "ImageSets/Main/val.txt", "1\n4\n5\n")
    elif data.format == YOLO:
        put(data.folder / "data.yaml", "train: images/train\nval: [images/val, list.txt]\nnames: [cat, dog]\n")
        put(data.folder / "list.txt", "images/train/1.png\n")
    else:
        with data.annotations().open("a") as file:
            file.write("1.png,val,cat,44,5,30,36\n")
    return Place(data.image(1))


def _coco_in_both(data: DataSet) -> Place:
    train = json.loads(data.annotations(0).read_text())
    val = json.loads(data.annotations(4).read_text())
    val["images"].append(train["images"][1])
    put(data.annotations(4), json.dumps(val))
    return Place(data.image(1))


def _one_file_twice(data: DataSet) -> Place:
    coco(set_at("images", 1, "file_name", "0.png"))(data)
    data.image(1).unlink()
    return Place(data.image(0))


def _copy(source: int, target: int) -> Maker:
    """A renamed copy, without the metadata: the pixels tell."""

    def make(data: DataSet) -> Place:
        with Image.open(data.image(source)) as original:
            original.save(data.image(target), compress_level=1)
        return Place(data.image(target))

    return after(make)


def _turned(path: Path) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    with Image.open(path) as original:
        original.save(path, exif=exif)


def _animated(path: Path) -> None:
    frames = [Image.fromarray(make_image(HEIGHT, WIDTH, seed)) for seed in (1, 2)]
    frames[0].save(path, save_all=True, append_images=frames[1:])


def _twelve_bits(path: Path) -> None:
    Image.fromarray(make_image(HEIGHT, WIDTH)[..., 0].astype(np.uint16) * 16).save(path)


def _without_last_bytes(path: Path) -> None:
    Image.fromarray(make_image(HEIGHT, WIDTH)).save(path, "JPEG")
    path.write_bytes(path.read_bytes()[:-5])


def _bomb(path: Path) -> None:
    Image.new("1", (8000, 8000)).save(path)


def _cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-2000])


def _crowded(data: DataSet) -> Place:
    data.images[1].things = [Thing("cat", (12 * (n % 10), 15 * (n // 10), 11, 14)) for n in range(60)]
    return Place(data.image(1))


def _normalised(data: DataSet) -> Place:
    for drawn in data.images[4:]:
        drawn.things = [Thing(name, (0.1, 0.2, 0.5, 0.4 + n / 10)) for n, name in enumerate(data.classes)]
    return Place(data.folder, "split 'val'")


def _enlarged(data: DataSet) -> Place:
    for drawn in data.images[4:]:
        drawn.things = [Thing(name, (40, 40, 130 + n, 100)) for n, name in enumerate(data.classes)]
    return Place(data.folder, "split 'val'")


def _as_corners(data: DataSet) -> Place:
    """The four numbers of each box are those of another format: two corners, or in VOC a corner and the sides."""
    for drawn in data.images:
        for number, thing in enumerate(drawn.things):
            x, y, w, h = thing.box
            written = {
                COCO: (x, y, x + w, y + h),
                CSV: (x, y, x + w, y + h),
                VOC: (x, y, w - x, h - y),
                YOLO: (x - (x + w) / 2, y - (y + h) / 2, x + w, y + h),
            }
            drawn.things[number] = thing._replace(box=written[data.format])
    return Place(data.folder)


def _with_keypoints(data: DataSet) -> Place:
    """Two keypoints follow each box, at opposite places near its corners."""
    for path in sorted((data.folder / "labels").rglob("*.txt")):
        rows = []
        for line in path.read_text().splitlines():
            cx, cy, w, h = map(float, line.split()[1:])
            points = (cx - w / 3, cy - h / 3, cx + w / 3, cy - h / 3, cx, cy + h / 3)
            rows.append(f"{line} {' '.join(map(str, points))}\n")
        path.write_text("".join(rows))
    return Place(data.folder / "data.yaml")


def _with_confidence(data: DataSet) -> Place:
    for path in sorted((data.folder / "labels").rglob("*.txt")):
        path.write_text("".join(f"{line} 0.87\n" for line in path.read_text().splitlines()))
    return Place(data.folder / "data.yaml")


def _with_score(data: DataSet) -> Place:
    path = data.annotations()
    header, *rows = path.read_text().splitlines()
    put(path, "\n".join([f"{header},score", *(f"{line},0.4" for line in rows)]) + "\n")
    return Place(path, "line 2")


def _with_angle(data: DataSet) -> Place:
    path = data.annotations()
    header, *rows = path.read_text().splitlines()
    put(path, "\n".join([f"{header},angle", *(f"{line},0.3" for line in rows)]) + "\n")
    return Place(path, "line 2")


def _renamed_labels(data: DataSet) -> Place:
    for index in (0, 1):
        path = data.annotations(index)
        path.rename(path.with_name(f"frame_{path.name}"))
    return Place(data.folder, "split 'train'")


def _all_crowd(data: DataSet) -> Place:
    for split in ("train", "val"):
        path = data.folder / "annotations" / f"instances_{split}.json"
        content = json.loads(path.read_text())
        for annotation in content["annotations"]:
            annotation["iscrowd"] = int(annotation["category_id"] == 1)
        path.write_text(json.dumps(content))
    return class_place(data, "cat")


def _many_crowded(data: DataSet) -> Place:
    for drawn in data.images[:4]:
        drawn.things = [Thing("cat", (12 * (n % 10), 15 * (n // 10), 11, 14)) for n in range(60)]
    return Place(data.folder, "split 'train'")


def _swapped(data: DataSet) -> Place:
    """Height and width of the second image are swapped in its annotation; its boxes fit into one of both."""
    if data.format == COCO:
        path = data.folder / "annotations" / "instances_train.json"
        content = json.loads(path.read_text())
        content["images"][1].update(width=HEIGHT, height=WIDTH)
        return Place(put(path, json.dumps(content)), "images[1]")
    path = data.annotations(1)
    old = f"<width>{WIDTH}</width><height>{HEIGHT}</height>"
    return Place(put(path, path.read_text().replace(old, f"<width>{HEIGHT}</width><height>{WIDTH}</height>")))


def _perhaps_swapped(data: DataSet) -> Place:
    data.images[1].things = [Thing("cat", (4, 5, 30, 36)), Thing("dog", (44, 50, 30, 36))]
    data.write()
    return _swapped(data)


def _rotated(data: DataSet) -> Place:
    """The third object of the second image is rotated by 30 degrees in CVAT; YOLO has the corners."""
    if data.format == COCO:
        coco(lambda content: content["annotations"][8].update(attributes={"occluded": False, "rotation": 30.0}))(data)
        return Place(data.annotations(), "annotations[8] (id 9)")
    data.write()
    path = data.annotations(1)
    if data.format == VOC:
        third = path.read_text().split("</object>")[2]
        rotation = "<attributes><attribute><name>rotation</name><value>30.0</value></attribute></attributes>"
        put(path, path.read_text().replace(third, third + rotation))
        return Place(path, "object 3")
    lines = path.read_text().splitlines()
    lines[2] = "0 0.6 0.3 0.7 0.2 0.8 0.4 0.7 0.5"
    return Place(put(path, "\n".join(lines) + "\n"), "line 3")


def _shifted(data: DataSet) -> Place:
    for path in sorted((data.folder / "labels").rglob("*.txt")):
        rows = (line.split(" ", 1) for line in path.read_text().splitlines())
        path.write_text("".join(f"{int(label) + 1} {numbers}\n" for label, numbers in rows))
    return Place(data.folder / "data.yaml", "'names'")


def _third_class(data: DataSet, name: str, images: Iterable[int]) -> Place:
    data.classes.append(name)
    for index in images:
        rename(data, index, "dog", name)
    return class_place(data, name)


def _cow_in(*images: int) -> Callable[[DataSet], Place]:
    """The dogs of these images are cows."""
    return lambda data: _third_class(data, "cow", images)


def _without_labels(data: DataSet) -> Place:
    data.annotations(1).unlink()
    return Place(data.image(1))


def _omitted(data: DataSet) -> Place:
    described(lambda content: content + "skip_if_label_file_missing: true\n")(data)
    return _without_labels(data)


def _orphan(data: DataSet) -> Place:
    return Place(put(data.annotations(1).with_name("nine.txt"), "0 0.5 0.5 0.1 0.1\n"))


def _nameless(data: DataSet) -> Place:
    path = data.folder / "data.yaml"
    path.write_text(path.read_text().partition("names:")[0] + "nc: 2\n")
    return Place(path, "class 0")


def _unknown_list_entry(data: DataSet) -> Place:
    return Place(put(data.folder / "ImageSets/Main/train.txt", "0\n1\nnine\n"), "line 3")


def _endless_field(data: DataSet) -> Place:
    return row(9, f"{'a' * 200_000},train,cat,1,2,3,4")(data)


def _other_root(data: DataSet) -> Place:
    path = data.annotations(1)
    put(path, path.read_text().replace("annotation>", "note>"))
    return Place(path)


def _climbing_voc(data: DataSet) -> Place:
    path = data.annotations(1)
    put(path, path.read_text().replace("1.png", "../../secret.png"))
    data.image(1).unlink()
    return Place(path)


def _headless_seqinfo(data: DataSet) -> Place:
    return Place(put(data.annotations(0).parents[1] / "seqinfo.ini", "seqLength=4\n"))


def _climbing_seqinfo(data: DataSet) -> Place:
    """A further video whose frames are outside the dataset."""
    truth = data.annotations(4)
    folder = data.folder / "val" / "video-climbing"
    shutil.copytree(truth.parent, folder / "gt")
    return Place(put(folder / "seqinfo.ini", "[Sequence]\nimDir=../../../secret\n"), "imDir")


def _other_seqinfo(data: DataSet) -> Place:
    return Place(put(data.annotations(0).parents[1] / "seqinfo.ini", "[Sequence]\nimWidth=640\nimHeight=480\n"))


def _other_labels(data: DataSet) -> Place:
    return Place(put(data.annotations(4).with_name("labels.txt"), "dog\ncat\n"))


def _without_frames(data: DataSet) -> Place:
    truth = data.folder / "val" / "video-lost" / "gt" / "gt.txt"
    shutil.copytree(data.annotations(4).parent, truth.parent)
    return Place(truth)


def _without_frame(data: DataSet) -> Place:
    data.image(1).unlink()
    return Place(data.image(1).parents[1])


def _without_second_image(content: dict[str, Any]) -> None:
    del content["images"][1]
    content["annotations"] = [row for row in content["annotations"] if row["image_id"] != 1]


def _alike(data: DataSet) -> Place:
    if data.format in (VOC, CSV):  # their classes are sorted by name
        _third_class(data, "Dog", [0, 1, 2, 3])
        rename(data, 4, "dog", "Dog")
        return class_place(data, "dog")
    return _third_class(data, "Dog", [0, 1, 4])


def _crowd(data: DataSet) -> Place:
    coco(set_at("annotations", 8, "iscrowd", 1))(data)
    return data.place(1, 2)


def _long(data: DataSet) -> Place:
    if data.format == COCO:
        coco(lambda content: content["images"][1].update(width=1000, height=40))(data)
    elif data.format == VOC:
        text(f"<width>{WIDTH}</width><height>{HEIGHT}</height>", "<width>1000</width><height>40</height>")(data)
    else:
        data.write()
    # All frames of a video have one size.
    for index in range(4) if data.format == MOT else [1]:
        save(40, 1000)(data.image(index))
    return Place(data.image(1))


def _stale(data: DataSet) -> Place:
    """Written by `data convert`, then edited."""
    original = DataSet(COCO, data.folder.with_name("original"), data.images)
    original.folder.mkdir()
    original.write()
    data.folder.rmdir()
    convert(original.folder, data.folder, Format(data.format.lower()))
    path = next(path for path in data.folder.rglob("1.*") if path.suffix in (".txt", ".xml"))
    put(path, path.read_text().replace("<xmin>44", "<xmin>45").replace("0 0.1484375", "0 0.15"))
    return Place(path)


def outline(segmentation: Any, index: int = 2) -> Maker:
    """The objects of the first image have outlines, the third one this."""

    def change(content: dict[str, Any]) -> None:
        for row in content["annotations"][:6]:
            x, y, w, h = row["bbox"]
            row["segmentation"] = [[x, y, x + w, y, x + w, y + h, x, y + h]]
        content["annotations"][index]["segmentation"] = segmentation

    def make(data: DataSet) -> Place:
        coco(change)(data)
        return data.place(0, index)

    return make


def _box_among_polygons(data: DataSet) -> Place:
    path = data.annotations(1)
    first, *others = path.read_text().splitlines()
    put(path, "\n".join([first, "0 0.1 0.1 0.5 0.1 0.5 0.5", *others[1:]]) + "\n")
    return Place(path, "line 1")


def panoptic(change: Callable[[dict[str, Any], Path], Any], at: str = "", *, in_json: bool = False) -> Maker:
    """Panoptic maps beside the boxes, changed; the fault is in the second image's map, or in the JSON file."""

    def make(data: DataSet) -> Place:
        data.write()
        path = _write_panoptic(data)
        content = json.loads(path.read_text())
        png = path.with_suffix("") / "1.png"
        change(content, png)
        path.write_text(json.dumps(content))
        return Place(path if in_json else png, at)

    return make


def _write_panoptic(data: DataSet) -> Path:
    """The maps of all splits: every object a segment, the rest sky. Returns the training split's JSON file."""
    for split in dict.fromkeys(image.split for image in data.images):
        content = json.loads((data.folder / "annotations" / f"instances_{split}.json").read_text())
        folder = data.folder / "annotations" / f"panoptic_{split}"
        folder.mkdir()
        boxes, content["annotations"] = content["annotations"], []
        content["categories"].append({"id": 9, "name": "sky", "isthing": 0})
        for image in content["images"]:
            drawn = np.full((HEIGHT, WIDTH), 70_000, dtype=np.int32)
            segments = []
            for number, row in enumerate((row for row in boxes if row["image_id"] == image["id"]), start=1):
                x, y, w, h = row["bbox"]
                drawn[y : y + h, x : x + w] = number
                known = {"category_id": row["category_id"], "bbox": row["bbox"], "area": w * h, "iscrowd": 0}
                segments.append({"id": number, **known})
            sky = {"category_id": 9, "bbox": [0, 0, WIDTH, HEIGHT], "area": int((drawn == 70_000).sum()), "iscrowd": 0}
            segments.append({"id": 70_000, **sky})
            name = f"{image['id']}.png"
            write_map(folder / name, drawn)
            content["annotations"].append({"image_id": image["id"], "file_name": name, "segments_info": segments})
        path = folder.with_suffix(".json")
        path.write_text(json.dumps(content))
    return data.folder / "annotations" / "panoptic_train.json"


def _renumber(content: dict[str, Any], png: Path) -> None:
    content["annotations"][1]["segments_info"][2]["id"] = 5000


def _listed_again(content: dict[str, Any], png: Path) -> None:
    segments = content["annotations"][1]["segments_info"]
    segments.append(dict(segments[0], category_id=2))


def _drawn_over(content: dict[str, Any], png: Path) -> None:
    drawn = read_map(png)
    drawn[10:20, 10:60] = 2
    write_map(png, drawn)


_NO_BOX = "<object><name>cat</name></object>"

FAULTS = (
    Fault(FaultKind.NO_DATA, "the folder is not there", everywhere(after(_gone))),
    Fault(FaultKind.NO_DATA, "two splits, and none is named `train`", everywhere(before(_test_alone))),
    Fault(
        FaultKind.BROKEN_FILE,
        "a bracket or an end is missing",
        {
            COCO: after(lambda data: Place(put(data.annotations(), '{"images": ['), "line 1, column 13")),
            VOC: text("</annotation>", "", "line 8, column 1"),
            YOLO: described(lambda content: "train: images/train\nnames: [cat\n", "line 3, column 1"),
            CSV: after(_endless_field),
            MOT: after(_headless_seqinfo),
        },
    ),
    Fault(
        FaultKind.WRONG_STRUCTURE,
        "no `images` (COCO), no `<annotation>` (VOC), a folder that is not there (YOLO)",
        {
            COCO: coco(lambda content: content.pop("images")),
            VOC: after(_other_root),
            YOLO: described(lambda content: content.replace("images/val", "images/night"), "'val'"),
        },
    ),
    Fault(
        FaultKind.BAD_CLASSES,
        "two classes with one id, a number of classes that is not that of the names, videos with different classes",
        {
            COCO: coco(set_at("categories", 1, "id", 1), "categories"),
            YOLO: described(lambda content: content + "nc: 7\n", "'nc'"),
            MOT: after(_other_labels),
        },
    ),
    Fault(
        FaultKind.MISSING_FIELD,
        "an annotation without a box",
        {
            COCO: coco(pop_at("annotations", 2, "bbox"), "annotations[2] (id 3)"),
            VOC: text("<object>", _NO_BOX + "<object>", "object 1"),
        },
    ),
    Fault(
        FaultKind.BAD_VALUE,
        "a text where a number belongs",
        {
            COCO: coco(set_at("annotations", 2, "bbox", [1, 2, "x", 4]), "annotations[2] (id 3)"),
            VOC: text("<xmin>44</xmin>", "<xmin>x</xmin>", "object 2"),
        },
    ),
    Fault(
        FaultKind.INVALID_ROW,
        "a text where a number belongs",
        {
            YOLO: row(2, "0 0.5 x 0.1 0.1"),
            CSV: row(9, "1.png,train,cat,1,x,3,4"),
            MOT: row(8, "2,2,44,x,30,36,1,2,1"),
        },
    ),
    Fault(FaultKind.PIXEL_ROW, "`0 44 5 30 36`", {YOLO: row(2, "0 44 5 30 36")}),
    Fault(
        FaultKind.REPEATED_IMAGE_ID, "two images with the id 0", {COCO: coco(set_at("images", 1, "id", 0), "images[1]")}
    ),
    Fault(
        FaultKind.UNKNOWN_IMAGE,
        "`image_id` of no image",
        {COCO: coco(set_at("annotations", 2, "image_id", 99), "annotations[2] (id 3)")},
    ),
    Fault(
        FaultKind.UNKNOWN_CLASS,
        "`category_id` of no category; class 7 of 2",
        {
            COCO: coco(set_at("annotations", 2, "category_id", 99), "annotations[2] (id 3)"),
            MOT: row(8, "2,2,44,5,30,36,1,7,1"),
        },
    ),
    Fault(FaultKind.UNLISTED_CLASS, "class 7 of 2", {YOLO: row(2, "7 0.5 0.5 0.1 0.1")}),
    Fault(
        FaultKind.UNSAFE_NAME,
        "`../../secret.png`",
        {
            COCO: coco(set_at("images", 1, "file_name", "../../secret.png"), "images[1]"),
            VOC: after(_climbing_voc),
            MOT: after(_climbing_seqinfo),
        },
    ),
    Fault(
        FaultKind.MISSING_IMAGE,
        "no such file",
        {
            **everywhere(after(_missing_image), COCO, VOC, CSV),
            YOLO: after(_missing_in_list),
            MOT: after(_without_frames),
        },
    ),
    Fault(
        FaultKind.AMBIGUOUS_NAME,
        "`1.png` for `a/1.png` and `b/1.png`",
        everywhere(after(_two_of_a_name), COCO, VOC, CSV),
    ),
    Fault(FaultKind.MISSING_ANNOTATION, "a list names an image without XML", {VOC: after(_unknown_list_entry)}),
    Fault(
        FaultKind.SIZE_MISMATCH,
        "the image was resized after it was annotated",
        everywhere(image(save(HEIGHT // 2, WIDTH // 2)), COCO, VOC),
    ),
    Fault(FaultKind.SWAPPED_SIZE, "`96x128` for an image of 128x96", everywhere(after(_swapped), COCO, VOC)),
    Fault(
        FaultKind.DOUBTFUL_SIZE,
        "`96x128` for an image of 128x96, and all boxes fit into both",
        everywhere(_perhaps_swapped, COCO, VOC),
    ),
    Fault(
        FaultKind.NO_LABELS,
        "the validation split has no object",
        everywhere(before(_no_val_objects), COCO, VOC, YOLO, MOT),
    ),
    Fault(FaultKind.EMPTY_FILE, "0 bytes", everywhere(image(lambda path: path.write_bytes(b"")))),
    Fault(FaultKind.UNREADABLE_IMAGE, "cut off", everywhere(image(_cut_off))),
    Fault(FaultKind.UNREADABLE_IMAGE, "no image at all", everywhere(image(lambda path: path.write_text("<html>")))),
    Fault(FaultKind.OVERSIZED_IMAGE, "8000x8000 pixels in 8 kB", everywhere(image(_bomb))),
    Fault(FaultKind.INVALID_BOX, "a width of -5", everywhere(box(84, 5, -5, 36))),
    Fault(FaultKind.NO_AREA, "a width of 0", everywhere(box(84, 5, 0, 36))),
    Fault(FaultKind.NO_AREA, "beside the image", everywhere(box(130, 5, 20, 36))),
    Fault(
        FaultKind.INVALID_OUTLINE,
        "a polygon of two points",
        {COCO: outline([[1, 1, 9, 9]])},
    ),
    Fault(
        FaultKind.INVALID_OUTLINE,
        "RLE of too many pixels",
        {COCO: outline({"size": [HEIGHT, WIDTH], "counts": [0, HEIGHT * WIDTH + 1]})},
    ),
    Fault(FaultKind.INVALID_OUTLINE, "a number that is none", {COCO: outline([[1, 1, 9, 9, 1, "x"]])}),
    Fault(FaultKind.NO_OUTLINE, "a box among polygons", {COCO: outline(None), YOLO: after(_box_among_polygons)}),
    Fault(FaultKind.EMPTY_MASK, "all points in one place", {COCO: outline([[5, 5, 5, 5, 5, 5]])}),
    Fault(
        FaultKind.MASK_SIZE,
        "RLE of an image half as large",
        {COCO: outline({"size": [HEIGHT // 2, WIDTH // 2], "counts": [0, HEIGHT * WIDTH // 4]})},
    ),
    Fault(
        FaultKind.MASK_SIZE,
        "a panoptic map half as large",
        {COCO: panoptic(lambda content, png: write_map(png, read_map(png)[::2, ::2]))},
    ),
    Fault(FaultKind.UNREADABLE_MAP, "no such file", {COCO: panoptic(lambda content, png: png.unlink())}),
    Fault(FaultKind.UNREADABLE_MAP, "cut off", {COCO: panoptic(lambda content, png: png.write_bytes(b"\x89PNG"))}),
    Fault(FaultKind.MISSING_SEGMENT, "a number that no pixel has", {COCO: panoptic(_renumber, "segment 5000")}),
    Fault(
        FaultKind.REPEATED_SEGMENT,
        "two segments with one number",
        {COCO: panoptic(_listed_again, "annotations[1].segments_info[7]", in_json=True)},
    ),
    Fault(
        FaultKind.UNLISTED_SEGMENT, "pixels of a number that is not listed", {COCO: panoptic(_renumber, "segment 3")}
    ),
    Fault(FaultKind.SEGMENT_AREA, "another segment drawn over it", {COCO: panoptic(_drawn_over, "segment 1")}),
    Fault(
        FaultKind.VOID_MAP,
        "every pixel 0",
        {COCO: panoptic(lambda content, png: write_map(png, np.zeros((HEIGHT, WIDTH), dtype=np.int32)))},
    ),
    Fault(
        FaultKind.VOID_MAP,
        "no segment listed",
        {
            COCO: panoptic(
                lambda content, png: content["annotations"][1]["segments_info"].clear(),
                "annotations[1]",
                in_json=True,
            )
        },
    ),
    Fault(
        FaultKind.REPEATED_TRACK,
        "id 1 twice in a frame",
        {
            COCO: tracked(set_at("annotations", 7, "track_id", 1), "annotation 8"),
            MOT: row(8, "2,1,44,5,30,36,1,2,1"),
        },
    ),
    Fault(FaultKind.OUTSIDE_VIDEO, "frame 9 of 4", {MOT: row(8, "9,2,44,5,30,36,1,2,1")}),
    Fault(FaultKind.VIDEO_SIZE, "`imWidth=640`, frames of 128 pixels", {MOT: after(_other_seqinfo)}),
    Fault(
        FaultKind.MISSING_FRAME,
        "frames 1, 3 and 4",
        {COCO: tracked(_without_second_image, "video street"), MOT: after(_without_frame)},
    ),
    Fault(
        FaultKind.CLASS_CHANGE,
        "a dog in one frame, a cat in the next",
        {
            COCO: tracked(set_at("annotations", 7, "category_id", 1), "annotation 8"),
            MOT: row(8, "2,2,44,5,30,36,1,1,1"),
        },
    ),
    Fault(
        FaultKind.SHORT_TRACK,
        "id 9 in one frame only",
        {
            COCO: tracked(set_at("annotations", 7, "track_id", 9), "annotation 8"),
            MOT: row(8, "2,9,44,5,30,36,1,2,1"),
        },
    ),
    Fault(FaultKind.OUT_OF_IMAGE, "10 pixels too far to the right", everywhere(box(84, 5, 54, 36))),
    Fault(FaultKind.NAMELESS_CLASS, "`nc: 2` without `names`", {YOLO: after(_nameless)}),
    Fault(FaultKind.STALE_EXTRA, "a label file edited after `data convert`", {YOLO: _stale, VOC: _stale}),
    Fault(
        FaultKind.RESPELLED_NAME,
        "`http://server/data/1.PNG` for `1.png`",
        everywhere(after(_respelled), COCO, YOLO, CSV),
    ),
    Fault(
        FaultKind.NO_SIZE,
        "no width",
        {
            COCO: coco(pop_at("images", 1, "width"), "images[1]"),
            VOC: text(f"<width>{WIDTH}</width>", ""),
        },
    ),
    Fault(
        FaultKind.NEW_ID,
        "a UUID",
        {COCO: coco(set_at("annotations", 2, "id", "8f7e-41d2"), "annotations")},
    ),
    Fault(
        FaultKind.NO_BOX,
        "a polygon without `bbox`",
        {
            COCO: coco(
                lambda content: content["annotations"][2].update(bbox=None, segmentation=[[84, 5, 110, 5, 100, 40]]),
                "annotations[2] (id 3)",
            )
        },
    ),
    Fault(
        FaultKind.ROTATED_BOX,
        "`rotation: 30` in the attributes; four corners of a rotated box",
        everywhere(_rotated, COCO, VOC, YOLO),
    ),
    Fault(
        FaultKind.CONFIDENCE,
        "`score: 0.4`",
        {
            COCO: coco(set_at("annotations", 2, "score", 0.4), "annotations[2] (id 3)"),
            CSV: after(_with_score),
        },
    ),
    Fault(
        FaultKind.BAD_AREA, "an area of -1", {COCO: coco(set_at("annotations", 2, "area", -1), "annotations[2] (id 3)")}
    ),
    Fault(FaultKind.TURNED_IMAGE, "annotated in a tool that ignores EXIF", everywhere(image(_turned), COCO, VOC)),
    Fault(FaultKind.ANIMATED_IMAGE, "an animated PNG", everywhere(image(_animated))),
    Fault(FaultKind.LOW_CONTRAST, "values of 12 bits in a 16-bit PNG", everywhere(image(_twelve_bits))),
    Fault(FaultKind.TRUNCATED_IMAGE, "a JPEG without its last five bytes", everywhere(image(_without_last_bytes))),
    Fault(
        FaultKind.CROWD,
        "`iscrowd: 1`; a row with the flag 0",
        {COCO: _crowd, MOT: row(9, "2,3,84,5,30,36,0,1,1")},
    ),
    Fault(FaultKind.UNLABELLED_IMAGE, "no label file", {YOLO: after(_without_labels)}),
    Fault(FaultKind.OMITTED_IMAGE, "no label file, `skip_if_label_file_missing: true`", {YOLO: after(_omitted)}),
    Fault(FaultKind.NO_OBJECTS, "an image without annotations", everywhere(before(_no_objects))),
    Fault(
        FaultKind.IN_TRAINING,
        "listed in both splits",
        {**everywhere(after(_listed_twice), VOC, YOLO, CSV), COCO: after(_coco_in_both)},
    ),
    Fault(FaultKind.COPY_IN_TRAINING, "renamed and saved anew", everywhere(_copy(1, 4))),
    Fault(FaultKind.COPY_IN_SPLIT, "renamed and saved anew", everywhere(_copy(0, 1))),
    Fault(FaultKind.COPY_IN_SPLIT, "one file listed as two images", {COCO: after(_one_file_twice)}),
    Fault(
        FaultKind.REPEATED_ID,
        "two annotations with the id 2",
        {COCO: coco(set_at("annotations", 2, "id", 2), "annotations[2] (id 2)")},
    ),
    Fault(
        FaultKind.BYTE_SPANS,
        '`[[6, 15]]` for "français" in "a bel français"',
        {COCO: captions([[6, 15]], "images[0]", "a bel français")},
    ),
    Fault(
        FaultKind.SPAN_OUTSIDE,
        "`[[16, 25]]` in a caption of 20 characters",
        {COCO: captions([[16, 25]], "annotation 3")},
    ),
    Fault(FaultKind.EMPTY_SPAN, "`[[2, 2]]`", {COCO: captions([[2, 2]], "annotation 3")}),
    Fault(FaultKind.NO_SPAN, "a box that no word names", {COCO: captions([], "annotation 3")}),
    Fault(FaultKind.REPEATED_BOX, "annotated twice", everywhere(repeat("cat"))),
    Fault(FaultKind.TWO_CLASSES, "annotated as a cat and as a dog", everywhere(repeat("dog"))),
    Fault(FaultKind.NORMALISED_BOXES, "`[0.1, 0.2, 0.5, 0.4]`", everywhere(before(_normalised), COCO, VOC, CSV, MOT)),
    Fault(FaultKind.FOREIGN_SCALE, "annotated at three times the size", everywhere(before(_enlarged))),
    Fault(
        FaultKind.BOX_FORMAT,
        "two corners where a corner and the sides belong, or the reverse",
        everywhere(before(_as_corners), COCO, VOC, YOLO, CSV),
    ),
    Fault(FaultKind.EXTRA_NUMBERS, "a box and keypoints, without `kpt_shape`", {YOLO: after(_with_keypoints)}),
    Fault(FaultKind.EXTRA_NUMBERS, "a box and a confidence", {YOLO: after(_with_confidence)}),
    Fault(
        FaultKind.UNKNOWN_ROTATION,
        "a column `angle`; a field `theta`",
        {
            COCO: coco(set_at("annotations", 2, "theta", 0.3), "annotations[2] (id 3)"),
            CSV: after(_with_angle),
        },
    ),
    Fault(FaultKind.UNMATCHED_LABELS, "`frame_0.txt` beside `0.png`", {YOLO: after(_renamed_labels)}),
    Fault(FaultKind.CROWD_ONLY, "every cat has `iscrowd: 1`", {COCO: after(_all_crowd)}),
    Fault(FaultKind.TOO_FEW_QUERIES, "60 objects in most images", everywhere(before(_many_crowded))),
    Fault(FaultKind.SHIFTED_CLASSES, "classes 1 and 2 of 2", {YOLO: after(_shifted)}),
    Fault(FaultKind.SMALL_OBJECT, "2x2 pixels", everywhere(box(84, 5, 2, 2))),
    Fault(FaultKind.THIN_BOX, "40x1 pixels", everywhere(box(84, 5, 40, 1))),
    Fault(FaultKind.LONG_IMAGE, "1000x40 pixels", everywhere(_long)),
    Fault(FaultKind.TOO_MANY_OBJECTS, "60 objects, a model of 50 queries", everywhere(before(_crowded))),
    Fault(
        FaultKind.UNSEEN_CLASS,
        "only in the validation split",
        everywhere(before(_cow_in(4))),
    ),
    Fault(FaultKind.RARE_CLASS, "3 objects to train on", everywhere(before(_cow_in(0)))),
    Fault(
        FaultKind.UNUSED_CLASS,
        "listed, and nowhere annotated",
        everywhere(before(_cow_in()), COCO, YOLO, MOT),
    ),
    Fault(FaultKind.ALIKE_NAMES, "`dog` and `Dog`", everywhere(before(_alike))),
    Fault(FaultKind.TINY_IMAGE, "an icon of 16x16 pixels", {}),  # see test_unlabelled.py
    Fault(FaultKind.UNLISTED_IMAGE, "an image that nobody annotated", everywhere(after(_unlisted), COCO, VOC, CSV)),
    Fault(FaultKind.ORPHAN_LABELS, "labels whose image is gone", {YOLO: after(_orphan)}),
)


# ---------------------------------------------------------------------------------------------------------- the page


def table() -> str:
    """The faults as Markdown, by what training does with them."""
    rows = ["| what | for instance | formats | training | `--fix` |", "|---|---|---|---|---|"]
    for effect in Effect:
        for kind in (kind for kind in FaultKind if kind.effect is effect):
            faults = [fault for fault in FAULTS if fault.kind is kind]
            formats = [name for name in FORMATS if any(name in fault.makers for fault in faults)]
            examples = "; ".join(fault.example for fault in faults)
            cells = (
                f"{kind.describe(2).removeprefix('2 ')} (`{kind}`)",
                examples,
                "all" if len(formats) == len(FORMATS) else ", ".join(formats) or "without annotations",
                kind.consequence,
                "fixed" if kind.fixable else "",
            )
            rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def renewed(page: str) -> str:
    """The page with the table as it is to be."""
    head, _, rest = page.partition(_BEGIN)
    _, _, tail = rest.partition(_END)
    return f"{head}{_BEGIN}\n\n{table()}\n\n{_END}{tail}"


if __name__ == "__main__":
    PAGE.write_text(renewed(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
