"""The error for weights that cannot be used."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class WeightsError(ValueError):
    """Weights cannot be used. The message is one line."""


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Within it, the message of a WeightsError begins with the name of the file."""
    try:
        yield
    except WeightsError as error:
        if str(error).startswith(str(path)):
            raise
        raise WeightsError(f"{path}: {error}") from None
