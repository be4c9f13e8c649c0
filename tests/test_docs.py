"""The pages in docs/: their blocks run, in order and in one folder a page; they name every option; the site builds.

Commands run in this process, where torch is there already. Drawn datasets are made small, and so are trainings, which
all get the options `SMALL_RUN`. Models whose weights would be downloaded give way to the small one, and addresses to a
server on this machine. A block with a title is a file, and is written. A command ends with exit code 0, or with what is
said behind it: `# exit code 3`.
"""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.main import get_command
from typer.testing import CliRunner

import test_layers
from folders import write_image
from markdown_blocks import INSTALL, ROOT, Block, check_installation, environment_with_programs, read_blocks, run
from opendetr.cli.main import app
from opendetr.config import to_dict
from opendetr.inference.predictor import load
from opendetr.presets import DEFAULT_MODEL, build_model, create, get_preset, list_models, miniature
from opendetr.synthetic import SceneConfig, write_scenes
from opendetr.weights import ModelCard, published_files, save_weights
from web import sends, serving

DOCS = ROOT / "docs"
PAGES = sorted(path.name for path in DOCS.glob("*.md"))
SMALL_RUN = ["--max-steps", "2", "--batch-size", "4", "--image-size", "64", "--workers", "0"]
SMALL = (
    (r"--(time|epochs|max-steps|batch-size|image-size) \S+", ""),
    (r'(time="\w+"|epochs=\d+)', "max_steps=2, batch_size=4, image_size=64"),
    (r"--train \d+ --val \d+", "--train 12 --val 4 --size 64"),
    (r"--videos \d+ --frames \d+(?: --size \d+)?", "--videos 4 --frames 6 --size 64"),
    (r"(?<=opendetr demo)\b", " --images 2"),
    (r"(?<![\w-])detr-r50(?![\w-])", DEFAULT_MODEL),
    (r"my-data/JPEGImages/\w+\.jpg", "my-data/val/000000.png"),
    (r"my-data/JPEGImages", "my-data/val"),
)
IMAGES = (
    "photo.jpg",
    "photos/1.jpg",
    "photos/a/2.png",
    "more/3.jpg",
    "my-table/images/a.jpg",
    "my-table/images/b.jpg",
)
PATCHES = ("crop.jpg", "other-crop.jpg")
MADE_BY_PAGE = {
    "quickstart.md": ("my-data", "runs/mine"),
    "training.md": ("runs/mine",),
    "up-detr.md": ("runs/pretrained",),
}
SLOW = ("torchrun", "--processes")
LONG_PAGES = ("tracking.md", "training.md", "up-detr.md")  # whose blocks train several times
# Part of a command -> package without which it is left out.
NEEDED = {"--log tensorboard": "tensorboard", ".mp4": "av", "motr-tiny": "trackeval"}
_EXIT_CODE = re.compile(r"\s*# exit code (\d)$")

posix = pytest.mark.skipif(os.name != "posix", reason="the blocks are for a POSIX shell")
every_page = pytest.mark.parametrize("page", PAGES)


def page_text(page: str) -> str:
    return (DOCS / page).read_text(encoding="utf-8")


def blocks_of(page: str) -> list[Block]:
    return read_blocks(page_text(page))


def small(text: str) -> str:
    for long, short in SMALL:
        text = re.sub(long, short, text)
    return text


# --------------------------------------------------------------------------------------------------------------- blocks


@pytest.fixture(scope="module")
def things(tmp_path_factory) -> Path:
    """What pages take for granted: a dataset, a trained run, images, a video, a file of weights."""
    folder = tmp_path_factory.mktemp("things")
    write_scenes(folder / "my-data", counts={"train": 12, "val": 4}, config=SceneConfig(size=64))
    shipped = load(DEFAULT_MODEL, device="cpu")
    (folder / "runs/mine/best").mkdir(parents=True)
    card = ModelCard(to_dict(shipped.preset), shipped.categories, {})
    save_weights(folder / "runs/mine/best/model.safetensors", shipped.model, card)
    preset = get_preset("up-detr-tiny")
    (folder / "runs/pretrained/best").mkdir(parents=True)
    card = ModelCard(to_dict(preset), preset.published_categories(), {})
    save_weights(folder / "runs/pretrained/best/model.safetensors", create("up-detr-tiny"), card)
    captioned = miniature("mdetr-tiny")
    captioned = replace(captioned, model=replace(captioned.model, questions="scenes"))
    categories = captioned.published_categories()
    model = build_model(captioned, captioned.num_classes(categories))
    (folder / "runs/mdetr/best").mkdir(parents=True)
    card = ModelCard(to_dict(captioned), categories, {})
    save_weights(folder / "runs/mdetr/best/model.safetensors", model, card)
    torch.save({"model": create(DEFAULT_MODEL).state_dict()}, folder / "detr-r50-e632da11.pth")
    for name in IMAGES:
        write_image(folder / name, 64, 80)
    for name in PATCHES:
        write_image(folder / name, 20, 30)
    if importlib.util.find_spec("av"):
        from clips import write_video

        write_video(folder / "street.mp4", 4)
    return folder


