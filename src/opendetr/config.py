"""Converts trees of frozen dataclasses to plain values for YAML and JSON, and back with every key checked."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from typing import Any, TypeVar, get_type_hints

import yaml
from pydantic import TypeAdapter, ValidationError

Tree = TypeVar("Tree")


class ConfigError(ValueError):
    """A configuration cannot be used. The message is one line."""


def to_dict(tree: Any) -> dict[str, Any]:
    """Convert a tree of dataclasses to nested dicts of plain values; tuples become lists."""
    return {field.name: _plain(getattr(tree, field.name)) for field in dataclasses.fields(tree)}


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return to_dict(value)
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def replaced(tree: Tree, changes: Mapping[str, Any], path: str = "") -> Tree:
    """A copy of `tree` with the fields in `changes` (nested dicts) replaced.

    Args:
        tree: a frozen dataclass, possibly with others as fields.
        changes: new values by field name.
        path: prefix of the field names in messages, such as "model.".

    Raises:
        ConfigError: a key is unknown (the message suggests the nearest valid one), or a value has the wrong type.
    """
    hints = get_type_hints(type(tree))
    valid = {field.name for field in dataclasses.fields(tree) if field.init}  # type: ignore[arg-type]
    new: dict[str, Any] = {}
    for name, value in changes.items():
        where = f"{path}{name}"
        if name not in valid:
            raise ConfigError(f"config: unknown key {where!r}; {_suggestion(str(name), valid, path)}")
        current = getattr(tree, name)
        if dataclasses.is_dataclass(current):
            if not isinstance(value, Mapping):
                raise ConfigError(f"config: {where} is a group of settings, got {value!r}; set one of its settings")
            new[name] = replaced(current, value, f"{where}.")
        else:
            new[name] = _validated(hints[name], value, where)
    try:
        return dataclasses.replace(tree, **new)  # type: ignore[type-var]
    except ValueError as error:
        raise ConfigError(f"config: {error}") from None


def _validated(hint: Any, value: Any, where: str) -> Any:
    try:
        return TypeAdapter(hint).validate_python(value)
    except ValidationError as error:
        fault = error.errors()[0]
        raise ConfigError(f"config: {where} = {value!r}: {fault['msg'][0].lower()}{fault['msg'][1:]}") from None


def _suggestion(name: str, valid: set[str], path: str) -> str:
    near = difflib.get_close_matches(name, valid, n=1, cutoff=0.4)
    return f"did you mean {path}{near[0]!s}?" if near else f"valid keys are {', '.join(sorted(valid))}"


def range_fault(value: float | None, low: float, high: float | None = None) -> str | None:
    """What is wrong with a number that should be in low..high, in a few words; None if nothing is. None is in range."""
    if value is None or (low <= value and (high is None or value <= high)):
        return None
    return f"expected {f'at least {low}' if high is None else f'a number from {low} to {high}'}, got {value}"


def require_range(name: str, value: float | None, low: float, high: float | None = None) -> None:
    """Raise ConfigError for a number out of its range. The command line uses the same words."""
    fault = range_fault(value, low, high)
    if fault:
        raise ConfigError(f"{name}: {fault}")


def parse_assignment(text: str) -> dict[str, Any]:
    """Parse "model.num_queries=50" to {"model": {"num_queries": 50}}; the value is read as YAML.

    Raises:
        ConfigError: there is no "=", or the value is not valid YAML.
    """
    name, equals, value = text.partition("=")
    if not equals or not name.strip():
        raise ConfigError(f"--set {text!r}: write it as key=value, for example model.num_queries=50")
    try:
        change: Any = yaml.safe_load(value)
    except yaml.YAMLError:
        raise ConfigError(f"--set {text!r}: {value!r} is not valid YAML; quote the value") from None
    for part in reversed(name.strip().split(".")):
        change = {part: change}
    return change
