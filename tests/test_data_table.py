"""A CSV table of images and boxes: what headers say, and what is said about faulty rows."""

from pathlib import Path

import pytest

from folders import one_line, write_image
from opendetr.data.formats.recognise import Format, open_data, open_split, read_splits, recognise
from opendetr.data.records import DataError, FaultKind
from opendetr.data.tools.convert import convert

TABLE = """image,label,xmin,ymin,xmax,ymax
1.png,dog,4,5.5,24,15.5
0.png,cat,1,2,11,22
0.png,dog,3,4,33.3,44
2.png,,,,,
"""


def write_table_folder(folder: Path, table: str = TABLE, name: str = "boxes.csv", images: str = "images") -> Path:
    """Images `0.png` ... `2.png` of 64x48 in a folder, and a table."""
    for index in range(3):
        write_image(folder / images / f"{index}.png", seed=index)
    (folder / name).write_text(table, encoding="utf-8")
    return folder


def test_rows_become_boxes(tmp_path):
    data = open_split(write_table_folder(tmp_path), "all")
    assert recognise(tmp_path).format is Format.TABLE
    assert (data.categories.names, data.categories.ids) == (("cat", "dog"), (1, 2))
    assert [(image.id, image.path.name, image.height, image.width) for image in data.images] == [
        (1, "0.png", 48, 64),
        (2, "1.png", 48, 64),
        (3, "2.png", 48, 64),
    ]
    assert [(thing.id, thing.category_id, thing.box) for image in data.images for thing in image.objects] == [
        (1, 1, (1, 2, 10, 20)),
        (2, 2, (3, 4, 30.3, 40)),
        (3, 2, (4, 5.5, 20, 10)),
    ]
    assert [(entry.kind, entry.count) for entry in data.fault_counts] == [(FaultKind.NO_OBJECTS, 1)]
    assert open_data(tmp_path / "boxes.csv", val_fraction=0.3)["train"].num_objects >= 1


HEADERS = {
    "corners": ("file_name,x0,y0,x1,y1,Class", "4,5,24,15"),
    "numbered corners": ("Path,x1,y1,x2,y2,class_name", "4,5,24,15"),
    "edges": ("img,left,top,right,bottom,category", "4,5,24,15"),
    "sides": ("image_path,x,y,w,h,label", "4,5,20,10"),
    "long sides": ("FILE,X,Y,Width,Height,LABEL", "4,5,20,10"),
    "sides of the box and not of the image": ("filename,xmin,ymin,xmax,ymax,name", "4,5,24,15"),
}


@pytest.mark.parametrize("header", HEADERS)
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_headers_are_understood(tmp_path, header, delimiter):
    names, box = HEADERS[header]
    table = f"{names}\r\n0.png,{box},cat\r\n".replace(",", delimiter)
    write_table_folder(tmp_path, "\ufeff" + table, images=".")
    assert open_split(tmp_path, "all").images[0].objects[0].box == (4, 5, 20, 10)


def test_the_size_of_the_image_is_not_the_box(tmp_path):
    table = "filename,width,height,class,xmin,ymin,xmax,ymax\n0.png,64,48,cat,4,5,24,15\n"
    assert open_split(write_table_folder(tmp_path, table), "all").images[0].objects[0].box == (4, 5, 20, 10)


def test_a_column_may_give_the_split(tmp_path):
    rows = TABLE.strip().split("\n")
    splits = ["split", "training", "training", "training", "valid"]
    table = "\n".join(f"{row},{split}" for row, split in zip(rows, splits, strict=True))
    data = read_splits(write_table_folder(tmp_path, table))
    assert {name: [image.path.name for image in part.images] for name, part in data.items()} == {
        "train": ["0.png", "1.png"],
        "val": ["2.png"],
    }


