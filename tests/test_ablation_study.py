"""`opendetr ablate`: every setting trains, a study continues where it stopped, and its tables say what was measured."""

from __future__ import annotations

import json
import os
import shlex
import signal
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from typer.testing import CliRunner

from miniature_runs import write_blocks
from opendetr.analysis import (
    BASELINE,
    SCALES,
    InterruptedStudyError,
    Scale,
    Setting,
    Study,
    ablation_runs,
    collect_study,
    difference_text,
    open_study,
    run_study,
    study_commands,
    tables,
    write_tables,
)
from opendetr.analysis.ablation_runs import METRICS
from opendetr.analysis.ablation_tables import markdown, resolved
from opendetr.cli.main import app
from opendetr.config import ConfigError, SettingError, parse_assignment, replaced, to_dict
from opendetr.presets import (
    Preset,
    build_model,
    build_task,
    get_preset,
    list_baselines,
    miniature,
    trained_from_nothing,
)
from opendetr.structures import Batch, ImageBatch, Target
from opendetr.tasks import COUNT
from opendetr.training import Callback, StepTaken, train

ALL = [
    pytest.param(scale, setting, id=f"{scale.name}-{setting.name}")
    for scale in SCALES.values()
    for setting in scale.settings
]
TINY = SCALES["tiny"]
cli = CliRunner()


def with_changes(preset: Preset, scale: Scale, setting: Setting) -> Preset:
    for changes in (scale.changes, {} if setting.model else scale.detr, setting.changes):
        preset = replaced(preset, changes)
    return preset


# ------------------------------------------------------------------------------------------------------------- settings


@pytest.mark.parametrize(("scale", "setting"), ALL)
def test_every_setting_is_a_model(scale, setting):
    name = setting.model or scale.model
    with torch.device("meta"):
        build_model(with_changes(get_preset(name), scale, setting), 3)


def target() -> Target:
    return Target(torch.tensor([1]), torch.tensor([[0.5, 0.4, 0.3, 0.4]]), (64, 64), (64, 64), image_id=0)


@pytest.mark.parametrize("setting", TINY.settings, ids=lambda setting: setting.name)
def test_every_setting_trains(setting):
    """Two steps of the miniature change every trained parameter that the loss depends on, and lower no value to NaN."""
    preset = trained_from_nothing(miniature(setting.model or TINY.model))
    preset = with_changes(preset, TINY, setting)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        task = build_task(preset, build_model(preset, 3), 3).train()
        batch = Batch(ImageBatch.from_images([torch.randn(3, 64, 64), torch.randn(3, 64, 64)]), (target(), target()))
        optimizer = torch.optim.SGD(task.parameters(), 1e-3)
        for _ in range(2):
            optimizer.zero_grad()
            losses = task(batch)
            losses.pop(COUNT, None)
            task.total(losses).backward()
            optimizer.step()
    for name, parameter in task.named_parameters():
        assert parameter.grad is not None or not parameter.requires_grad, name
        assert parameter.isfinite().all(), name


@pytest.mark.parametrize("scale", SCALES.values(), ids=list(SCALES))
def test_settings_differ_from_the_baseline_and_from_each_other(scale):
    assert scale.settings[0].name == BASELINE
    assert len({run for setting in scale.settings for run in setting.runs}) == sum(
        len(setting.runs) for setting in scale.settings
    )
    presets = [
        to_dict(with_changes(get_preset(setting.model or scale.model), scale, setting)) for setting in scale.settings
    ]
    assert all(preset not in presets[:index] for index, preset in enumerate(presets))
    groups = {setting.group for setting in scale.settings}
    assert {"encoder layers", "decoder layers", "feed-forward blocks", "position encodings", "losses", "resolution",
            "augmentation", "detectors"} <= groups  # fmt: skip
    assert {setting.model for setting in scale.settings if setting.compared} <= set(list_baselines())


def test_the_papers_numbers():
    """Differences are those of table 2 to 4, and add up with AP."""
    for scale in SCALES.values():
        for setting in scale.settings:
            published = setting.published
            if published is None or published.ap is None or published.difference is None or "500" in published.source:
                continue
            assert published.difference == pytest.approx(published.ap - 40.6, abs=0.051), setting.name
    by_name = {setting.name: setting.published for setting in SCALES["paper"].settings}
    assert by_name["no-ffn"].difference == -2.3
    assert by_name["no-giou"].difference == -4.8
    assert by_name["encoder-0"].ap == 36.7


# ----------------------------------------------------------------------------------------------------------------- runs


def small_scale(*names: str, images: int = 4) -> Scale:
    """The scale "tiny" with miniature models and images of 64 pixels."""
    detr = {key: value for key, value in to_dict(miniature("detr-tiny"))["model"].items() if key != "backbone"}
    changes = {
        "data": {**TINY.changes["data"], "num_workers": 0},
        "recipe": {**TINY.changes["recipe"], "batch_size": 2, "precision": "fp32", "num_evaluations": 2},
    }
    settings = []
    for setting in TINY.choose(names):
        own: dict[str, Any] = dict(setting.changes)
        if setting.model:
            model = to_dict(miniature(setting.model))["model"]
            own["model"] = {key: value for key, value in model.items() if key != "backbone"}
        settings.append(replace(setting, changes=own, seeds=setting.seeds[:2]))
    return replace(TINY, images=images, image_size=64, changes=changes, detr={"model": detr}, settings=tuple(settings))


