"""A progress bar on the terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress_bar(label: str, *, in_bytes: bool = False) -> Iterator[Callable[[int, int | None], None]]:
    """Show a progress bar on standard error, and remove it at the end. Without a terminal, nothing is shown.

    The value of the context manager is a function. Call it with the number done and the total number. If the total is
    unknown, give None.

    Args:
        label: the text before the bar.
        in_bytes: the numbers are bytes. They are shown in KiB and MiB, with the speed.
    """
    from rich import progress
    from rich.console import Console

    console = Console(stderr=True)
    counts: tuple[progress.ProgressColumn, ...] = (progress.MofNCompleteColumn(),)
    if in_bytes:
        counts = (progress.DownloadColumn(binary_units=True), progress.TransferSpeedColumn())
    columns = (
        progress.TextColumn("{task.description}"),
        progress.BarColumn(30),
        *counts,
        progress.TimeRemainingColumn(),
    )
    with progress.Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(label, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
