"""The callbacks that log a run to other tools: what arrives there, resumed runs, tools that are missing or refuse."""

from __future__ import annotations

import json
import math
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from torch import nn
from typer.testing import CliRunner

from opendetr.cli.main import app
from opendetr.config import ConfigError
from opendetr.recipe import Recipe
from opendetr.synthetic import write_scenes
from opendetr.training import loggers as module
from opendetr.training.events import Callback, Evaluated, RunEnded, RunStarted, StepTaken
from opendetr.training.loggers import IDS_FILE, loggers

METRICS = {"AP": 0.25, "AP50": None, "AP/dog": 0.375, "AP/a (b), c": 0.5, "AP/..": 0.125}


def start(folder: Path, step: int = 0) -> RunStarted:
    return RunStarted(folder, step, 4, 8, "cpu", 0, {})


def log(callback: Callback, folder: Path, first: int, last: int) -> None:
    """A run from one step to another, whose last step is evaluated."""
    callback.on_start(start(folder, first - 1))
    for step in range(first, last + 1):
        losses = {"class": (3.0, float(step))}
        callback.on_step(StepTaken(step, 0, 8, 10.0 + step, losses, 1e-4, math.inf, 2, 0.5, 0.1))
    callback.on_evaluation(Evaluated(last, 1.0, METRICS, True, None, 1.0, nn.Identity()))
    callback.on_end(RunEnded(last, "finished", 1.0))


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.yaml").write_text("name: detr-tiny\nrecipe: {seed: 7, freeze: [backbone]}\n")
    return tmp_path / "mine"


def test_tensorboard_has_losses_and_metrics(folder):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    (callback,) = loggers(["tensorboard", "tensorboard"])
    log(callback, folder, 1, 3)
    events = accumulator.EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    names = {"loss/total", "loss/class", "training/learning rate", "validation/AP", "classes/AP/dog"}
    assert names <= set(events.Tags()["scalars"])
    assert "validation/AP50" not in events.Tags()["scalars"]
    assert [event.step for event in events.Scalars("loss/total")] == [1, 2, 3]
    assert events.Scalars("classes/AP/dog")[-1].value == 0.375


