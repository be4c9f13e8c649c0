"""`opendetr models`: the list that fits a terminal, its details, and the page about one model."""

from __future__ import annotations

import functools
import json
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from opendetr import config, presets
from opendetr.cli import models as module
from opendetr.cli.main import app
from opendetr.nn import new_tokenizer, text_fault
from opendetr.presets import FAMILIES, RELATIVE_TIME, get_preset, list_models
from opendetr.weights import published_files


@pytest.fixture(scope="module", autouse=True)
def rows() -> Iterator[None]:
    """Every model is built once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_row", functools.cache(module._row))
        yield


def printed(*arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, ["models", *arguments])
    assert result.exit_code == code, result.output
    return result.stdout if code == 0 else result.stderr


def test_the_list_fits_a_terminal_and_has_every_model_below_its_family():
    text = printed()
    assert max(map(len, text.splitlines())) <= 100
    blocks = text.split("\n\n")
    found = {}
    for block in blocks[: len(FAMILIES)]:
        title, head, *rows = block.splitlines()
        assert head.split() == ["name", "params", "size", "AP", "PQ", "time", "weights"]
        found |= {row.split()[0]: title for row in rows}
    assert sorted(found) == sorted(list_models())
    assert all(found[name].startswith("Deformable DETR (") for name in found if name.startswith("deformable-"))
    assert "opendetr models NAME" in text.replace("\n", " ")
    for name in re.findall(r"[\w-]*detr-[\w-]+", blocks[-1].replace("\n", " ")):
        get_preset(name)  # the advice names models that exist


def test_details_have_the_architecture():
    row = next(line for line in printed("--details").splitlines() if line.startswith("detr-r101-dc5 "))
    assert "ResNet-101, dilated" in row and "6+6" in row and "44.9" in row and "Apache-2.0" in row


def test_json_has_every_fact():
    rows = json.loads(printed("--json"))["models"]
    assert [row["name"] for row in rows] == list_models()
    for row in rows:
        assert row["family"] in FAMILIES and row["description"]
        assert row["relative_time"] == RELATIVE_TIME.get(row["name"])
    (row,) = json.loads(printed("deformable-detr-r50", "--json"))["models"]
    published = published_files()["deformable-detr-r50"]
    assert row["weights"]["address"] == published.place and row["weights"]["path"] == str(published.path)


@pytest.mark.parametrize("name", list_models())
def test_one_model_is_explained(name):
    text = printed(name)
    assert text.startswith(f"{name}: ")
    train = "train my-data" if get_preset(name).uses_annotations else "pretrain photos"
    assert f"opendetr {train} --model {name} " in text
    usable = presets.shipped_weights(name) or (name in published_files() and published_files()[name].is_checked)
    assert f"opendetr {get_preset(name).example} --weights {name if usable else f'runs/{name}'}\n" in text
    published = published_files().get(name)
    assert ("no metrics" in text) == (not (published and published.results))
    for metric, value in published.results.items() if published else ():
        assert f"{metric} {100 * value:.1f}" in text
    assert ("licence not stated" in text) == (published is not None and published.licence == "not stated")
    if published and not published.is_checked and not published.path.is_file():
        assert published.place in text and str(published.path) in text


@pytest.mark.parametrize("name", list_models())
def test_the_example_of_a_model_has_the_input_that_it_needs(name):
    preset, row = get_preset(name), module._row(name)
    command, _, *options = shlex.split(preset.example)
    assert (command == "track") == preset.follows_objects
    prompts = {"--patch": row["patches"], "--text": row["takes_text"], "--ask": row["answers_questions"]}
    needed = next((option for option in reversed(prompts) if prompts[option]), None)
    assert options[:1] == ([needed] if needed else [])
    if needed == "--text" and preset.data.tokenizer == "words":
        assert text_fault(options[1], new_tokenizer("words")) is None


def test_an_unknown_name_gets_the_nearest():
    assert "did you mean deformable-detr-r50 or " in printed("deformable-r50", code=2)
    assert "`opendetr models` lists them" in printed("yolov8n", code=2)
    assert len(printed("yolov8n", code=2).splitlines()) == 1


def test_times_are_those_of_models_relative_to_detr_r50():
    assert RELATIVE_TIME.keys() == set(list_models()) and RELATIVE_TIME["detr-r50"] == 1
    assert RELATIVE_TIME["deformable-detr-tiny"] < RELATIVE_TIME["detr-r18"] < RELATIVE_TIME["detr-r101-dc5"]


PYPROJECT = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())
EXTRAS = {
    re.split("[<>=]", requirement)[0]: extra
    for extra, requirements in PYPROJECT["project"]["optional-dependencies"].items()
    if extra not in ("docs", "dev")
    for requirement in requirements
}


def test_the_extra_of_every_optional_package_is_known():
    assert config._EXTRAS == EXTRAS


def test_the_catalogue_needs_no_extra():
    """Every way through the catalogue, in an environment in which no optional package can be imported."""
    code = f"""
import sys
for name in {[*EXTRAS, "cv2"]}:
    sys.modules[name.replace("-", "_")] = None
import functools, json
from typer.testing import CliRunner
import opendetr
from opendetr.cli import models as module
from opendetr.cli.main import app
from opendetr.presets import list_models
module._row = functools.cache(module._row)
def run(*arguments):
    result = CliRunner().invoke(app, arguments)
    assert isinstance(result.exception, SystemExit | None), result.exception
    return result.exit_code, result.stdout, result.stderr
code, text, error = run("models")
assert (code, error) == (0, "") and all(name in text for name in list_models()), error
assert "needs transformers; install it with" in text.replace("\\n", " "), text
assert max(map(len, text.splitlines())) <= 100
assert run("models", "--details")[0] == 0
code, text, error = run("models", "--json")
rows = {{row["name"]: row for row in json.loads(text)["models"]}}
assert [name for name in rows if rows[name]["missing"]] == [name for name in rows if rows[name]["parameters"] is None]
assert rows["mdetr-r101-gqa"]["answers_questions"] and rows["mdetr-enb3"]["takes_text"]
assert rows["mdetr-r101-phrasecut"]["family"] == "mdetr"
assert all("MDETR" in run("models", name)[1] for name in rows if name.startswith("mdetr-"))
assert "did you mean mdetr-r50" in run("models", "mdetr-r50x")[2]
assert "did you mean mdetr-r50" in run("predict", sys.executable, "--weights", "mdetr-r50x")[2]
opendetr.create("mdetr-tiny")
for name, package in {{"mdetr-r50": "transformers", "mdetr-enb3": "timm"}}.items():
    try:
        opendetr.create(name)
    except opendetr.ConfigError as fault:
        assert f"needs {{package}}; install it with `python -m pip install 'opendetr[text]'`" in str(fault), fault
    else:
        raise AssertionError(name)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