def study_in(folder: Path, *names: str, **options: Any) -> Study:
    data = folder / "data"
    if not data.exists():
        write_blocks(data, train=4, val=2)
    return open_study(folder / "study", small_scale(*names, **options), data, images=None, device="cpu")


def nothing(line: str) -> None:
    pass


def test_a_study_goes_on_run_by_run(tmp_path, monkeypatch):
    study = study_in(tmp_path, BASELINE, "faster-rcnn")
    baseline, faster = study.scale.settings
    assert run_study(study, [baseline], nothing) == []
    assert sorted(path.stem for path in (study.folder / "results").iterdir()) == ["baseline-0", "baseline-1"]
    files = {path: path.read_bytes() for path in (study.folder / "results").iterdir()}
    lines: list[str] = []
    study = study_in(tmp_path, BASELINE, "faster-rcnn")
    assert run_study(study, study.scale.settings, lines.append) == []
    assert [line for line in lines if line.startswith("run ")] == ["run 1 of 1: faster-rcnn (Faster R-CNN)"]
    assert all(path.read_bytes() == content for path, content in files.items())
    monkeypatch.setattr(ablation_runs, "train", lambda *args, **options: pytest.fail("nothing is left to train"))
    assert run_study(study, study.scale.settings, nothing) == []
    for result in (*study.results(baseline), *study.results(faster)):
        assert len(json.dumps(result)) < 20_000
        assert result["last"] == {name: result["curve"][-1][name] for name in METRICS}
        assert result["parameters"] > 0
        assert result["operations"] > 0
        assert result["seconds_per_image"] > 0
        assert {"nms", "no_nms"} <= result.keys()
    assert [result["images"] for result in study.results(baseline)] == [4, 4]
    assert [len(result["curve"]) for result in study.results(baseline)] == [2, 2]
    assert [result["images"] for result in study.results(faster)] == [2]  # a third, and at least a step
    assert len(study.results(baseline)[0]["layers"]) == 2
    check_tables_equal(study)


def check_tables_equal(study: Study) -> None:
    """The Markdown has the numbers of the JSON."""
    content = write_tables(study)
    assert json.loads((study.folder / "table.json").read_text()) == json.loads(json.dumps(content))
    assert (study.folder / "table.png").stat().st_size > 1000
    lines = (study.folder / "table.md").read_text().splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines if line.startswith("| ")]
    heads = [index for index, row in enumerate(rows) if row[0] in ("setting", "detector")]
    ablations, detectors = rows[heads[0] : heads[1]], rows[heads[1] :]
    for table, found in ((ablations, content["ablations"]), (detectors, content["detectors"])):
        head, _, *body = table
        assert len(body) == len(found)
        for cells, row in zip(body, found, strict=True):
            shown = dict(zip(head, cells, strict=True))
            assert shown["runs"] == str(row["runs"])
            for name in ("AP", "AP50", "AP_S", "AP_M", "AP_L"):
                assert shown[name] == ("-" if row[name] is None else f"{row[name]:.3f}")
            published = row["published"]
            ap = None if published is None else published["AP"]
            assert shown["published AP"] == ("-" if ap is None else f"{ap:.1f}")
            if "difference" in shown:
                assert shown["difference"] == difference_text(row)


class StopAfter(Callback):
    """Sends Ctrl-C after a step."""

    def on_step(self, event: StepTaken) -> None:
        os.kill(os.getpid(), signal.SIGINT)


def test_an_interrupted_run_leaves_no_result_and_is_continued(tmp_path, monkeypatch):
    study = study_in(tmp_path, "no-ffn")
    with monkeypatch.context() as patched:
        patched.setattr(ablation_runs, "train", lambda *args, **kw: train(*args, callbacks=[StopAfter()], **kw))
        with pytest.raises(InterruptedStudyError, match="no-ffn: interrupted after 1 step"):
            run_study(study, study.scale.settings, nothing)
    assert study.results(study.scale.settings[0]) == []
    collect_study(study, study.scale.settings)  # the run has not ended
    assert study.results(study.scale.settings[0]) == []
    monkeypatch.setattr(ablation_runs, "train", lambda *args, **options: pytest.fail("the run has begun"))
    run_study(study, study.scale.settings, nothing)
    (result,) = study.results(study.scale.settings[0])
    study.result_file("no-ffn").unlink()
    collect_study(study, study.scale.settings)
    (again,) = study.results(study.scale.settings[0])
    assert again["curve"] == result["curve"]


def test_a_run_of_another_process_is_left_to_it(tmp_path):
    study = study_in(tmp_path, "no-ffn")
    (study.folder / "runs").mkdir()
    with FileLock(study.folder / "runs" / "no-ffn.lock"):
        assert run_study(study, study.scale.settings, nothing) == ["no-ffn"]