@pytest.fixture(scope="module")
def address(things) -> Iterator[str]:
    """Where an image is served."""
    with serving() as server:
        server.answers["/photo.jpg"] = sends((things / "photo.jpg").read_bytes())
        yield server.url


def run_opendetr(command: str, code: int) -> None:
    """One call of the command line, in this process."""
    program, *arguments = shlex.split(command)
    assert program == "opendetr", command
    if arguments[0] in ("train", "pretrain") and "--resume" not in arguments:
        arguments += SMALL_RUN
    result = CliRunner().invoke(app, arguments)
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, f"{command}\n{result.output}"


def run_block(block: Block, folder: Path, environment: dict[str, str], address: str, *, slow: bool) -> None:
    """Run what of a block is slow, or what is not."""
    text = small(block.text).replace("https://example.org", address)
    if block.title and not slow:
        path = folder / block.title
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(block.text, encoding="utf-8")
    elif block.language == "python" and not slow:
        exec(compile(text, "block", "exec"), {"__name__": "__main__"})
    elif block.language == "bash":
        for command in Block("bash", "", text).commands():
            if slow == any(word in command for word in SLOW):
                run_command(command, folder, environment)


def run_command(command: str, folder: Path, environment: dict[str, str]) -> None:
    if any(part in command and not importlib.util.find_spec(package) for part, package in NEEDED.items()):
        return
    ending = _EXIT_CODE.search(command)
    code = int(ending[1]) if ending else 0
    command = _EXIT_CODE.sub("", command)
    if command.startswith(INSTALL):
        check_installation(command)
    elif any(word in command for word in SLOW):
        run(["sh", "-c", f"{command} {shlex.join(SMALL_RUN)}"], folder, environment, code=code)
    else:
        run_opendetr(command, code)


@pytest.fixture
def workplace(things, tmp_path, monkeypatch) -> Path:
    """A folder with what pages take for granted, which is the working folder."""
    folder = tmp_path / "work"
    shutil.copytree(things, folder)
    monkeypatch.chdir(folder)
    return folder


@posix
@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, marks=[pytest.mark.slow] if page in LONG_PAGES else [])
        for page in PAGES
        if page != "add-a-variant.md"
    ],
)
def test_every_block_runs(page, workplace, tmp_path, address):
    environment = environment_with_programs(tmp_path)
    for folder in MADE_BY_PAGE.get(page, ()):
        shutil.rmtree(workplace / folder)
    for block in blocks_of(page):
        run_block(block, workplace, environment, address, slow=False)


@posix
@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if any(word in page_text(page) for word in SLOW)])
def test_slow_commands_run(page, workplace, tmp_path, address):
    environment = environment_with_programs(tmp_path)
    shutil.rmtree(workplace / "runs")
    for block in blocks_of(page):
        run_block(block, workplace, environment, address, slow=True)


@every_page
def test_languages_are_known(page):
    for block in blocks_of(page):
        assert block.language in ("bash", "python", "text") or block.title, block.text


# -------------------------------------------------------------------------------------------------------------- variant


def add_entry(path: Path, *changes: tuple[str, str]) -> None:
    """Put lines of code before others."""
    text = path.read_text()
    for line, new in changes:
        assert text.count(line) == 1
        text = text.replace(line, f"{new}{line}")
    path.write_text(text)


