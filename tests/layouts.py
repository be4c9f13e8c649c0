"""Datasets as annotation tools export them: how each is drawn, and what is to be read.

`tests/test_layouts.py` reads every one of them, also nested, renamed and in other cases; the table of tools in
`docs/data.md` is made from this list by

    python tests/layouts.py
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from folders import make_image, voc_xml
from opendetr.data.formats import Format

HEIGHT, WIDTH = 48, 64
PAGE = Path(__file__).parents[1] / "docs" / "data.md"
_BEGIN, _END = "<!-- tools: made by `python tests/layouts.py` -->", "<!-- end of tools -->"
CLASSES = ("cat", "dog")
# Class and x, y, width, height in pixels of the two objects of image number n: the cat moves to the right.
SPLITS = {"train": range(4), "valid": range(4, 6), "test": range(6, 7)}
NUM_IMAGES = 7
THREE = {"train": 4, "val": 2, "test": 1}


def objects(index: int) -> list[tuple[str, tuple[float, float, float, float]]]:
    return [("cat", (4 + index, 5, 20, 10)), ("dog", (30, 8.5, 25.5, 30))]


def corners(box: Sequence[float]) -> tuple[float, float, float, float]:
    x, y, w, h = box
    return x, y, x + w, y + h


def split_of(index: int) -> str:
    return next(name for name, indices in SPLITS.items() if index in indices)


# --------------------------------------------------------------------------------------------------------- the writers


class Put(NamedTuple):
    """Writes files into a folder."""

    folder: Path

    def text(self, name: str, content: str) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")

    def json(self, name: str, content: Any) -> None:
        self.text(name, json.dumps(content))

    def image(self, name: str, index: int) -> None:
        from PIL import Image

        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(make_image(HEIGHT, WIDTH, index)).save(path)

    def images(self, pattern: str, indices: Iterable[int] = range(NUM_IMAGES)) -> None:
        for index in indices:
            self.image(pattern.format(index=index, split=split_of(index)), index)

    def rows(self, name: str, rows: Iterable[Sequence[Any]], delimiter: str = ",") -> None:
        text = io.StringIO()
        csv.writer(text, delimiter=delimiter, lineterminator="\n").writerows(rows)
        self.text(name, text.getvalue())


def coco(names: dict[int, str]) -> dict[str, Any]:
    """A COCO file of the images of these names."""
    annotations = [
        {"image_id": index, "category_id": 1 + CLASSES.index(name), "bbox": list(box), "iscrowd": 0}
        for index in names
        for name, box in objects(index)
    ]
    return {
        "images": [{"id": index, "file_name": name, "height": HEIGHT, "width": WIDTH} for index, name in names.items()],
        "annotations": [{"id": number, **row} for number, row in enumerate(annotations, start=1)],
        "categories": [{"id": 1 + label, "name": name} for label, name in enumerate(CLASSES)],
    }


def named(pattern: str, indices: Iterable[int] = range(NUM_IMAGES)) -> dict[int, str]:
    return {index: pattern.format(index=index) for index in indices}


def xml(name: str, index: int) -> str:
    size = f"<width>{WIDTH}</width><height>{HEIGHT}</height>"
    content = voc_xml("name", [(label, list(corners(box))) for label, box in objects(index)], size)
    return content.replace("name.jpg", name).replace("<difficult>1", "<difficult>0")


def yolo(index: int) -> str:
    rows = []
    for name, (x, y, w, h) in objects(index):
        numbers = ((x + w / 2) / WIDTH, (y + h / 2) / HEIGHT, w / WIDTH, h / HEIGHT)
        rows.append(" ".join(map(str, (CLASSES.index(name), *numbers))))
    return "\n".join(rows) + "\n"


def cvat(names: dict[int, str]) -> str:
    shapes = {
        index: "".join(
            '<box label="{}" xtl="{}" ytl="{}" xbr="{}" ybr="{}" rotation="0.0" occluded="0" z_order="0"/>'.format(
                label, *corners(box)
            )
            for label, box in objects(index)
        )
        for index in names
    }
    images = "".join(
        f'<image id="{index}" name="{name}" width="{WIDTH}" height="{HEIGHT}">{shapes[index]}</image>'
        for index, name in names.items()
    )
    labels = "".join(f"<label><name>{name}</name></label>" for name in CLASSES)
    meta = f"<meta><task><name>a task</name><labels>{labels}</labels></task></meta>"
    return f'<?xml version="1.0" encoding="utf-8"?>\n<annotations><version>1.1</version>{meta}{images}</annotations>'


def labelme(name: str, index: int) -> dict[str, Any]:
    shapes = []
    for number, (label, box) in enumerate(objects(index)):
        x0, y0, x1, y1 = corners(box)
        points = [[x1, y0], [x0, y1]] if number % 2 else [[x0, y0], [x1, y1]]
        shapes.append({"label": label, "points": points, "group_id": None, "shape_type": "rectangle", "flags": {}})
    size = {"imageHeight": HEIGHT, "imageWidth": WIDTH}
    return {"version": "5.4.1", "flags": {}, "shapes": shapes, "imagePath": name, "imageData": None, **size}


def via_region(name: str, box: Sequence[float]) -> dict[str, Any]:
    x, y, w, h = box
    shape = {"name": "rect", "x": x, "y": y, "width": w, "height": h}
    return {"shape_attributes": shape, "region_attributes": {"class": name}}


def via(names: dict[int, str]) -> dict[str, Any]:
    return {
        f"{name}123": {
            "filename": name,
            "size": 123,
            "regions": [via_region(*obj) for obj in objects(index)],
            "file_attributes": {},
        }
        for index, name in names.items()
    }


def table(names: dict[int, str]) -> list[list[Any]]:
    """Rows of image, class and corners."""
    return [[name, label, *corners(box)] for index, name in names.items() for label, box in objects(index)]


# ----------------------------------------------------------------------------------------------------------- the list

Writer = Callable[[Put], None]


@dataclass(frozen=True)
class Layout:
    """One export.

    Attributes:
        tool: the tool that writes it.
        export: what to choose in the tool.
        format: the format that it is read as.
        write: draws it.
        splits: split -> number of images.
        faults: kinds of faults that it has.
        note: what to know about it, for the docs.
    """

    tool: str
    export: str
    format: Format
    write: Writer
    splits: Mapping[str, int] = field(default_factory=lambda: {"all": NUM_IMAGES})
    faults: tuple[str, ...] = ()
    note: str = ""

    @property
    def id(self) -> str:
        return f"{self.tool}-{self.export}".replace(" ", "-").lower()


def _cvat_xml(put: Put) -> None:
    put.images("images/{index}.png")
    put.text("annotations.xml", cvat(named("{index}.png")))


def _cvat_yolo(put: Put) -> None:
    put.images("obj_train_data/frame_{index}.PNG")
    for index in range(NUM_IMAGES):
        put.text(f"obj_train_data/frame_{index}.txt", yolo(index))
    put.text("obj.names", "cat\ndog\n")
    put.text("obj.data", "classes = 2\ntrain = data/train.txt\nnames = data/obj.names\nbackup = backup/\n")
    put.text("train.txt", "\n".join(f"data/obj_train_data/frame_{index}.PNG" for index in range(NUM_IMAGES)) + "\n")


def _cvat_voc(put: Put) -> None:
    put.images("JPEGImages/{index}.png")
    for index in range(NUM_IMAGES):
        put.text(f"Annotations/{index}.xml", xml(f"{index}.png", index))
    put.text("ImageSets/Main/default.txt", "".join(f"{index}\n" for index in range(NUM_IMAGES)))
    put.text("labelmap.txt", "# label:color_rgb:parts:actions\nbackground:0,0,0::\ncat:1,2,3::\n")


def _cvat_coco(put: Put) -> None:
    put.images("images/default/{index}.png")
    put.json("annotations/instances_default.json", coco(named("{index}.png")))


def _roboflow_names(split: str) -> dict[int, str]:
    return named("{index}_png.rf.0a1b{index}.jpg", SPLITS[split])


def _roboflow_coco(put: Put) -> None:
    put.images("{split}/{index}_png.rf.0a1b{index}.jpg")
    for split in SPLITS:
        put.json(f"{split}/_annotations.coco.json", coco(_roboflow_names(split)))


def _roboflow_voc(put: Put) -> None:
    put.images("{split}/{index}_png.rf.0a1b{index}.jpg")
    for split in SPLITS:
        for index, name in _roboflow_names(split).items():
            put.text(f"{split}/{name[:-4]}.xml", xml(name, index))


def _roboflow_csv(put: Put) -> None:
    put.images("{split}/{index}_png.rf.0a1b{index}.jpg")
    for split in SPLITS:
        rows = [[name, WIDTH, HEIGHT, *others] for name, *others in table(_roboflow_names(split))]
        header = ["filename", "width", "height", "class", "xmin", "ymin", "xmax", "ymax"]
        put.rows(f"{split}/_annotations.csv", [header, *rows])


def _roboflow_yolo(put: Put) -> None:
    put.images("{split}/images/{index}_png.rf.0a1b{index}.jpg")
    for split in SPLITS:
        for index, name in _roboflow_names(split).items():
            put.text(f"{split}/labels/{name[:-4]}.txt", yolo(index))
    lines = "train: ../train/images\nval: ../valid/images\ntest: ../test/images\n\nnc: 2\nnames: ['cat', 'dog']\n"
    put.text("data.yaml", lines)


def _roboflow_darknet(put: Put) -> None:
    put.images("{split}/{index}_png.rf.0a1b{index}.jpg")
    for split in SPLITS:
        put.text(f"{split}/_darknet.labels", "cat\ndog\n")
        for index, name in _roboflow_names(split).items():
            put.text(f"{split}/{name[:-4]}.txt", yolo(index))


def _studio_coco(put: Put) -> None:
    put.images("images/cb060{index}f6-shot.png")
    put.json("result.json", coco(named("images\\cb060{index}f6-shot.png")))


def _studio_coco_on_server(put: Put) -> None:
    put.images("images/shot-{index}.png")
    put.json("result.json", coco(named("https://host/data/upload/1/cb060{index}f6-shot-{index}.png")))


def _studio_yolo(put: Put) -> None:
    put.images("images/cb060{index}f6-shot.png")
    for index in range(NUM_IMAGES):
        put.text(f"labels/cb060{index}f6-shot.txt", yolo(index))
    put.text("classes.txt", "cat\ndog\n")
    put.json("notes.json", {"categories": [{"id": 0, "name": "cat"}, {"id": 1, "name": "dog"}], "info": {}})


def _studio_voc(put: Put) -> None:
    put.images("images/cb060{index}f6-shot.png")
    for index in range(NUM_IMAGES):
        put.text(f"Annotations/cb060{index}f6-shot.xml", xml(f"cb060{index}f6-shot", index))


def _labelimg_voc(put: Put) -> None:
    put.images("photo {index}.jpg")
    for index in range(NUM_IMAGES):
        put.text(f"photo {index}.xml", xml(f"photo {index}.jpg", index))
    put.text("predefined_classes.txt", "person\n")


def _labelimg_yolo(put: Put) -> None:
    put.images("p{index}.jpg")
    for index in range(NUM_IMAGES):
        put.text(f"p{index}.txt", yolo(index))
    put.text("classes.txt", "cat\ndog\n")


def _labelme(put: Put) -> None:
    put.images("img{index}.jpg")
    for index in range(NUM_IMAGES):
        put.json(f"img{index}.json", labelme(f"img{index}.jpg", index))


def _vott_voc(put: Put) -> None:
    put.images("JPEGImages/{index}.jpg")
    for index in range(NUM_IMAGES):
        put.text(f"Annotations/{index}.xml", xml(f"{index}.jpg", index))
    for name in CLASSES:
        put.text(f"ImageSets/Main/{name}_train.txt", "".join(f"{index}.jpg 1\n" for index in range(5)))
        put.text(f"ImageSets/Main/{name}_val.txt", "".join(f"{index}.jpg 1\n" for index in range(5, 7)))
    put.text("pascal_label_map.pbtxt", "item {\n id: 1\n name: 'cat'\n}\n")


def _vott_csv(put: Put) -> None:
    put.images("vott-csv-export/{index}.jpg")
    rows = [[name, *box, label] for name, label, *box in table(named("{index}.jpg"))]
    put.rows("vott-csv-export/pets-export.csv", [["image", "xmin", "ymin", "xmax", "ymax", "label"], *rows])


def _via_json(put: Put) -> None:
    put.images("{index}.jpg")
    put.json("via_export_json.json", via(named("{index}.jpg")))


def _via_project(put: Put) -> None:
    put.images("images/{index}.jpg")
    settings = {"ui": {}, "core": {"filepath": {}}, "project": {"name": "pets"}}
    content = {"_via_settings": settings, "_via_img_metadata": via(named("{index}.jpg")), "_via_attributes": {}}
    put.json("via_project.json", content)


def _via_csv(put: Put) -> None:
    put.images("{index}.jpg")
    header = "filename,file_size,file_attributes,region_count,region_id,region_shape_attributes,region_attributes"
    rows: list[Sequence[Any]] = [header.split(",")]
    for index, name in named("{index}.jpg").items():
        for number, obj in enumerate(objects(index)):
            region = via_region(*obj)
            parts = (json.dumps(region[key]) for key in ("shape_attributes", "region_attributes"))
            rows.append([name, 123, "{}", 2, number, *parts])
    put.rows("via_export_csv.csv", rows)


def _fiftyone_coco(put: Put) -> None:
    put.images("data/{index}.jpg")
    put.json("labels.json", {"info": {"url": ""}, "licenses": [], **coco(named("{index}.jpg"))})


def _fiftyone_voc(put: Put) -> None:
    put.images("data/{index}.jpg")
    for index in range(NUM_IMAGES):
        put.text(f"labels/{index}.xml", xml(f"{index}.jpg", index))


def _fiftyone_yolo(put: Put) -> None:
    put.images("images/val/{index}.jpg")
    for index in range(NUM_IMAGES):
        put.text(f"labels/val/{index}.txt", yolo(index))
    put.text("dataset.yaml", "names:\n  0: cat\n  1: dog\npath: /home/me/export\nval: ./images/val/\n")


_OPEN_IMAGES = (
    "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,IsGroupOf,IsDepiction,IsInside"
)


def _open_images_rows(indices: Iterable[int]) -> list[Sequence[Any]]:
    rows: list[Sequence[Any]] = [_OPEN_IMAGES.split(",")]
    for name, label, x0, y0, x1, y1 in table(named("000000000000{index}", indices)):
        box = (x0 / WIDTH, x1 / WIDTH, y0 / HEIGHT, y1 / HEIGHT)
        rows.append([name, "xclick", f"/m/01{label}", 1, *box, 0, 0, 0, 0, 0])
    return rows


def _fiftyone_open_images(put: Put) -> None:
    put.images("data/000000000000{index}.jpg")
    put.rows("labels/detections.csv", _open_images_rows(range(NUM_IMAGES)))
    put.rows("metadata/classes.csv", [["/m/01cat", "cat"], ["/m/01dog", "dog"]])


def _open_images(put: Put) -> None:
    put.images("{split}/000000000000{index}.jpg")
    for split, prefix in (("train", "oidv6-train"), ("valid", "validation"), ("test", "test")):
        put.rows(f"{prefix}-annotations-bbox.csv", _open_images_rows(SPLITS[split]))
    put.rows("class-descriptions-boxable.csv", [["/m/01cat", "cat"], ["/m/01dog", "dog"]])


def _darknet(put: Put) -> None:
    put.images("data/obj/{index}.jpg")
    for index in range(NUM_IMAGES):
        put.text(f"data/obj/{index}.txt", yolo(index))
    put.text("data/pets.names", "cat\ndog\n")
    lists = "train = data/train.txt\nvalid = data/valid.txt\n"
    put.text("cfg/pets.data", f"classes= 2\n{lists}names = data/pets.names\nbackup = backup\n")
    for split in ("train", "valid"):
        indices = range(5) if split == "train" else range(5, NUM_IMAGES)
        put.text(f"data/{split}.txt", "".join(f"data/obj/{index}.jpg\n" for index in indices))


def _ultralytics(put: Put) -> None:
    put.images("images/{split}/{index}.jpg")
    for index in range(NUM_IMAGES):
        put.text(f"labels/{split_of(index)}/{index}.txt", yolo(index))
    lines = "path: ../datasets/pets\ntrain: images/train\nval: images/valid\ntest: images/test\n"
    put.text("pets.yaml", lines + "names:\n  0: cat\n  1: dog\n")


def _coco_in_splits(put: Put) -> None:
    put.images("{split}/pictures/{index}.jpg")
    for split, indices in SPLITS.items():
        put.json(f"{split}/annotations.json", coco(named("{index}.jpg", indices)))


def _voc_in_splits(put: Put) -> None:
    put.images("{split}/img/{index}.jpg")
    for index in range(NUM_IMAGES):
        put.text(f"{split_of(index)}/annots/{index}.xml", xml(f"{index}.jpg", index))


def _yolo_in_any_folders(put: Put) -> None:
    put.images("pictures/{index}.jpg")
    for index in range(NUM_IMAGES):
        put.text(f"text/{index}.txt", yolo(index))
    put.text("text/classes.txt", "cat\ndog\n")


def _table_without_header(put: Put) -> None:
    put.images("set/{index}.jpg")
    rows = [[name, *box, label] for name, label, *box in table(named("set\\{index}.jpg"))]
    put.rows("annotations.csv", rows)
    put.rows("classes.csv", [["cat", 0], ["dog", 1]])


LAYOUTS = (
    Layout("CVAT", "CVAT for images 1.1", Format.CVAT, _cvat_xml),
    Layout("CVAT", "COCO 1.0", Format.COCO, _cvat_coco),
    Layout("CVAT", "YOLO 1.1", Format.YOLO, _cvat_yolo, splits={"train": NUM_IMAGES}),
    Layout("CVAT", "Pascal VOC 1.1", Format.VOC, _cvat_voc),
    Layout("Roboflow", "COCO", Format.COCO, _roboflow_coco, splits=THREE),
    Layout("Roboflow", "Pascal VOC", Format.VOC, _roboflow_voc, splits=THREE),
    Layout("Roboflow", "YOLOv5 to v12", Format.YOLO, _roboflow_yolo, splits=THREE),
    Layout("Roboflow", "YOLO Darknet", Format.YOLO, _roboflow_darknet, splits=THREE),
    Layout("Roboflow", "CSV, for Keras or TensorFlow", Format.TABLE, _roboflow_csv, splits=THREE),
    Layout("Label Studio", "COCO with images", Format.COCO, _studio_coco),
    Layout(
        "Label Studio",
        "COCO",
        Format.COCO,
        _studio_coco_on_server,
        faults=("respelled_name",),
        note="put the images into the folder",
    ),
    Layout("Label Studio", "YOLO with images", Format.YOLO, _studio_yolo),
    Layout("Label Studio", "Pascal VOC XML", Format.VOC, _studio_voc),
    Layout("LabelImg", "PascalVOC", Format.VOC, _labelimg_voc),
    Layout("LabelImg", "YOLO", Format.YOLO, _labelimg_yolo),
    Layout("labelme", "its JSON files", Format.LABELME, _labelme),
    Layout("VoTT", "Pascal VOC", Format.VOC, _vott_voc),
    Layout("VoTT", "CSV", Format.TABLE, _vott_csv),
    Layout("VIA", "annotations as JSON", Format.VIA, _via_json),
    Layout("VIA", "annotations as CSV", Format.VIA, _via_csv),
    Layout("VIA", "the project", Format.VIA, _via_project),
    Layout("FiftyOne", "COCODetectionDataset", Format.COCO, _fiftyone_coco),
    Layout("FiftyOne", "VOCDetectionDataset", Format.VOC, _fiftyone_voc),
    Layout("FiftyOne", "YOLOv5Dataset", Format.YOLO, _fiftyone_yolo, splits={"val": NUM_IMAGES}),
    Layout("FiftyOne", "OpenImagesV6Dataset", Format.TABLE, _fiftyone_open_images),
    Layout("Open Images", "boxes and class descriptions", Format.TABLE, _open_images, splits=THREE),
    Layout(
        "Darknet",
        "`obj.data` and its lists",
        Format.YOLO,
        _darknet,
        {"train": 5, "val": 2},
        note="or name the file: `my-data/obj.data`",
    ),
    Layout("Ultralytics", "its dataset", Format.YOLO, _ultralytics, splits=THREE),
    Layout("", "COCO in each split", Format.COCO, _coco_in_splits, splits=THREE),
    Layout("", "XML in each split", Format.VOC, _voc_in_splits, splits=THREE),
    Layout("", "labels in any folder", Format.YOLO, _yolo_in_any_folders),
    Layout("", "table without header", Format.TABLE, _table_without_header),
)


def tools_table() -> str:
    """The table of the docs."""
    lines = ["| tool | export | command |", "|---|---|---|"]
    for layout in LAYOUTS:
        if layout.tool:
            note = f"; {layout.note}" if layout.note else ""
            lines.append(f"| {layout.tool} | {layout.export}{note} | `opendetr train my-data` |")
    return "\n".join(lines)


def renewed(page: str) -> str:
    """The page with the table of today."""
    head, _, rest = page.partition(_BEGIN)
    tail = rest.partition(_END)[2]
    return f"{head}{_BEGIN}\n\n{tools_table()}\n\n{_END}{tail}"


if __name__ == "__main__":
    PAGE.write_text(renewed(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
