"""The command `opendetr`. Heavy packages are imported inside the commands, which keeps `--help` fast."""

from __future__ import annotations

import os

import typer

from opendetr.cli import data
from opendetr.cli.ablate import ablate
from opendetr.cli.analyse import analyse
from opendetr.cli.bench import bench
from opendetr.cli.compare import compare
from opendetr.cli.demo import demo
from opendetr.cli.doctor import doctor
from opendetr.cli.evaluate import evaluate
from opendetr.cli.export import export
from opendetr.cli.models import models
from opendetr.cli.predict import predict
from opendetr.cli.pretrain import pretrain
from opendetr.cli.push import push
from opendetr.cli.track import track
from opendetr.cli.train import train
from opendetr.cli.usage import Command, Group

_HELP = "Train, evaluate and use DETR detectors."
_EXIT_CODES = "Exit codes: 0 done, 1 failed, 2 wrong usage, 3 some inputs could not be used, 130 ended by Ctrl-C."

app = typer.Typer(
    cls=Group,
    help=_HELP,
    epilog=_EXIT_CODES,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command(cls=Command)(demo)
app.command(cls=Command)(train)
app.command(cls=Command)(pretrain)
app.command("eval", cls=Command)(evaluate)
app.command(cls=Command)(analyse)
app.command(cls=Command)(ablate)
app.command(cls=Command)(compare)
app.command(cls=Command)(predict)
app.command(cls=Command)(track)
app.add_typer(data.app, name="data")
app.command(cls=Command)(doctor)
app.command(cls=Command)(export)
app.command(cls=Command)(push)
app.command(cls=Command)(models)
app.command(cls=Command)(bench)


def _show_version(wanted: bool) -> None:
    if wanted:
        from opendetr.version import __version__

        print(__version__)
        raise typer.Exit


def _stay_offline(wanted: bool) -> None:
    if wanted:
        os.environ["OPENDETR_OFFLINE"] = "1"


@app.callback(help=_HELP)
def _opendetr(
    version: bool = typer.Option(False, "--version", callback=_show_version, is_eager=True, help="Show the version."),
    offline: bool = typer.Option(False, "--offline", callback=_stay_offline, help="Download nothing."),
) -> None:
    pass


def main() -> None:
    """Run the command line."""
    app(prog_name="opendetr")