@posix
def test_the_variant_of_the_page_works(workplace, tmp_path, monkeypatch):
    """Its files are put into a copy of the package; then its commands run, and the tests of the catalogue."""
    copy = tmp_path / "src" / "opendetr"
    shutil.copytree(ROOT / "src" / "opendetr", copy, ignore=shutil.ignore_patterns("__pycache__"))
    add_entry(
        copy / "presets" / "registry.py",
        ("from opendetr.presets.conditional import", "from opendetr.presets.anchored import anchored_detr_tiny\n"),
        ("        detr_r50_panoptic,\n", "        anchored_detr_tiny,\n"),
    )
    add_entry(
        copy / "models" / "__init__.py",
        ("from opendetr.models.conditional import", "from opendetr.models.anchored import AnchoredDETRConfig\n"),
        ('    "ConditionalDETR",\n', '    "AnchoredDETRConfig",\n'),
    )
    monkeypatch.setattr(test_layers, "PACKAGE", copy)
    for block in blocks_of("add-a-variant.md"):
        if block.title:
            path = tmp_path / block.title
            path.write_text(block.text)
            entry, tree = test_layers.entry_of(path), ast.parse(block.text)
            assert test_layers.faults(entry, tree) + test_layers.imports_past_init(entry, tree) == []
    environment = environment_with_programs(tmp_path) | {"PYTHONPATH": str(tmp_path / "src")}
    (shell,) = (block for block in blocks_of("add-a-variant.md") if block.language == "bash")
    training, tests = shell.commands()
    assert training.startswith("opendetr train")
    run(["sh", "-c", f"{small(training)} {shlex.join(SMALL_RUN)}"], workplace, environment)
    run(["sh", "-c", f"{tests} -p no:cacheprovider"], ROOT, environment)


def test_the_interfaces_of_the_page_are_those_of_the_miniature_members():
    """Every line of its code without a title is in `tests/members.py`."""
    known = {line.strip() for line in (ROOT / "tests" / "members.py").read_text(encoding="utf-8").splitlines()}
    blocks = [block for block in blocks_of("add-a-variant.md") if block.language == "python" and not block.title]
    assert blocks
    for block in blocks:
        assert [line for line in block.text.splitlines() if line.strip() not in known] == []


# -------------------------------------------------------------------------------------------------------------- options


@pytest.mark.parametrize(
    ("page", "command"),
    [
        ("training.md", "train"),
        ("prediction.md", "predict"),
        ("prediction.md", "eval"),
        ("tracking.md", "track"),
        ("models.md", "export"),
        ("training.md", "doctor"),
        ("analysis.md", "analyse"),
        ("analysis.md", "compare"),
        ("ablations.md", "ablate"),
    ],
)
def test_the_page_names_every_option(page, command):
    text = page_text(page)
    parameters = get_command(app).commands[command].params  # type: ignore[attr-defined]
    names = {name for parameter in parameters for name in parameter.opts if name.startswith("--")}
    for name in names - {"--help", "--json", "--debug"}:  # those of every command are in index.md
        assert re.search(rf"`{re.escape(name)}\b", text), f"{page} does not name {name}"


def test_the_page_lists_every_model_with_its_figures():
    text = page_text("models.md")
    rows = re.findall(r"^\| `([\w-]+)` \| ([\d.]+) M \| (\d+) \| .* \| ([\d.]+|-) \| ([\d.]+|-) \|$", text, flags=re.M)
    assert sorted(name for name, *_ in rows) == sorted(list_models())
    for name, parameters, queries, pq, ap in rows:
        with torch.device("meta"):
            model = create(name)
        assert parameters == f"{sum(parameter.numel() for parameter in model.parameters()) / 1e6:.1f}", name
        assert int(queries) == get_preset(name).model.num_queries
        with_masks = name in published_files() and published_files()[name].pq
        assert pq == (f"{100 * published_files()[name].pq:.1f}" if with_masks else "-"), name
        published = published_files().get(name)
        assert ap == (f"{100 * published.ap:.1f}" if published and published.ap else "-"), name


# ----------------------------------------------------------------------------------------------------------------- site


def test_the_site_builds_without_warnings_and_asks_nothing_of_the_network(tmp_path):
    pytest.importorskip("material")
    pytest.importorskip("mkdocstrings")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    fetching = re.compile(r'<(?:script|link|img|iframe)\b[^>]*(?:src|href)="(?:https?:)?//[^"]+"')
    for page in tmp_path.rglob("*.html"):
        assert fetching.findall(page.read_text(encoding="utf-8")) == [], page
