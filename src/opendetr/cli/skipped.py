"""The inputs of a command that cannot be read."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opendetr.cli.output import say

if TYPE_CHECKING:
    from opendetr.data import DataError


class Skipped:
    """Names each input that cannot be read on standard error, and stores the messages in a file for the result.

    If the only input fails, its message is that of the error that ends the command. So the first message is printed
    when there is another one, or by `say`.

    Args:
        what: what the inputs are, in the plural.

    Attributes:
        count: number of inputs that cannot be read.
    """

    def __init__(self, what: str) -> None:
        from opendetr.inference.writers import Rows

        self._what = what
        self._rows = Rows()
        self._unsaid: list[str] = []
        self._says = False
        self.count = 0

    def close(self) -> None:
        """Delete the file of the messages."""
        self._rows.close()

    def add(self, line: str) -> None:
        """Add the message of an input."""
        self._rows.add(line)
        self._unsaid.append(line)
        self.count += 1
        if self._says or self.count > 1:
            self.say()

    def say(self) -> None:
        """Print the messages that were not printed yet. Later ones are printed at once."""
        self._says = True
        for line in self._unsaid:
            say(f"skipped: {line}")
        self._unsaid.clear()

    def error(self) -> DataError:
        """The error of a command that could read none of its inputs."""
        from opendetr.data import DataError

        return DataError(f"none of {self.count} {self._what} can be read" if self.count > 1 else self._unsaid[0])

    def print_json(self, head: Mapping[str, Any], path: Path) -> None:
        """Print `head`, "failed" with the messages, and the contents of a JSON file as one JSON object.

        The messages and the contents are copied in pieces, so memory use does not grow with their number.
        """
        sys.stdout.write(json.dumps(head).removesuffix("}") + ', "failed": ')
        self._rows.copy_to(sys.stdout)
        with path.open(encoding="utf-8") as stream:
            sys.stdout.write(",\n" + stream.readline().removeprefix("{"))
            shutil.copyfileobj(stream, sys.stdout)
