"""Wrong inputs: the one line that each of them ends with, its exit code, and no traceback."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from folders import coco_content, write_coco_folder, write_image
from opendetr import presets
from opendetr.cli.main import app
from opendetr.config import setting_names, suggestions
from opendetr.files import near_path

SMALL = [
    *("--batch-size", "2", "--image-size", "64", "--workers", "0", "--device", "cpu", "--weights", "none"),
    *("--set", "model.transformer={width: 32, num_heads: 4, ffn_width: 32, encoder_layers: 1, decoder_layers: 1}"),
    *("--set", "model.num_queries=5", "--set", "recipe.num_evaluations=1", "--max-steps", "1"),
]
# The arguments, then the exit code and the last line on standard error.
CASES = """
train my-data --model yolov8n
2 error: 'yolov8n' is not a model of the catalogue; OpenDETR has models of the DETR family: `opendetr models` lists them

train my-data --model detr-resnet-50x
2 error: 'detr-resnet-50x' is not a model of the catalogue; did you mean detr-r50 or detr-r101 or detr-r50-dc5? `opendetr models` lists them

eval my-data --weights detr-r50x
1 error: detr-r50x: no such file or model; did you mean detr-r50 or detr-r101 or detr-r50-dc5? `opendetr models` lists them

predict image.jpg --weights detr_resnet50
1 error: detr_resnet50: no such file or model; did you mean detr-r50? `opendetr models` lists them

predict image.jpg --weights yolov8n.pt
1 error: yolov8n.pt: no such file or model; OpenDETR has models of the DETR family: `opendetr models` lists them

predict image.jpg --weights yolov8n
1 error: yolov8n: no such file or model; OpenDETR has models of the DETR family: `opendetr models` lists them

predict image.jpg --model detr-tiny --weights published
1 error: detr-tiny: has no published weights; train it first, or give a weights file

predict image.jpg --weights imagenet
1 error: imagenet: is for training only; give a model of the catalogue, a run folder or a weights file

predict image.jpg --weights runs/mine --min-score CAT=0.3
2 error: min score of 'CAT': the detector has no such class; did you mean 'cat'?

predict image.jpg --weights runs/mine --min-score zebra=0.3
2 error: min score of 'zebra': the detector has no such class; it has cat, dog

train --data other.yaml
2 Error: Invalid value for --data: belongs to --resume; give it as an argument: opendetr train other.yaml

train --data=other.yaml --imgsz 640
2 Error: no option --imgsz; did you mean --image-size?

train my-data --cfg-options a=b
2 Error: no option --cfg-options; did you mean --set?

train my-data --train-split trian
2 error: my-data: no split 'trian'; it has train, val; did you mean train?

predict image.jpg --weights runs/mien
1 error: runs/mien: no such file; did you mean runs/mine?

predict image.jpg --weights rnus/mine
1 error: rnus/mine: no such file; did you mean runs/mine?

predict image.jpg --weights runs
1 error: runs: contains several runs; choose one of runs/copy, runs/mine, runs/other

predict image.jpg --weights image.jpg
1 error: image.jpg: is an image, not a file of weights; give a run folder or a weights file

predict image.jpg --weights page.pth
1 error: page.pth: is a web page or XML, not a file of weights; give a run folder or a weights file

predict image.jpg --weights pointer.pth
1 error: pointer.pth: is a Git LFS pointer instead of the file it stands for, not a file of weights; give a run folder or a weights file

predict image.jpg --weights odd.pth
1 error: odd.pth: does not name its model; give --model (in Python model=...), such as detr-r50

predict image.jpg --weights odd.pth --model detr-tiny
1 error: odd.pth: in no known layout (opendetr, official, detectron2, huggingface); its first names: a.weight

predict image.jpg --weights empty
1 error: empty: contains no weights; expected a run folder of `opendetr train` or model.safetensors

export odd.pth out.pth --format official --model detr-tiny
1 error: odd.pth: in no known layout (opendetr, official, detectron2, huggingface); its first names: a.weight

train my-data --model detr-tiny --weights published
1 error: detr-tiny: has no published weights; choose other weights: none, or a run folder or file of weights

train my-data --model detr-tiny --weights imagenet
1 error: detr-tiny: there are no ImageNet weights for its ResNet-18 of half width, dilated; choose other weights: none, or a run folder or file of weights

