"""Messages for wrong usage of the command line.

For an unknown option or command, the message suggests the nearest one. For an invalid value, it says what is expected.
"""

from __future__ import annotations

import re
import shlex
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

_UsageError: Any = typer.BadParameter.__mro__[1]  # the base class of all errors of the parser
_errors = sys.modules[_UsageError.__module__]
_UnknownOption, _MissingParameter = _errors.NoSuchOption, _errors.MissingParameter

# Arguments that are options in other tools; the table of synonyms has their names there.
_INPUTS = ("data", "source", "weights")
# An example for each argument.
_EXAMPLES = {
    "data": "my-data",
    "source": "my-data",
    "sources": "photo.jpg",
    "weights": "runs/mine",
    "folder": "new-data",
    "names": "panoptic",
    "out": "out",
    "repository": "anna/blood-cells",
    "run": "runs/mine",
    "run_a": "runs/mine",
    "run_b": "runs/other",
    "to": "yolo",
    "format": "huggingface",
}


class Command(TyperCommand):
    """A command whose messages about wrong usage say what to do."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the arguments. Rewords the errors of the parser."""
        given = list(args)
        if any(not text.strip() or (text.startswith("--") and text.endswith("=")) for text in given):
            raise typer.BadParameter("an argument is empty; perhaps a variable of the shell is not set", ctx=ctx)
        try:
            rest = super().parse_args(ctx, args)
        except _UsageError as error:
            _reword(error, self, ctx, given)
            raise
        for text in _positional(self, ctx):
            _refuse_assignment(text, self, ctx)
        _refuse_repeated(self, ctx, given)
        return rest


class Group(TyperGroup):
    """A group of commands. For an unknown command, it suggests one of the same meaning or similar spelling."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find the command that the first argument names."""
        self.suggest_commands = False  # typer suggests by spelling only
        try:
            return super().resolve_command(ctx, args)
        except _UsageError as error:
            from opendetr.config import suggestions

            near = suggestions(args[0], self.commands)
            hint = f"did you mean {near[0]}?" if near else f"choose from {', '.join(self.commands)}"
            error.message = f"no command '{args[0]}'; {hint}"
            raise


def _reword(error: Any, command: Command, ctx: Any, given: list[str]) -> None:
    """Replace the message of a parser's error about the arguments `given`."""
    from pydantic import ValidationError

    from opendetr.config import explained

    option, missing = getattr(error, "option_name", None), getattr(error, "param", None)
    if isinstance(error, _UnknownOption):
        error.possibilities = None
        error.message = f"no option {option}; {_hint(str(option), command, ctx, _value(str(option), given))}"
    elif isinstance(error, _MissingParameter) and missing is not None:
        text = " ".join(error.format_message().split()).rstrip(".")
        text = "an argument is missing" if _is_argument(missing) else text
        raise _UsageError(f"{text}; for example: {_example(command, ctx)}", ctx=ctx) from None
    elif isinstance(error.__cause__, ValidationError):
        error.message = explained(error.__cause__)
    extra = re.match(r"Got unexpected extra arguments? ?\(?s?\)? ?\((.*)\)", str(error.message))
    if extra:
        for text in extra[1].split(" "):
            _refuse_assignment(text, command, ctx)
        name = existing_path(given)
        hint = f"did you mean '{name}'?" if name else f"`opendetr {_name(ctx)} --help` lists the arguments"
        error.message = f"unexpected argument: {extra[1]}; {hint}"


def _refuse_repeated(command: Command, ctx: Any, given: list[str]) -> None:
    """Raise a usage error if an option with one value is given twice. Only the last value would count."""
    _options, _rest, order = command.make_parser(ctx).parse_args(args=list(given))
    for parameter, count in Counter(order).items():
        if count > 1 and not (_is_argument(parameter) or parameter.multiple or getattr(parameter, "is_flag", False)):
            raise _UsageError(f"{parameter.opts[0]} is given {count} times; give it once", ctx=ctx)