@pytest.fixture
def mlflow_client(tmp_path, monkeypatch) -> Any:
    """A client of a store of files. Nothing is sent over the network."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
    return pytest.importorskip("mlflow").MlflowClient()


def mlflow_runs(client: Any) -> list[Any]:
    return client.search_runs([client.get_experiment_by_name("opendetr").experiment_id])


def test_mlflow_has_losses_metrics_and_settings_also_of_a_resumed_run(folder, mlflow_client):
    log(*loggers(["mlflow"]), folder, 1, 30)
    log(*loggers(["mlflow"]), folder, 31, 32)
    (run,) = mlflow_runs(mlflow_client)
    assert (run.info.run_name, run.info.status) == ("mine", "FINISHED")
    assert run.data.params == {"name": "detr-tiny", "recipe.seed": "7", "recipe.freeze": "['backbone']"}
    expected = {"loss/total": 42, "loss/class": 32, "training/learning rate": 1e-4, "validation/AP": 0.25}
    expected |= {"classes/AP/dog": 0.375, "classes/AP/a _b__ c": 0.5, "classes/AP/_": 0.125}
    assert {name: run.data.metrics.get(name) for name in expected} == expected
    assert "validation/AP50" not in run.data.metrics
    history = mlflow_client.get_metric_history(run.info.run_id, "loss/total")
    assert [(metric.step, metric.value) for metric in history] == [(step, 10 + step) for step in range(1, 33)]


def test_mlflow_starts_anew_where_the_run_is_not_known(folder, mlflow_client):
    (folder / IDS_FILE).write_text('{"mlflow": "0123456789abcdef0123456789abcdef", "other": "kept"}')
    log(*loggers(["mlflow"]), folder, 5, 6)
    assert len(mlflow_runs(mlflow_client)) == 1
    assert "kept" in (folder / IDS_FILE).read_text()


def test_a_server_that_fails_during_the_run_is_one_warning(folder, mlflow_client, monkeypatch, capsys):
    exceptions = pytest.importorskip("mlflow.exceptions")
    (callback,) = loggers(["mlflow"])
    callback.on_start(start(folder))

    def fail(*_given: Any, **_options: Any) -> None:
        raise exceptions.MlflowException("no\nanswer.")

    for name in ("log_batch", "set_terminated"):
        monkeypatch.setattr(type(mlflow_client), name, fail)
    for step in (1, 2):
        callback.on_evaluation(Evaluated(step, 1.0, METRICS, True, None, 1.0, nn.Identity()))
    callback.on_end(RunEnded(2, "finished", 1.0))
    assert capsys.readouterr().err == "warning: mlflow: no answer; MLflow does not have all values of this run\n"
    with pytest.raises(ConfigError, match="mlflow: no answer"):
        loggers(["mlflow"])[0].on_start(start(folder))


def wandb_records(path: Path) -> Iterator[bytes]:
    """The records in a file that W&B writes offline: a log of LevelDB behind seven bytes."""
    content, at, record = path.read_bytes(), 7, b""
    while at < len(content):
        left = 2**15 - at % 2**15  # of the block
        if left < 7:
            at += left
            continue
        _, length, kind = struct.unpack("<IHB", content[at : at + 7])
        record += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a whole record, or its last part
            yield record
            record = b""


def test_wandb_has_losses_metrics_and_settings_also_of_a_resumed_run(folder, monkeypatch):
    pytest.importorskip("wandb")
    messages = pytest.importorskip("wandb.proto.wandb_internal_pb2")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    log(*loggers(["wandb"]), folder, 1, 2)
    time.sleep(1.1)  # W&B names its folder by the second
    log(*loggers(["wandb"]), folder, 3, 4)
    deadline = time.monotonic() + 30
    rows, runs = [], []
    while len(rows) < 4 and time.monotonic() < deadline:  # another process writes the files, late on a loaded machine
        rows, runs = [], []
        for path in sorted(folder.glob("wandb/offline-run-*/run-*.wandb"), key=lambda path: path.stat().st_mtime):
            for data in wandb_records(path):
                record = messages.Record.FromString(data)
                if record.HasField("run"):
                    runs.append((record.run.run_id, record.run.project, record.run.display_name))
                if record.HasField("history"):
                    items = record.history.item
                    rows.append({"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in items})
        time.sleep(0.1)
    assert len(set(runs)) == 1 and runs[0][1:] == ("opendetr", "mine")
    assert [row["_step"] for row in rows] == [1, 2, 3, 4]
    assert (rows[-1]["loss/total"], rows[-1]["classes/AP/dog"]) == (14, 0.375)
    assert "validation/AP50" not in rows[-1]


def test_wandb_without_a_login_is_one_line(folder, monkeypatch):
    wandb = pytest.importorskip("wandb")

    def refuse(**_options: Any) -> None:
        raise wandb.errors.UsageError("No API key configured.\nUse `wandb login` to log in.")

    monkeypatch.setattr(wandb, "init", refuse)
    (callback,) = loggers(["wandb"])
    with pytest.raises(ConfigError) as fault:
        callback.on_start(start(folder))
    line = "wandb: No API key configured. Use `wandb login` to log in; or set WANDB_MODE=offline"
    assert str(fault.value) == line
    callback.on_end(RunEnded(0, "failed", 0.0))  # the trainer ends the run for every callback


@pytest.mark.parametrize("tool", ["tensorboard", "wandb", "mlflow"])
def test_a_tool_that_is_not_installed_is_one_line_and_nothing_is_written(tool, tmp_path, monkeypatch):
    write_scenes(tmp_path / "scenes", counts={"train": 2, "val": 1})
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda _name: None)
    arguments = ["train", str(tmp_path / "scenes"), "--out", str(tmp_path / "run"), "--weights", "none"]
    result = CliRunner().invoke(app, [*arguments, "--model", "detr-tiny", "--device", "cpu", "--log", tool])
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1] == (
        f"error: log {tool}: needs {tool}; install it with `python -m pip install 'opendetr[log]'`"
    )
    assert not (tmp_path / "run").exists()


def test_a_tool_that_is_not_known_is_refused():
    with pytest.raises(ValueError, match=r"recipe\.log: expected tensorboard, wandb or mlflow"):
        Recipe(log=("tensorbord",))  # type: ignore[arg-type]
