"""Shared by the commands: options, errors, tables and JSON."""

from __future__ import annotations

import errno
import functools
import inspect
import json
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import is_dataclass
from enum import IntEnum, StrEnum
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from opendetr.config import SettingError
from opendetr.files import json_value, write_atomically

WEIGHTS_HELP = "A run folder, a file or address of weights, hf:owner/name, or a name that `opendetr models` lists."
WeightsArgument = Annotated[str, typer.Argument(help=WEIGHTS_HELP)]
WeightsOption = Annotated[str, typer.Option(help=WEIGHTS_HELP)]
DataOption = Annotated[Path, typer.Option(help="The dataset folder.", show_default=False)]
ModelOption = Annotated[
    str | None,
    typer.Option(help="The model of a weights file that does not name it, such as detr-r50.", show_default=False),
]


class MergeRule(StrEnum):
    """The rules that merge masks into a panoptic map; the values are those of `postprocess.Merge`."""

    DEFAULT = "default"
    PUBLISHED = "published"


MergeOption = Annotated[
    MergeRule,
    typer.Option(help="How masks become a panoptic map; published is the rule of DETR's code, for comparison."),
]


def in_range(low: float, high: float | None = None) -> Callable[[float | None], float | None]:
    """A callback that refuses a number out of its range in the words of the Python API."""

    def check(value: float | None) -> float | None:
        from opendetr.config import range_fault

        fault = range_fault(value, low, high)
        if fault:
            raise typer.BadParameter(fault)
        return value

    return check


def folder_to_write(path: Path | None) -> Path | None:
    """A callback that refuses an existing file as the folder for results."""
    if path is not None and path.exists() and not path.is_dir():
        raise typer.BadParameter(f"{path}: is a file; give the name of a folder")
    return path


def file_to_write(path: Path | None) -> Path | None:
    """A callback that refuses a folder as the file for results, before the work that leads to them."""
    if path is not None and path.is_dir():
        raise typer.BadParameter(f"{path}: is a folder; give the name of a file")
    return path


ImagesOption = Annotated[
    int | None,
    typer.Option(callback=in_range(1), help="Number of images, evenly spread. [default: all]", show_default=False),
]
BatchSizeOption = Annotated[int, typer.Option(callback=in_range(1), help="Number of images per forward pass.")]
StrictNoObjectOption = Annotated[
    bool, typer.Option("--strict-no-object", help='Drop queries whose most probable class is "no object".')
]


def _device(name: str) -> str:
    """The name of a device as torch writes it. Raises BadParameter."""
    if name.isdecimal():
        raise typer.BadParameter(f"'{name}' is not a device; did you mean cuda:{name}?")
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", name):
        hint = "; did you mean cuda?" if name.lower() in ("gpu", "nvidia", "gpu:0") else ""
        raise typer.BadParameter(f"'{name}' is not one of auto, cpu, cuda, cuda:NUMBER, mps{hint}")
    return name


DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda or mps.", callback=_device)]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON on standard output.")]

_FULL = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
# Errors that a user can cause, by the module that defines them. A module that was never loaded cannot have raised its
# error, and loading all of them would take seconds.
_USER_ERRORS = {
    "opendetr.data.records": "DataError",
    "opendetr.config": "ConfigError",
    "opendetr.weights": "WeightsError",
    "opendetr.training.checkpoint": "CheckpointError",
    "opendetr.structures": "NonFiniteError",
    "opendetr.distributed": "DeviceError",
}


class Exit(IntEnum):
    """The exit codes of every command; docs/index.md explains them. The parser, too, exits with 2 on bad usage."""

    DONE = 0
    FAILED = 1
    BAD_USAGE = 2
    SOME_FAILED = 3
    INTERRUPTED = 130  # as shells report the end by Ctrl-C


def command(function: Callable[..., Any]) -> Callable[..., None]:
    """Make a function a command, with the option --debug.

    The command fails with one line and exit code 1 on an error that a user can cause; with --debug it shows the
    traceback.

    Args:
        function: its parameters are the options. A command with many options takes one parameter instead, a dataclass
            with a field for each option. It may return an `Exit`.
    """
    parameters = _parameters(function)
    options_class = _options_class(parameters)
    if options_class is not None:
        parameters = _parameters(options_class)

    @functools.wraps(function)
    def run(*, debug: bool, **options: Any) -> None:
        try:
            code = function(**options) if options_class is None else function(options_class(**options))
            _flush_output()  # at the end of the process it would be too late to handle an error
        except BrokenPipeError:  # the program that reads the output, such as `head`, has ended: no message is needed
            _discard_lost_output()
            raise typer.Exit(Exit.FAILED) from None
        except KeyboardInterrupt:  # a command that saves its work first handles Ctrl-C itself
            raise typer.Exit(Exit.INTERRUPTED) from None
        except Exception as error:
            if isinstance(error, SettingError) and error.argument and not debug:
                raise wrong_value(error.argument, error.text) from None
            line = _explained(_full_disk(error, options.get("out") or options.get("folder")) or error)
            _discard_lost_output()
            if debug or line is None:
                raise
            print(f"error: {line}", file=sys.stderr)
            raise typer.Exit(_failure_code(error)) from None
        raise typer.Exit(code or Exit.DONE)

    debug_option = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
    debug = inspect.Parameter("debug", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=debug_option)
    options = [*(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in parameters), debug]
    run.__signature__ = inspect.Signature(options)  # type: ignore[attr-defined]
    run.__annotations__ = {option.name: option.annotation for option in options}
    return run