train my-data --weights odd.pth --model detr-tiny
1 error: odd.pth: in no known layout (opendetr, official, detectron2, huggingface); its first names: a.weight

train my-data --weights runs/mien
1 error: runs/mien: no such file; did you mean runs/mine?

train my-data --set recipe.lr=0.1
2 error: config: unknown key 'recipe.lr'; did you mean recipe.learning_rate?

train my-data --set lr=0.1
2 error: config: unknown key 'lr'; did you mean recipe.learning_rate?

train my-data --set recipe.batch=4
2 error: config: unknown key 'recipe.batch'; did you mean recipe.batch_size?

train my-data --set imgsz=640
2 error: config: unknown key 'imgsz'; did you mean data.image_size?

train my-data --set model.queries=10
2 error: config: unknown key 'model.queries'; did you mean model.num_queries?

train my-data --set data.wokers=2
2 error: config: unknown key 'data.wokers'; did you mean data.num_workers?

train my-data --set xyzzy=2
2 error: config: unknown key 'xyzzy'; valid keys are criterion, data, dense, freeze_detector, mask_criterion, masks, model, name, recipe, without_masks

train my-data --set recipe=2
2 error: config: recipe is a group of settings, got 2; set one of its settings

train my-data --set lr
2 error: --set 'lr': write it as key=value, for example model.num_queries=50

train my-data --set recipe.epochs=1.5
2 error: config: recipe.epochs: 1.5 is not a whole number

train my-data --imgsz 640
2 Error: no option --imgsz; did you mean --image-size?

train my-data --batch 8
2 Error: no option --batch; did you mean --batch-size?

train my-data --lr0 0.1
2 Error: no option --lr0; did you mean --lr?

train my-data --name mine
2 Error: no option --name; did you mean --out?

train my-data --project mine
2 Error: no option --project; did you mean --out?

train my-data --data my-data
2 Error: Invalid value for --data: belongs to --resume; give it as an argument: opendetr train my-data

train my-data --weight-decay 0.1
2 Error: no option --weight-decay; did you mean --set recipe.weight_decay=VALUE?

train my-data --half
2 Error: no option --half; did you mean --precision?

train my-data model=detr-r50
2 Error: Invalid value: model=detr-r50: options are written as --model detr-r50

train data=my-data
2 Error: Invalid value: data=my-data: options are written as --data my-data

train my-data --device 0
2 Error: Invalid value for '--device': '0' is not a device; did you mean cuda:0?

train my-data --device gpu
2 Error: Invalid value for '--device': 'gpu' is not one of auto, cpu, cuda, cuda:NUMBER, mps; did you mean cuda?

train my-data --device cuda:x
2 Error: Invalid value for '--device': 'cuda:x' is not one of auto, cpu, cuda, cuda:NUMBER, mps

train my-data --epochs 1.5
2 Error: Invalid value for '--epochs': '1.5' is not a whole number

train my-data --epochs 0
2 Error: Invalid value for '--epochs': expected at least 1, got 0

train my-data --lr abc
2 Error: Invalid value for '--lr': 'abc' is not a number

train my-data --lr -1
2 Error: Invalid value for '--lr': expected at least 0, got -1.0

train my-data --precision fp8
2 Error: Invalid value for '--precision': 'fp8' is not one of auto, fp32, bf16, fp16

train my-data --augment strng
2 Error: Invalid value for '--augment': 'strng' is not one of detr, colour, mosaic, copy-paste, strong; did you mean strong?

train my-data --time soon
2 Error: Invalid value for '--time': 'soon' is not a duration; write it like 45s, 30m, 1.5h or 1h30m

train my-data --time 3m --epochs 2
2 Error: Invalid value: --epochs and --time set the length of the run: give one of them

train my-data --best-by AP/dgo
2 Error: Invalid value for '--best-by': no metric of the validation data is called 'AP/dgo'; did you mean AP/dog?

train my-data --best-by accuracy
2 Error: Invalid value for '--best-by': no metric of the validation data is called 'accuracy'; there are AP, AP50, AP75, AP_S, AR1, AR10, AR100, AR_S, AP/cat, AP/dog