def test_tables_may_be_splits(tmp_path):
    write_table_folder(tmp_path, TABLE, "train.csv")
    write_table_folder(tmp_path, "image,label,x,y,w,h\n2.png,cow,1,1,5,5\n", "val.csv")
    (tmp_path / "notes.csv").write_text("a,b\n1,2\n")
    data = open_data(tmp_path)
    assert {name: part.num_objects for name, part in data.items()} == {"train": 3, "val": 1}
    assert data["train"].categories == data["val"].categories
    assert data["val"].categories.names == ("cat", "cow", "dog")


def test_quoted_names_and_classes_that_are_numbers(tmp_path):
    write_image(tmp_path / "a, b.png")
    (tmp_path / "t.csv").write_text('image,label,x,y,w,h\n"a, b.png",10,1,1,5,5\n"a, b.png",9,1,1,5,5\n')
    assert open_split(tmp_path, "all").categories.names == ("9", "10")


BAD_ROWS = {
    "letters": ("0.png,cat,a,2,3,4", FaultKind.INVALID_ROW, "'a, 2, 3, 4' are not four numbers"),
    "one is missing": ("0.png,cat,1,,3,4", FaultKind.INVALID_ROW, "are not four numbers"),
    "short": ("0.png,cat,1", FaultKind.INVALID_ROW, "are not four numbers"),
    "no class": ("0.png,,1,2,3,4", FaultKind.INVALID_ROW, "has a box, but no class"),
    "no image": (",cat,1,2,3,4", FaultKind.INVALID_ROW, "names no image"),
    "inverted": ("0.png,cat,9,2,3,4", FaultKind.INVALID_BOX, ""),
    "infinite": ("0.png,cat,1,2,inf,4", FaultKind.INVALID_BOX, ""),
    "outside": ("0.png,cat,100,2,120,4", FaultKind.NO_AREA, ""),
}


@pytest.mark.parametrize("fault", BAD_ROWS)
def test_a_faulty_row_is_skipped_and_named(tmp_path, fault):
    row, kind, detail = BAD_ROWS[fault]
    data = open_split(write_table_folder(tmp_path, TABLE + row + "\n"), "all")
    assert data.num_objects == 3
    entry = data.fault_counts[0]
    assert (entry.kind, entry.count) == (kind, 1)
    assert entry.first == f"{tmp_path / 'boxes.csv'}, line 6"
    assert detail in entry.faults[0].detail


BAD_TABLES = {
    "no box": ("image,label\n0.png,cat\n", "no column for a box among image, label; name the columns"),
    "no class": ("image,x,y,w,h\n0.png,1,1,2,2\n", "no column for a class among image, x, y, w, h"),
    "no header": ("0.png,1,1,2,2,cat,1\n", "no column for an image and a class and a box among 0.png"),
    "no header and no corners": ("0.png,9,9,2,2,cat\n", "line 1: without a header, the columns are image, xmin"),
    "empty": ("", "no column for"),
    "missing image": ("image,label,x,y,w,h\n9.png,cat,1,1,2,2\n", "line 2: its image '9.png' is missing"),
    "endless field": ("image,label,x,y,w,h\n" + "a" * 200_000, "line 2: broken CSV: field larger than field limit"),
    "null bytes": ("image,label,x,y,w,h\n\0.png,cat,1,1,2,2\n", "line 2: "),
}


@pytest.mark.parametrize("fault", BAD_TABLES)
def test_what_is_wrong_is_said_in_one_line(tmp_path, fault):
    table, message = BAD_TABLES[fault]
    write_table_folder(tmp_path, table)
    for source in (tmp_path, tmp_path / "boxes.csv"):
        with pytest.raises(DataError) as error:
            open_data(source)
        assert message in one_line(error.value)


def test_a_table_can_be_converted(tmp_path):
    write_table_folder(tmp_path / "table")
    before = read_splits(tmp_path / "table")["all"]
    for to in (Format.COCO, Format.YOLO, Format.VOC):
        convert(tmp_path / "table", tmp_path / to, to)
        after = read_splits(tmp_path / to)["all"]
        assert after.categories == before.categories
        assert [(i.id, i.objects) for i in after.images] == [(i.id, i.objects) for i in before.images]