def test_a_folder_holds_one_study(tmp_path):
    study_in(tmp_path, BASELINE)
    with pytest.raises(ConfigError, match="contains a study with images"):
        study_in(tmp_path, BASELINE, images=6)
    with pytest.raises(ConfigError, match="scale"):
        open_study(tmp_path / "study", SCALES["small"], tmp_path / "data", images=4)


# --------------------------------------------------------------------------------------------------------------- tables


def write_result(study: Study, setting: Setting, run: str, ap: float) -> None:
    metrics = dict.fromkeys(METRICS, ap)
    result: Mapping[str, Any] = {
        "run": run, "setting": setting.name, "images": 4, "parameters": 1e6, "operations": 1e9,
        "seconds_per_image": 0.1, "last": metrics, "median": metrics, "nms": ap, "no_nms": ap,
    }  # fmt: skip
    path = study.result_file(run)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result))


@pytest.mark.parametrize(
    ("aps", "ap", "expected"),
    [
        ((0.30, 0.34, 0.32), 0.20, "-0.120"),
        ((0.30, 0.34, 0.32), 0.24, "-0.080"),
        ((0.30, 0.34, 0.32), 0.25, "-0.070, not resolved"),
        ((0.30, 0.34, 0.32), 0.39, "+0.070, not resolved"),
        ((0.30,), 0.20, "-0.100, not resolved"),
    ],
)
def test_small_differences_are_not_resolved(tmp_path, aps, ap, expected):
    study = open_study(tmp_path / "study", TINY, tmp_path, images=4)
    baseline, no_ffn = TINY.choose([BASELINE, "no-ffn"])
    for run, value in zip(baseline.runs, aps, strict=False):
        write_result(study, baseline, run, value)
    write_result(study, no_ffn, "no-ffn", ap)
    content = tables(study)
    row = next(row for row in content["ablations"] if row["setting"] == "no-ffn")
    assert difference_text(row) == expected
    assert f"| {expected} | 38.3 | -2.3 |" in markdown(content)
    assert content["ablations"][0]["difference"] is None


def test_twice_the_spread_is_resolved():
    assert resolved(0.08, 0.04)
    assert not resolved(0.0799, 0.04)
    assert not resolved(0.5, None)


# ------------------------------------------------------------------------------------------------------------- commands


def test_commands_of_the_paper_are_complete(tmp_path):
    scale = SCALES["paper"]
    study = open_study(tmp_path / "study", scale, tmp_path / "coco data", images=None)
    commands = study_commands(study, scale.settings)
    assert len(commands) == sum(len(setting.runs) for setting in scale.settings)
    for setting, line in zip(scale.settings, commands, strict=True):
        words = shlex.split(line)
        assert words[: words.index("train")][:3] == ["torchrun", "--nnodes", "4"]
        arguments = words[words.index("train") + 1 :]
        assert arguments[0] == str(tmp_path / "coco data")
        options: dict[str, list[str]] = {}
        for name, value in zip(arguments[1::2], arguments[2::2], strict=True):
            options.setdefault(name, []).append(value)
        preset = get_preset(options["--model"][0])
        for assignment in options["--set"]:
            preset = replaced(preset, parse_assignment(assignment))
        assert preset == with_changes(get_preset(setting.model or scale.model), scale, setting)


def test_the_command_lists_settings_and_refuses_wrong_ones(tmp_path):
    listed = cli.invoke(app, ["ablate", "--list", "--json"])
    assert [row["name"] for row in json.loads(listed.stdout)["settings"]] == [setting.name for setting in TINY.settings]
    shown = cli.invoke(app, ["ablate", "--list", "--scale", "paper", "--only", "dc5"])
    assert "dc5" in shown.stdout and "no-ffn" not in shown.stdout
    wrong = cli.invoke(app, ["ablate", "--only", "no-fnn", "--out", str(tmp_path / "out")])
    assert wrong.exit_code == 2 and "did you mean no-ffn?" in wrong.output
    needs = cli.invoke(app, ["ablate", "--scale", "small", "--out", str(tmp_path / "out")])
    assert needs.exit_code == 1 and "needs a dataset" in needs.output
    assert not (tmp_path / "out").exists()
    with pytest.raises(SettingError, match="--list"):
        TINY.choose(["x"])


def test_the_command_prints_the_tables(tmp_path):
    write_blocks(tmp_path / "data", train=4, val=2)
    options = ["--out", str(tmp_path / "out"), "--scale", "paper"]
    printed = cli.invoke(app, ["ablate", str(tmp_path / "data"), *options, "--only", "no-ffn"])
    assert printed.exit_code == 0
    assert printed.stdout.count("torchrun") == 1
    study = open_study(tmp_path / "out", SCALES["paper"], tmp_path / "data", images=None)
    write_result(study, SCALES["paper"].choose(["no-ffn"])[0], "no-ffn", 0.4)
    again = cli.invoke(app, ["ablate", str(tmp_path / "data"), *options, "--only", "no-ffn"])
    assert "torchrun" not in again.stdout
    assert "0.400" in again.stdout and "38.3" in again.stdout