train my-data --best-by mask_AP
2 Error: Invalid value for '--best-by': mask_AP (average precision, mean over IoU 0.50 to 0.95; of masks) cannot be computed from this data with this model; choose AP or another

train my-data --best-by AP_L
2 Error: Invalid value for '--best-by': AP_L (average precision, objects above 96² pixels) cannot be computed from this data with this model; choose AP or another

train crowd
1 error: crowd, split 'train': all 8 objects are crowd regions, which cannot be learned; set iscrowd to 0, or read them as objects with --allow crowd_only

train nowhere
1 error: nowhere: no such folder

train my-dta
1 error: my-dta: no such folder; did you mean my-data?

train my-data --val-split vla
2 error: my-data: no split 'vla'; it has train, val; did you mean val?

train --resume runs
1 error: runs: contains several runs; choose one of runs/copy, runs/mine, runs/other

train --resume runs/mien
1 error: runs/mien: no such folder; did you mean runs/mine?

train --resume empty
1 error: empty: not a run folder, it has no config.yaml; give the folder of `opendetr train --out`

train --resume runs/mine --epochs 10
2 Error: Invalid value: --resume keeps the settings of the run: leave out --epochs; or start a new run from its weights: opendetr train DATA --weights runs/mine --epochs ...

predict image.jpg --conf 0.3
2 Error: no option --conf; did you mean --min-score?

predict image.jpg --iou 0.5
2 Error: no option --iou; DETR needs no non-maximum suppression, so there is no IoU threshold

predict image.jpg --classes 0
2 error: deformable-detr-tiny detects the classes of its weights: give none, or use a model that takes text, such as mdetr-r101

predict image.jpg --img 640
2 Error: no option --img; images are resized as in training, where --image-size sets the size

predict source=image.jpg
2 Error: Invalid value: source=image.jpg: arguments have no name: write image.jpg

predict --source image.jpg
2 Error: no option --source; give it as an argument: opendetr predict image.jpg

predict image.jpg --save-txt
2 Error: no option --save-txt; did you mean --yolo?

predict image.jpg --min-score 2
2 Error: Invalid value for '--min-score': '2': give a number in 0..1, NAME=NUMBER, or auto

predict gone.mp4
1 error: gone.mp4: no such file

predict gone.jpg
1 error: gone.jpg: no such file

predict imge.jpg
1 error: imge.jpg: no such file; did you mean image.jpg?

