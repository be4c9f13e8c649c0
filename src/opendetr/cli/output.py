"""What the commands share: options, errors, tables and JSON."""

from __future__ import annotations

import functools
import inspect
import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from enum import IntEnum, StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from opendetr.files import write_atomically

DEFAULT_MODEL = "deformable-detr-tiny"  # that of `presets`, which would take seconds to import
WeightsOption = Annotated[
    str,
    typer.Option(
        help="A run folder, a file or address of weights, hf:owner/name, or a name that `opendetr models` lists."
    ),
]
ModelOption = Annotated[
    str | None,
    typer.Option(help="The model in a file that does not say it itself, such as detr-r50.", show_default=False),
]


class MergeRule(StrEnum):
    """How masks become a panoptic map, as `postprocess.Merge` names the rules."""

    DEFAULT = "default"
    PUBLISHED = "published"


MergeOption = Annotated[
    MergeRule,
    typer.Option(help="How masks become a panoptic map; published is DETR's own rule, for comparison."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON on standard output.")]

# What a user can cause, by the module that defines it: an error whose module was never loaded cannot have been raised,
# and loading them all would cost seconds.
_USER_ERRORS = {
    "opendetr.data.records": "DataError",
    "opendetr.config": "ConfigError",
    "opendetr.weights": "WeightsError",
    "opendetr.training.checkpoint": "CheckpointError",
    "opendetr.training.trainer": "NonFiniteError",
    "opendetr.distributed": "DeviceError",
}


class Exit(IntEnum):
    """The exit codes of every command; 2, bad usage, is given by the parser."""

    DONE = 0
    FAILED = 1
    SOME_FAILED = 3


def command(function: Callable[..., Any]) -> Callable[..., None]:
    """A command that fails with one line and exit code 1, or, with the option --debug, with a traceback.

    The function may return an `Exit`.
    """

    @functools.wraps(function)
    def run(*, debug: bool, **options: Any) -> None:
        try:
            code = function(**options)
        except Exception as error:
            line = _explained(error)
            if debug or line is None:
                raise
            print(f"error: {line}", file=sys.stderr)
            raise typer.Exit(Exit.FAILED) from None
        raise typer.Exit(code or Exit.DONE)

    signature = inspect.signature(function, eval_str=True)
    option = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
    debug = inspect.Parameter("debug", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=option)
    parameters = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in signature.parameters.values()]
    run.__signature__ = signature.replace(parameters=[*parameters, debug])  # type: ignore[attr-defined]
    run.__annotations__ = {each.name: each.annotation for each in (*parameters, debug)}
    return run


def _explained(error: Exception) -> str | None:
    """One line for an error that a user can cause, None for a fault of ours."""
    if isinstance(error, ImportError | RuntimeError) and "torchvision" in str(error):
        return (
            "the installed torch and torchvision do not fit together; fix it with "
            "`python -m pip install --upgrade torch torchvision`"
        )
    loaded = [(sys.modules[module], name) for module, name in _USER_ERRORS.items() if module in sys.modules]
    kinds = tuple(getattr(module, name) for module, name in loaded if hasattr(module, name))
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return one_line(f"{error.filename}: {error.strerror[0].lower()}{error.strerror[1:]}")
    return one_line(str(error)) if isinstance(error, (OSError, *kinds)) else None


def one_line(text: str) -> str:
    """The text without line breaks and without anything else that a terminal would not print."""
    return "".join(letter if letter.isprintable() else " " if letter.isspace() else "?" for letter in text)


def print_json(result: Mapping[str, Any]) -> None:
    """Print a result for machines; numbers that JSON does not have become null."""
    print(json.dumps(_plain(result), indent=1, allow_nan=False))


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def say(line: str) -> None:
    """A line for people, on standard error: standard output is for results."""
    print(one_line(line), file=sys.stderr)


def number(value: float | None) -> str:
    """A score in 0..1 as people read it; "-" where there is none."""
    return "-" if value is None else f"{value:.3f}"


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of text in columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def write_json(path: Path, content: Any) -> None:
    """Write a file completely or not at all; folders on the way to it are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(content, allow_nan=False))
