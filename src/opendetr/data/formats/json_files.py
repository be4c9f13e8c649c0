"""Values of JSON files that annotation tools write."""

from __future__ import annotations

import json
import math
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from opendetr.data.faults import FaultKind
from opendetr.data.records import FaultError


def read_json(path: Path) -> Any:
    """The content of a JSON file. Raises FaultError if it cannot be read, or is no JSON."""
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise FaultError(FaultKind.BROKEN_FILE, path, "", f"cannot be read ({error.strerror})") from None
    except json.JSONDecodeError as error:
        at = f"line {error.lineno}, column {error.colno}"
        raise FaultError(FaultKind.BROKEN_FILE, path, at, f"broken JSON: {error.msg}") from None
    except UnicodeDecodeError as error:
        raise FaultError(FaultKind.BROKEN_FILE, path, f"byte {error.start}", "broken JSON: not UTF-8 text") from None
    except ValueError as error:
        raise FaultError(FaultKind.BROKEN_FILE, path, "", f"broken JSON: {error}") from None
    except RecursionError:
        raise FaultError(FaultKind.BROKEN_FILE, path, "", "broken JSON: nested too deeply") from None


def parse_text(text: str, path: Path, at: str) -> Any:
    """The content of a JSON text inside another file. Raises FaultError that names the file and the position."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        reason = getattr(error, "msg", "nested too deeply")
        raise FaultError(FaultKind.BROKEN_FILE, path, at, f"broken JSON in a cell: {reason}") from None


class Entry:
    """An object of a JSON file, and its place for messages.

    Args:
        content: the object.
        path: the file.
        at: the position in the file.
    """

    def __init__(self, content: Any, path: Path, at: str) -> None:
        if not isinstance(content, dict):
            raise FaultError(FaultKind.BAD_VALUE, path, at, f"is {reprlib.repr(content)}; expected an object")
        self.content: Mapping[str, Any] = content
        self.path = path
        self.at = at

    def text(self, key: str) -> str:
        """A text without outer spaces. Raises FaultError if it is missing, empty, or no text."""
        value = self.content.get(key)
        if value is None or (isinstance(value, str) and not value.strip()):
            raise FaultError(FaultKind.MISSING_FIELD, self.path, self.at, f"the key '{key}' is missing")
        if not isinstance(value, str):
            detail = f"'{key}' is {reprlib.repr(value)}; expected text"
            raise FaultError(FaultKind.BAD_VALUE, self.path, self.at, detail)
        return value.strip()

    def number(self, key: str) -> float:
        """A number, or the number that a text contains. Raises FaultError if it is missing, or is none."""
        if self.content.get(key) is None:
            raise FaultError(FaultKind.MISSING_FIELD, self.path, self.at, f"the key '{key}' is missing")
        return number(self.content[key], self.path, self.at, f"'{key}'")

    def numbers(self, key: str) -> list[float]:
        """A list of numbers. Raises FaultError for anything else."""
        value = self.content.get(key)
        if not isinstance(value, list):
            detail = f"'{key}' is {reprlib.repr(value)}; expected a list of numbers"
            raise FaultError(FaultKind.BAD_VALUE, self.path, self.at, detail)
        return [number(item, self.path, self.at, f"'{key}'") for item in value]


def number(value: Any, path: Path, at: str, what: str) -> float:
    """A number, or the number that a text contains; NaN for one that is too large. Raises FaultError for others."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise FaultError(FaultKind.BAD_VALUE, path, at, f"{what} is {reprlib.repr(value)}; expected a number")
    try:
        return float(value)
    except ValueError:
        raise FaultError(FaultKind.BAD_VALUE, path, at, f"{what} is {reprlib.repr(value)}; expected a number") from None
    except OverflowError:
        return math.nan
