"""Progress bars on the terminal and in notebooks."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, ProgressColumn

_NOTEBOOK_INTERVAL = 0.25  # seconds between two updates of a notebook
_LONG_BAR, _SHORT_BAR = 20, 10  # columns
_WIDE = 100  # columns of a terminal that shows the long bar


class StatusBar:
    """A progress bar with a text that gives way: if the line is too narrow, the end of the text is left out.

    Args:
        console: the terminal or the notebook. Default: standard error.
    """

    def __init__(self, console: Console | None = None) -> None:
        from rich import progress
        from rich.console import Console
        from rich.table import Column

        self._console = console or Console(stderr=True)
        self._column = progress.BarColumn(_SHORT_BAR)
        one_line = Column(no_wrap=True, overflow="ellipsis")
        text = progress.TextColumn("{task.description}", markup=False, table_column=one_line)
        self._bar = _Bar(self._console, progress.SpinnerColumn(), self._column, text)

    @property
    def is_shown(self) -> bool:
        """Whether the bar is shown: between `start` and `stop`, on a terminal or in a notebook."""
        return self._bar.is_shown

    def start(self) -> None:
        """Show the bar. Without a terminal and a notebook, nothing happens."""
        self._bar.start()

    def update(self, done: int, total: int | None, parts: Sequence[str]) -> None:
        """Show progress and text.

        Args:
            done: the number done.
            total: the total number; None if it is unknown.
            parts: the parts of the text, the most important first.
        """
        width = self._console.width
        self._column.bar_width = _LONG_BAR if width >= _WIDE else _SHORT_BAR
        space = width - self._column.bar_width - len("x ") - len(" ")  # the spinner; the spaces between columns
        self._bar.update(done, total, _fitted(parts, space))

    def stop(self) -> None:
        """Remove the bar."""
        self._bar.stop()


class _Bar:
    """A bar of rich. In a notebook it is a widget that only the thread of the caller refreshes.

    The thread of rich would put output of other code that runs at the same time into the widget.
    """

    def __init__(self, console: Console, *columns: ProgressColumn) -> None:
        from rich.progress import Progress

        self._in_notebook = console.is_jupyter
        can_show = find_spec("ipywidgets") is not None if self._in_notebook else _is_live(console)
        self._progress: Progress = Progress(
            *columns,
            console=console,
            transient=not self._in_notebook,  # in a notebook, `stop` closes the widget
            auto_refresh=not self._in_notebook,
            redirect_stdout=not self._in_notebook,
            redirect_stderr=not self._in_notebook,
            disable=not can_show,
        )
        self._task = self._progress.add_task("", total=None)
        self._refreshed = 0.0

    @property
    def is_shown(self) -> bool:
        return self._progress.live.is_started

    def start(self) -> None:
        self._progress.start()

    def update(self, done: int, total: int | None, text: str | None = None) -> None:
        self._progress.update(self._task, completed=done, total=total, description=text)
        if self._in_notebook and time.monotonic() - self._refreshed >= _NOTEBOOK_INTERVAL:
            self._progress.refresh()
            self._refreshed = time.monotonic()

    def stop(self) -> None:
        console, widget = self._progress.console, self._progress.live.ipy_widget
        before, console.quiet = console.quiet, console.quiet or self._in_notebook  # no empty output in a notebook
        self._progress.stop()
        console.quiet = before
        if widget is not None:
            widget.close()


def _rate_column(noun: str) -> ProgressColumn:
    """A column with the number per second."""
    from rich.progress import ProgressColumn, Task
    from rich.text import Text

    class RateColumn(ProgressColumn):
        """Shows the speed of a task."""

        def render(self, task: Task) -> Text:
            speed = task.finished_speed or task.speed
            return Text("" if speed is None else f"{speed:.1f} {noun}/s")

    return RateColumn()


def _is_live(console: Console) -> bool:
    """Whether the console is a terminal that can rewrite a line."""
    return console.is_terminal and not console.is_dumb_terminal


def _fitted(parts: Sequence[str], width: int) -> str:
    """The first parts that fit the width together, separated by commas; at least one."""
    from rich.cells import cell_len

    text = parts[0]
    for part in parts[1:]:
        if cell_len(f"{text}, {part}") > width:
            break
        text = f"{text}, {part}"
    return text


@contextmanager
def progress_bar(
    label: str, *, in_bytes: bool = False, rate_of: str = ""
) -> Iterator[Callable[[int, int | None], None]]:
    """Show a progress bar on standard error or in the notebook, and remove it at the end.

    Without a terminal and a notebook, nothing is shown.

    The value of the context manager is a function. Call it with the number done and the total number. If the total is
    unknown, give None.

    Args:
        label: the text before the bar.
        in_bytes: the numbers are bytes. They are shown in KiB and MiB, with the speed.
        rate_of: what is counted, such as "frames", to show its number per second.
    """
    from rich import progress
    from rich.console import Console

    counts: tuple[progress.ProgressColumn, ...] = (progress.MofNCompleteColumn(),)
    if in_bytes:
        counts = (progress.DownloadColumn(binary_units=True), progress.TransferSpeedColumn())
    if rate_of:
        counts += (_rate_column(rate_of),)
    columns = (
        progress.TextColumn("{task.description}", markup=False),
        progress.BarColumn(30),
        *counts,
        progress.TimeRemainingColumn(),
    )
    bar = _Bar(Console(stderr=True), *columns)
    bar.start()
    try:
        bar.update(0, None, label)
        yield bar.update
    finally:
        bar.stop()