def wrong_value(parameter: str, text: str) -> typer.BadParameter:
    """The error of an option with a wrong value, in the parser's words.

    Args:
        parameter: the name of the option in Python, such as "batch_size".
        text: what is wrong with the value.
    """
    return typer.BadParameter(text, param_hint=f"'--{parameter.replace('_', '-')}'")


def _discard_lost_output() -> None:
    """Discard output that cannot be written. Otherwise Python reports the same error again when it exits."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _failure_code(error: Exception) -> Exit:
    """2 for a setting or an option with a wrong value, 1 for everything else that fails."""
    config = sys.modules.get("opendetr.config")
    is_usage = config is not None and isinstance(error, config.SettingError)
    return Exit.BAD_USAGE if is_usage else Exit.FAILED


def _options_class(parameters: Sequence[inspect.Parameter]) -> type[Any] | None:
    """The dataclass that holds all options, None where each option is a parameter."""
    annotation = parameters[0].annotation if len(parameters) == 1 else None
    return annotation if isinstance(annotation, type) and is_dataclass(annotation) else None


def _parameters(function: Callable[..., Any]) -> list[inspect.Parameter]:
    """The parameters of a function or a dataclass, with evaluated annotations, inherited ones too."""
    hints = get_type_hints(function, include_extras=True)
    parameters = inspect.signature(function).parameters.values()
    return [parameter.replace(annotation=hints.get(parameter.name, parameter.annotation)) for parameter in parameters]


def _flush_output() -> None:
    """Flush standard output; an error names it."""
    try:
        sys.stdout.flush()
    except OSError as error:
        error.filename = "standard output"
        raise


def _full_disk(error: BaseException | None, folder: Path | None) -> OSError | None:
    """The error of a full disk that is, or that led to, `error`; it names what was written, or else the folder."""
    if isinstance(error, RuntimeError) and "inline_container" in str(error):  # torch.save does not say why
        error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    while error is not None and not (isinstance(error, OSError) and error.errno in _FULL):
        error = error.__cause__ or error.__context__
    if error is None:
        return None
    place = error.filename or folder
    where = "" if place is None else f" {place}"
    return OSError(f"cannot write{where}: {error.strerror}; make room, and run the command again")


def _explained(error: Exception) -> str | None:
    """One line for an error that a user can cause, None for a bug."""
    if isinstance(error, ImportError | RuntimeError) and "torchvision" in str(error):
        return one_line(torchvision_fault(error, _installed("torch"), _installed("torchvision")))
    loaded = [(sys.modules[module], name) for module, name in _USER_ERRORS.items() if module in sys.modules]
    kinds = tuple(getattr(module, name) for module, name in loaded if hasattr(module, name))
    if isinstance(error, OSError) and error.strerror:
        name = "" if error.filename is None else f"{error.filename}: "
        return one_line(f"{name}{error.strerror[0].lower()}{error.strerror[1:]}")
    return one_line(str(error)) if isinstance(error, (OSError, *kinds)) else None


def torchvision_fault(error: Exception, torch: str | None, torchvision: str | None) -> str:
    """The message for a torchvision that cannot be imported, with the versions of both packages, None if missing.

    The command keeps the build of torch, such as that for CPUs, and reinstalls nothing else.
    """
    build = re.fullmatch(r".*\+(cpu|cu\d+|rocm[\d.]+|xpu)", torch or "")
    index = f" --index-url https://download.pytorch.org/whl/{build[1]}" if build else ""
    return (
        f"torch {torch or '(missing)'} and torchvision {torchvision or '(missing)'} do not match "
        f"({type(error).__name__}: {error}); fix it with `python -m pip uninstall -y torchvision && "
        f"python -m pip install --upgrade torch torchvision{index}`"
    )


def _installed(package: str) -> str | None:
    """The installed version of a package; None if it is missing."""
    from importlib import metadata

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def one_line(text: str) -> str:
    """The text on one line. Line breaks become spaces, and other characters that are not printable become "?"."""
    return "".join(char if char.isprintable() else " " if char.isspace() else "?" for char in text)


def print_json(result: Mapping[str, Any]) -> None:
    """Print a result as JSON. NaN and infinity become null."""
    print(json.dumps(json_value(result), indent=1, allow_nan=False))


def say(line: str) -> None:
    """Print a line for people on standard error; standard output is for results."""
    print(one_line(line), file=sys.stderr)


def say_unreadable(unreadable: Sequence[str], num_images: int) -> Exit:
    """Say how many images of an evaluation could not be read, and why the first one could not; the exit code."""
    if not unreadable:
        return Exit.DONE
    count = f"{len(unreadable)} of {num_images} images"
    say(f"{count} could not be read and count as having no detections (first: {unreadable[0]})")
    return Exit.SOME_FAILED


def number(value: float | None) -> str:
    """A metric in 0..1 as text; "-" for None."""
    return "-" if value is None else f"{value:.3f}"


def table(rows: Sequence[Sequence[str]]) -> str:
    """Format rows of cells as text in aligned columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file completely or not at all. Makes missing parent folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(content, allow_nan=False))