predict my-data/gone/*.jpg
1 error: my-data/gone/*.jpg: no file matches

predict detr-r50
2 Error: Invalid value: detr-r50 is a model: give it as --weights detr-r50

eval --data my-data
2 Error: no option --data; give it as an argument: opendetr eval my-data

eval my-data --split vall
2 error: my-data: no split 'vall'; it has train, val; did you mean val?

eval my-data --masks instance
2 Error: Invalid value for '--masks': 'instance' is not one of none, auto, instances, panoptic; did you mean instances?

data check nowhere
1 error: nowhere: no such folder

data check empty
1 error: empty: training cannot start: 1 folder without a dataset to train on

data convert my-data out --format yolo
2 Error: no option --format; did you mean --to?

data show my-data --split vall
2 error: my-data: no split 'vall'; it has train, val; did you mean val?

data split my-data out --fractions 1
2 Error: Invalid value for '--fractions': '1': write it as train=0.8,val=0.2

data chekc my-data
2 Error: no command 'chekc'; did you mean check?

export runs/mine out --format onxx
2 Error: Invalid value for '--format': 'onxx' is not one of huggingface, official

push runs/mine no-slash
1 error: no-slash: expected owner/name, as in anna/blood-cells

val my-data
2 Error: no command 'val'; did you mean eval?

detect image.jpg
2 Error: no command 'detect'; did you mean predict?

bench detrs
2 error: bench: no benchmark 'detrs'; choose from panoptic, panoptic-quality, deformable-attention, training-step, mdetr, track, evaluation

models --verbose
2 Error: no option --verbose; `opendetr models --help` lists all options

demo --images 0
2 Error: Invalid value for '--images': expected at least 1, got 0

train my-data --batch-size 0
2 Error: Invalid value for '--batch-size': expected at least 1, got 0

train my-data --set recipe.batch_size=0
2 error: config: recipe.batch_size: expected at least 1, got 0

train my-data --epochs 2 --set recipe.batch_size=0
2 error: config: recipe.batch_size: expected at least 1, got 0

train my-data --set recipe.freeze=backbone
2 error: config: recipe.freeze: 'backbone' is not a list

train my-data --lr 0
2 Error: Invalid value for '--lr': 0 changes no weight; leave it out for the default of the model

train my-data --lr inf
2 Error: Invalid value for '--lr': expected a finite number, got inf

train my-data --image-size 10
2 Error: Invalid value for '--image-size': 10 pixels are too few to detect anything; give at least 32

data check my-data --image-size 10
2 Error: Invalid value for '--image-size': 10 pixels are too few to detect anything; give at least 32

train my-data --model up-detr-tiny
2 error: up-detr-tiny is trained on images without annotations: opendetr pretrain IMAGES --model up-detr-tiny

train my-data --accumulate 50
2 Error: Invalid value for '--accumulate': expected at most the batch size, 4, got 50

train my-data --workers -1
2 Error: Invalid value for '--workers': expected at least 0, got -1

train my-data --val-fraction 2
2 Error: Invalid value for '--val-fraction': expected a fraction between 0 and 1, got 2.0

train my-data --batch-pixels 100
2 Error: Invalid value for '--batch-pixels': 100 is too small: an image can have 256x416 pixels; give at least 106,496, for one image per process, or make the images smaller

train my-data --augment mosaic --model detr-tiny-panoptic
2 Error: Invalid value for '--augment': 'mosaic' does not support masks; with masks give detr or colour

train my-data --time 30
2 Error: Invalid value for '--time': '30' has no unit; write 30s for seconds, 30m for minutes or 30h for hours

train my-data --time 1y
2 Error: Invalid value for '--time': '1y' is not a duration; write it like 45s, 30m, 1.5h or 1h30m

train my-data --weights none --set model.transformer.width=30
1 error: deformable-detr-tiny: attention: width 30 is not a multiple of num_heads 4

train my-data --config runs/mine
1 error: runs/mine: is a folder; give runs/mine/config.yaml

train my-data --config image.jpg
1 error: image.jpg: is not a text file; give a YAML file of settings

train my-data --config wrong.yaml
1 error: wrong.yaml: recipe.epochs: expected at least 1, got 0

pretrain empty
1 error: empty: the folder is empty; pass a folder with images

predict notes.txt --weights runs/mine
1 error: notes.txt: not an image in a supported format; convert it to JPEG or PNG, or leave it out

train my-data --weights notes.txt
1 error: notes.txt: is a text file, not a file of weights; give a run folder or a weights file

train my-data --weights=
2 Error: Invalid value: an argument is empty; perhaps a variable of the shell is not set

train my folder
2 Error: unexpected argument: folder; did you mean 'my folder'?

train my-data more
2 Error: unexpected argument: more; `opendetr train --help` lists the arguments

train runs/mine
1 error: runs/mine: is the folder of a run, not a dataset; give the folder of the dataset

train my-data -b 4
2 Error: no option -b; did you mean --batch-size?

eval runs/mine
1 error: runs/mine: is the folder of a run, not a dataset; give the folder of the dataset

eval
2 Error: an argument is missing; for example: opendetr eval my-data

eval my-data --batch-size 0
2 Error: Invalid value for '--batch-size': expected at least 1, got 0

eval my-data --predictions empty
2 Error: Invalid value for '--predictions': empty: is a folder; give the name of a file

analyse
2 Error: an argument is missing; for example: opendetr analyse runs/mine --data my-data

analyse runs/mine
2 Error: Missing option '--data'; for example: opendetr analyse runs/mine --data my-data

analyse runs/mine --data my-data --images 0
2 Error: Invalid value for '--images': expected at least 1, got 0

analyse runs/mine --data my-data --out image.jpg
2 Error: Invalid value for '--out': image.jpg: is a file; give the name of a folder

analyse mdetr-tiny --data my-data
1 error: mdetr-tiny: works on texts, and such models cannot be analysed so far; give a detector of images

compare runs/mine
2 Error: an argument is missing; for example: opendetr compare runs/mine runs/other --data my-data

compare runs/mine runs/mine --data my-data --chart chart.foo
2 Error: Invalid value for '--chart': chart.foo: no image format has the suffix '.foo'; give a name such as image.png

compare runs/mine runs/mine --data my-data --split tset
2 error: my-data: no split 'tset'; it has train, val

predict
2 Error: an argument is missing; for example: opendetr predict photo.jpg

predict my photo.jpg
2 Error: Invalid value: did you mean 'my photo.jpg'? Quote a path that contains spaces

predict żółć.jpg
1 error: żółć.jpg: no such file

predict image.jpg --out image.jpg
2 Error: Invalid value for '--out': image.jpg: is a file; give the name of a folder

predict image.jpg --min-score 50%
2 Error: Invalid value for '--min-score': '50%': give a number in 0..1, NAME=NUMBER, or auto

predict image.jpg --min-score 0.5 --min-score disc=0.4 --min-score 0.6
2 Error: Invalid value for '--min-score': '0.6': there is another score for all classes; give one

predict image.jpg --weights runs/mine --min-score 0.5 --weights=runs/other
2 Error: --weights is given 2 times; give it once

predict image.jpg --panoptic --csv
2 Error: Invalid value: --crops, --csv and --yolo write detections: leave them out with --panoptic

data convert my-data out
2 Error: Missing option '--to'. Choose from: coco, yolo, voc; for example: opendetr data convert my-data new-data --to yolo

data convert my-data runs --to yolo
1 error: runs: exists and is not an empty folder; choose a new folder

data split my-data out --fractions train=0.5,val=0.6
2 Error: Invalid value for '--fractions': the fractions add up to 1.1; they must add up to 1

data make out --train 0 --val 0
2 Error: Invalid value: --train and --val are both 0: there is nothing to draw

export runs/mine
2 Error: an argument is missing; for example: opendetr export runs/mine out --format huggingface

export runs/mine out.pth --format huggingface
1 error: out.pth: this layout is a folder; leave out .pth, or choose official

doctor my-data
1 error: my-data: not a run folder, it has no config.yaml; give the folder of `opendetr train --out`

doctor image.jpg
1 error: image.jpg: is a file; give the folder of `opendetr train --out`

doctor runs/mien
1 error: runs/mien: no such folder; did you mean runs/mine?

demo --out image.jpg
2 Error: Invalid value for '--out': image.jpg: is a file; give the name of a folder
""".strip().split("\n\n")  # noqa: E501


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with a dataset, a run that has ended, and files that are no weights."""
    folder = tmp_path_factory.mktemp("place")
    write_coco_folder(folder / "my-data", {"train": coco_content(), "val": coco_content(2, first_id=9)})
    crowd = coco_content()
    for row in crowd["annotations"]:
        row["iscrowd"] = 1
    write_coco_folder(folder / "crowd", {"train": crowd, "val": coco_content(2, first_id=9)})
    write_coco_folder(folder / "one-split", {"train": coco_content(40)})
    write_image(folder / "image.jpg")
    torch.save({"a.weight": torch.zeros(3)}, folder / "odd.pth")
    (folder / "page.pth").write_text("<!doctype html>")
    (folder / "pointer.pth").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    (folder / "empty").mkdir()
    (folder / "my folder").mkdir()
    write_image(folder / "my photo.jpg")
    (folder / "notes.txt").write_text("notes")
    (folder / "wrong.yaml").write_text("recipe: {epochs: 0}")
    result = invoke(folder, ["train", "my-data", "--out", "runs/mine", *SMALL])
    assert result.exit_code == 0, result.output
    for name in ("runs/other", "runs/copy"):
        (folder / name).mkdir()
        for file in ("config.yaml", "best"):
            (folder / name / file).symlink_to(folder / "runs" / "mine" / file)
    return folder


def invoke(folder: Path, arguments: list[str]) -> Any:
    with contextlib.chdir(folder):
        return CliRunner().invoke(app, arguments)


@pytest.mark.parametrize("case", CASES, ids=[case.partition("\n")[0] for case in CASES])
def test_a_wrong_input_ends_with_one_clear_line(place, case):
    arguments, expected = case.split("\n")
    code, line = expected.split(" ", 1)
    result = invoke(place, arguments.split())
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.stderr.splitlines()[-1] == line
    assert result.exit_code == int(code)
    assert result.stderr.lower().count("error: ") == 1
    words = line.split("; ")[0].lower().removeprefix("error: ")
    assert result.stderr.lower().count(words) == 1, "said twice"


def test_a_hundred_wrong_inputs_are_tested():
    assert len(CASES) >= 100
    assert len({case.partition("\n")[0] for case in CASES}) == len(CASES)


def test_the_way_on_after_a_finished_run(place):
    result = invoke(place, ["train", "--resume", "runs/mine"])
    assert result.exit_code == 0
    first, *others = result.stderr.splitlines()  # before the dataset is read
    assert first == (
        "the run had already ended after 1 step; to train longer, start from its weights: "
        f"opendetr train {place / 'my-data'} --weights runs/mine"
    )
    assert others[0].startswith("train: ")


def test_a_run_that_learned_nothing_ends_with_the_probable_cause(place):
    """Its weights are not recommended, and its state is said once."""
    result = invoke(place, ["train", "--resume", "runs/mine"])
    assert "next:" not in result.stderr and "best weights" not in result.stderr
    assert "probable cause" in "".join(result.stderr.splitlines()[-3:])
    assert result.stderr.count("1 step in") == 1


def test_clean_data_is_said_to_be_clean(place):
    result = invoke(place, ["data", "check", "one-split"])
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1] == "training uses every image and object"


def test_every_setting_is_found_from_its_own_name_and_a_misspelt_one():
    """Synonyms never hide a setting: its own name is the first suggestion."""
    for model in presets.list_models():
        names = setting_names(presets.get_preset(model))
        for name in names:
            last = name.rpartition(".")[2]
            assert suggestions(name, names)[0].rpartition(".")[2] == last
            if len(last) > 6:
                assert suggestions(f"{last[:-2]}{last[-1]}", names), name


def test_words_of_other_tools():
    names = ["--image-size", "--batch-size", "--lr", "--out", "--min-score", "--device", "--weights", "--workers"]
    words = {"imgsz": "--image-size", "img": "--image-size", "batch": "--batch-size", "lr0": "--lr", "name": "--out",
             "project": "--out", "conf": "--min-score", "Conf_Thres": "--min-score", "ckpt": "--weights"}  # fmt: skip
    assert {word: suggestions(word, names)[0] for word in words} == words
    assert suggestions("--wieghts", names) == ["--weights"]
    assert suggestions("xyzzy", names) == []


def test_the_nearest_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    (tmp_path / "photo.png").touch()
    for missing, near in {"runs/mien": "runs/mine", "rnus/mine": "runs/mine", "photo.jpg": "photo.png"}.items():
        assert near_path(Path(missing)) == f"; did you mean {near}?"
    for missing in ("xyzzy", "rnus/other", "photo.png/inside", "/", "a\0b", "x" * 5000):
        assert near_path(Path(missing)) == ""


@pytest.mark.skipif(os.name != "posix", reason="needs resource limits")
@pytest.mark.parametrize(
    "arguments",
    [
        "predict image.jpg --weights runs/mine --min-score 0 --out full",
        "predict image.jpg --weights runs/mine --min-score 0 --out full --csv --yolo --crops",
        "eval my-data --weights runs/mine --predictions full.json",
        "export runs/mine full.pth --format official",
        "data convert my-data full-data --to yolo",
        "data show my-data --out full.png",
    ],
)
def test_a_full_disk_is_one_line(place, arguments):
    """Files cannot grow beyond 300 bytes, as on a full disk."""
    import resource
    import signal

    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300, limits[1]))
    try:
        result = invoke(place, arguments.split())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code == 1
    line = result.stderr.splitlines()[-1]
    assert line.startswith("error: cannot write")
    assert "make room" in line


@pytest.mark.skipif(os.name != "posix", reason="closes a pipe")
def test_a_reader_that_ends_early_gets_no_message(place):
    """As with `opendetr eval my-data | head -1`: nobody reads the pipe any more."""
    code = (
        "import os; read, write = os.pipe(); os.close(read); os.dup2(write, 1)\n"
        "from opendetr.cli.main import main; main()"
    )
    command = [sys.executable, "-c", code, "train", "my-data", "--nodes", "2"]
    done = subprocess.run(command, cwd=place, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "")
