"""Shared by the commands that start or resume a run: options, processes, and the report at the end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from enum import StrEnum
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import typer

from opendetr.cli import launch
from opendetr.cli.output import DeviceOption, Exit, JsonOption, print_json, say

if TYPE_CHECKING:
    from opendetr.training import Run

_NOT_OF_PYTHON = ("moved", "resume", "processes", "nodes", "as_json")  # options that are not arguments in Python
_LENGTHS = ("epochs", "max_steps", "time")
# Options that may be given with --resume.
_NO_SETTINGS = ("data", "moved", "resume", "device", "processes", "nodes", "as_json")


class Logger(StrEnum):
    """The tools that log a run; the values are those of `Recipe.log`."""

    TENSORBOARD = "tensorboard"
    WANDB = "wandb"
    MLFLOW = "mlflow"


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """The options of every command that starts a run, in the order of its help.

    A command with another meaning of an option replaces its field.

    Attributes:
        command: the name of the command.
        images: what a message calls the folder.
    """

    command: ClassVar[str]
    images: ClassVar[str]

    data: Annotated[Path | None, typer.Argument(help="The dataset folder.", show_default=False)] = None
    model: Annotated[
        str | None,
        typer.Option(
            help="A name that `opendetr models` lists, or auto: the best published one that fits into the memory of a "
            "GPU, else deformable-detr-tiny. [default: auto]",
            show_default=False,
        ),
    ] = None
    weights: Annotated[
        str | None,
        typer.Option(
            help="What to start from: published, imagenet (backbone only), none, a run folder, a file or address of "
            "weights, hf:owner/name, or a name that `opendetr models` lists. [default: published, else imagenet, else "
            "none]",
            show_default=False,
        ),
    ] = None
    out: Annotated[Path | None, typer.Option(help="The run folder. [default: runs/MODEL]", show_default=False)] = None
    epochs: Annotated[int | None, typer.Option(help="Length in passes over the data.", show_default=False)] = None
    max_steps: Annotated[int | None, typer.Option(help="Length in optimizer steps.", show_default=False)] = None
    time: Annotated[
        str | None, typer.Option(help="Length as a time with its unit, such as 45s, 30m or 1h30m.", show_default=False)
    ] = None
    batch_size: Annotated[
        int | None, typer.Option(help="Images per step, of all processes together.", show_default=False)
    ] = None
    accumulate: Annotated[
        int | None, typer.Option(help="Micro-batches per step, computed one by one to save memory.", show_default=False)
    ] = None
    lr: Annotated[
        float | None,
        typer.Option(help="Learning rate; that of the backbone is scaled in proportion.", show_default=False),
    ] = None
    image_size: Annotated[int | None, typer.Option(help="Short side in pixels.", show_default=False)] = None
    num_queries: Annotated[
        int | None,
        typer.Option(
            help="Maximum number of objects in an image; new queries are split from the old ones.", show_default=False
        ),
    ] = None
    batch_pixels: Annotated[
        int | None,
        typer.Option(
            help="Maximum number of pixels in a batch, with padding; the largest batch comes first.", show_default=False
        ),
    ] = None
    val_fraction: Annotated[
        float | None,
        typer.Option(help="Fraction used for validation if the dataset has no validation split.", show_default=False),
    ] = None
    train_split: Annotated[str | None, typer.Option(help="The split to train on.", show_default=False)] = None
    val_split: Annotated[str | None, typer.Option(help="The split to evaluate on.", show_default=False)] = None
    workers: Annotated[int | None, typer.Option(help="Processes that load images.", show_default=False)] = None
    strict: Annotated[
        bool, typer.Option("--strict", help="Refuse faulty images and boxes instead of skipping them.")
    ] = False
    precision: Annotated[
        str | None, typer.Option(help="auto, fp32, bf16, or fp16 on a CUDA GPU.", show_default=False)
    ] = None
    gradient_checkpointing: Annotated[
        bool, typer.Option("--gradient-checkpointing", help="Use less memory and more time; the results are the same.")
    ] = False
    freeze: Annotated[
        list[str] | None,
        typer.Option(help="A part of the model to freeze, such as backbone; may be repeated.", show_default=False),
    ] = None
    ema: Annotated[
        float | None,
        typer.Option(
            help="Evaluate and save a moving average of the weights, with this decay, such as 0.999.",
            show_default=False,
        ),
    ] = None
    best_by: Annotated[
        str | None,
        typer.Option(
            help="The metric that selects the best checkpoint: AP, AP50, AP/cat, mask_AP, PQ, ...", show_default=False
        ),
    ] = None
    patience: Annotated[
        int | None, typer.Option(help="Stop after this many evaluations without a new best one.", show_default=False)
    ] = None
    log: Annotated[
        list[Logger] | None,
        typer.Option(help="Also log the run with this tool; may be repeated. Extra: log.", show_default=False),
    ] = None
    seed: Annotated[int | None, typer.Option(help="Seed of all random numbers.", show_default=False)] = None
    device: DeviceOption = "auto"
    config: Annotated[Path | None, typer.Option(help="A YAML file of settings.", show_default=False)] = None
    changes: Annotated[
        list[str] | None, typer.Option("--set", help="A setting as key=value; may be repeated.", show_default=False)
    ] = None
    resume: Annotated[Path | None, typer.Option(help="Resume the run in this folder.", show_default=False)] = None
    moved: Annotated[
        Path | None,
        typer.Option("--data", help="With --resume: the dataset folder, if it has been moved.", show_default=False),
    ] = None
    processes: Annotated[
        int | None, typer.Option(min=1, help="Number of training processes on this machine.", show_default=False)
    ] = None
    nodes: Annotated[
        int | None,
        typer.Option(
            min=1, help="Print the command to run on each of this many machines, and exit.", show_default=False
        ),
    ] = None
    as_json: JsonOption = False

    def require_consistent(self) -> None:
        """Raise BadParameter unless there are images, or a run folder to resume without other settings."""
        if self.moved is not None and (self.resume is None or self.data is not None):
            raise typer.BadParameter(
                f"belongs to --resume; give it as an argument: opendetr {self.command} {self.data or self.moved}",
                param_hint="--data",
            )
        if self.resume is None and self.data is None:
            raise typer.BadParameter(f"name {self.images} folder, or a run folder with --resume")
        lengths = [f"--{name.replace('_', '-')}" for name in _LENGTHS if getattr(self, name) is not None]
        if len(lengths) > 1:
            raise typer.BadParameter(f"{' and '.join(lengths)} set the length of the run: give one of them")
        settings = {field.name: getattr(self, field.name) for field in fields(self) if field.name not in _NO_SETTINGS}
        if self.resume is not None and _given(**settings):
            given = next(f"--{name.replace('_', '-')}" for name in _given(**settings))
            option = {"--changes": "--set"}.get(given, given)
            raise typer.BadParameter(
                f"--resume keeps the settings of the run: leave out {option}; or start a new run from its weights: "
                f"opendetr {self.command} DATA --weights {self.resume}{'' if self.data else f' {option} ...'}"
            )

    def of_python(self) -> dict[str, Any]:
        """The options as arguments of the function of the same name in Python."""
        settings = {field.name: getattr(self, field.name) for field in fields(self) if field.name not in _NOT_OF_PYTHON}
        settings |= {name: settings[name] or () for name in ("changes", "freeze", "allow") if name in settings}
        settings["log"] = [tool.value for tool in self.log or ()]
        return settings


def _given(**options: Any) -> dict[str, Any]:
    """The options that the user gave. The others are None, False or an empty list."""
    return {name: value for name, value in options.items() if value is not None and value is not False and value != []}


def execute(options: RunOptions, next_commands: Callable[[Run], Sequence[str]]) -> Exit:
    """Start a run or resume one, in as many processes as the options say, and report it.

    The function of `opendetr.training` with the name of the command starts a run.

    Args:
        options: the options of the command.
        next_commands: the commands that usually follow, without "opendetr".
    """
    began = perf_counter()
    options.require_consistent()
    if options.nodes is not None:
        print(launch.command_line(options.nodes, options.processes or 1))
        return Exit.DONE
    if options.processes is not None and options.processes > 1:
        return launch.run(options.processes)

    from opendetr import training
    from opendetr.distributed import ProcessError, is_main

    try:
        if options.resume is None:
            start: Callable[..., Run] = getattr(training, options.command)
            with training.counting_from(began):
                run = start(**options.of_python(), say=say)
        else:
            data = options.moved or options.data
            run = training.resume(options.resume, data=data, device=options.device, say=say)
    except ProcessError as error:
        if is_main():
            say(f"error: {error}")
        return Exit.FAILED
    if is_main():
        _report(run, options, next_commands)
    return Exit.FAILED if run.result.interrupted else Exit.DONE


def _report(run: Run, options: RunOptions, next_commands: Callable[[Run], Sequence[str]]) -> None:
    """Print the result. After an interrupted or failed run, the lines that the run has said are the last."""
    result = run.result
    if options.as_json:
        print_json(
            {
                "folder": str(run.folder),
                "steps": result.step,
                "interrupted": result.interrupted,
                "seconds": result.seconds,
                "metrics": result.metrics,
                "best": result.best,
            }
        )
    else:
        print(run.folder)
    if not (result.interrupted or run.failed):
        _summarise(run, next_commands(run))


def _summarise(run: Run, next_commands: Sequence[str]) -> None:
    """Print what the run reached, which weights are deployed, and the commands that usually come next."""
    result, name = run.result, run.result.metric
    if not result.best:
        reason = f"no evaluation could compute {name}" if result.metrics else "there was no evaluation"
        say(f"{reason}: --weights {run.folder} uses the last weights; next:")
        _say_commands(next_commands)
        return
    last, best, step = result.metrics.get(name), result.best[name], result.best["step"]
    some = f" on {result.best['images']} images" if "images" in result.best else ""
    when = "the initial weights: training has not improved them" if step == 0 else f"step {step}"
    say(f"{name}: last {'-' if last is None else f'{last:.3f}'}, best {best:.3f}{some} ({when})")
    say(f"best weights: {run.folder / 'best'}, used by --weights {run.folder}; next:")
    _say_commands(next_commands)


def _say_commands(commands: Sequence[str]) -> None:
    for line in commands:
        say(f"  opendetr {line}")