def existing_path(words: Sequence[str]) -> str | None:
    """The path that several words in a row name together, such as "my data"; None if no such path exists."""
    spans = ((start, end) for start in range(len(words)) for end in range(start + 2, len(words) + 1))
    names = (" ".join(words[start:end]) for start, end in spans)
    return next(filter(exists, names), None)


def exists(name: str) -> bool:
    """Whether there is such a file or folder; False for names that are invalid on this system."""
    try:
        return Path(name).exists()
    except (OSError, ValueError):
        return False


def _example(command: Command, ctx: Any) -> str:
    """The command with an example of each required argument and option."""
    required = sorted((each for each in command.params if each.required), key=lambda each: not _is_argument(each))
    words = [f"opendetr {_name(ctx)}"]
    for parameter in required:
        if not _is_argument(parameter):
            words.append(parameter.opts[0])
        words.append(_EXAMPLES.get(str(parameter.name), str(parameter.name).upper()))
    return " ".join(words)


def _name(ctx: Any) -> str:
    """The name of the command, such as "data check"."""
    return str(ctx.command_path).partition(" ")[2]


def _value(option: str, given: Sequence[str]) -> str | None:
    """The value that the user gave an unknown option; None if there is none."""
    for text, following in zip(given, [*given[1:], "-"], strict=True):
        name, equals, value = text.partition("=")
        if name == option and (equals or not following.startswith("-")):
            return value if equals else following
    return None


def _hint(option: str, command: Command, ctx: Any, value: str | None = None) -> str:
    """Say what to use instead of an unknown option, which has a value if the user gave one."""
    from opendetr.config import habit_note, setting_names, suggestions, synonyms

    word, name = option.lstrip("-").replace("_", "-").lower(), _name(ctx)
    names = [name for parameter in command.params for name in parameter.opts if name.startswith("--")]
    if synonym := synonyms(word, names):
        return f"did you mean {synonym[0]}?"
    argument = next((parameter.name for parameter in command.params if _is_argument(parameter)), None)
    if argument is not None and synonyms(word, _INPUTS):
        example = _EXAMPLES.get(argument, argument.upper()) if value is None else shlex.quote(value)
        return f"give it as an argument: opendetr {name} {example}"
    if note := habit_note(word):
        return note
    near = suggestions(word, names)
    if not near and "--set" in names:
        from opendetr.presets import DEFAULT_MODEL, get_preset

        near = [f"--set {name}=VALUE" for name in suggestions(word, setting_names(get_preset(DEFAULT_MODEL)))]
    return f"did you mean {near[0]}?" if near else f"`opendetr {name} --help` lists all options"


def _is_argument(parameter: Any) -> bool:
    return str(parameter.param_type_name) == "argument"


def _positional(command: Command, ctx: Any) -> Iterator[str]:
    """The arguments that the user gave, as text."""
    for parameter in filter(_is_argument, command.params):
        value = ctx.params.get(parameter.name)
        yield from map(str, value if isinstance(value, list | tuple) else () if value is None else (value,))


def _refuse_assignment(text: str, command: Command, ctx: Any) -> None:
    """Raise BadParameter for an argument such as "imgsz=640", unless it is the name of a file."""
    from opendetr.config import synonyms

    match = re.fullmatch(r"([A-Za-z][\w-]*)=(.*)", text)
    if match is None or Path(text).exists():
        return
    option = f"--{match[1].replace('_', '-')}"
    if option in {name for parameter in command.params for name in parameter.opts}:
        raise typer.BadParameter(f"{text}: options are written as {option} {match[2]}", ctx=ctx)
    arguments = list(filter(_is_argument, command.params))
    if any(parameter.name == match[1] for parameter in arguments) or synonyms(match[1], _INPUTS[:2]):
        raise typer.BadParameter(f"{text}: arguments have no name: write {match[2]}", ctx=ctx)
    raise typer.BadParameter(f"{text}: options are written as --name value; {_hint(option, command, ctx)}", ctx=ctx)
