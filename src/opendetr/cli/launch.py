"""Starts this command again in several processes that train together."""

from __future__ import annotations

import os
import shlex
import socket
import sys
from collections.abc import Sequence

import typer

from opendetr.cli.output import Exit, say

_PORT = 29500


def run(num_processes: int) -> Exit:
    """Run this command in `num_processes` new processes. If one fails, all of them end."""
    if "LOCAL_RANK" in os.environ:
        raise typer.BadParameter("the launcher has started the processes already: leave --processes out")

    import logging

    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    from opendetr.distributed import usable_cpus

    logging.disable(logging.CRITICAL)  # the launcher's report: the processes print their own errors
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, usable_cpus() // num_processes)))
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=num_processes,
        run_id="opendetr",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
    )
    try:
        elastic_launch(config, sys.executable)("-m", "opendetr", *_own_arguments())
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode < 0 and rank == 0:
            say(f"error: process 0 of {num_processes} was ended by {failure.signal_name()}; continue with --resume")
        return Exit.BAD_USAGE if failure.exitcode == Exit.BAD_USAGE else Exit.FAILED
    except SignalException:  # the processes have saved and reported it
        return Exit.FAILED
    return Exit.DONE


def command_line(num_nodes: int, num_processes: int) -> str:
    """The command that starts `num_processes` on a machine; it is the same on all machines.

    The processes connect to the machine on which the command is printed.
    """
    launcher = ["torchrun", "--nnodes", num_nodes, "--nproc-per-node", num_processes, "--rdzv-id", "opendetr"]
    rendezvous = ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"{socket.gethostname()}:{_PORT}"]
    return shlex.join(map(str, [*launcher, *rendezvous, "-m", "opendetr", *_own_arguments()]))


def _own_arguments() -> list[str]:
    """The arguments of this command, without --processes and --nodes."""
    return _without(sys.argv[1:], ("--processes", "--nodes"))


def _without(arguments: Sequence[str], options: Sequence[str]) -> list[str]:
    kept: list[str] = []
    given = iter(arguments)
    for argument in given:
        if argument in options:
            next(given, None)
        elif not argument.startswith(tuple(f"{option}=" for option in options)):
            kept.append(argument)
    return kept
