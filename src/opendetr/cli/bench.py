"""`opendetr bench`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from opendetr.cli.output import JsonOption, command, print_json, say, table

if TYPE_CHECKING:
    from opendetr.bench import Figure


@command
def bench(
    names: Annotated[list[str] | None, typer.Argument(help="Which; all when omitted. --list shows them.")] = None,
    repeats: Annotated[int, typer.Option(help="Rounds in which we and the peer take turns.", min=1)] = 5,
    list_all: Annotated[bool, typer.Option("--list", help="Show what there is, and measure nothing.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Measure OpenDETR beside its peers on this machine, in one run.

    A figure is seconds or memory, and the factor by which the peer's is larger; of seconds, the median over rounds in
    which both take turns. What transformers is compared in needs it installed. OMP_NUM_THREADS sets the threads.

    Examples:

        opendetr bench

        opendetr bench panoptic --repeats 3 --json
    """
    from opendetr.bench import BENCHMARKS, load_benchmark
    from opendetr.config import ConfigError

    unknown = next((name for name in names or () if name not in BENCHMARKS), None)
    if unknown is not None:
        raise ConfigError(f"bench: no benchmark {unknown!r}; there are {', '.join(BENCHMARKS)}")
    if list_all:
        about = {name: (load_benchmark(name).__doc__ or "").partition("\n")[0] for name in BENCHMARKS}
        print_json({"benchmarks": about}) if as_json else print(table([("name", "what"), *about.items()]))
        return
    rows: list[dict[str, Any]] = []
    for name in names or BENCHMARKS:
        say(f"{name} ...")
        rows += [{"benchmark": name, **asdict(figure)} for figure in _measured(name, repeats)]
    if as_json:
        print_json({"machine": _machine(), "repeats": repeats, "figures": rows})
        return
    heads = ("benchmark", "what", "opendetr", "peer", "theirs", "factor", "expected")
    lines = [
        (row["benchmark"], row["what"], _amount(row["ours"], row["unit"]), row["peer"],
         _amount(row["theirs"], row["unit"]), f"{row['factor']:.2f}", f"at least {row['expected']:.2f}")
        for row in rows
    ]  # fmt: skip
    print(table([heads, *lines]))


def _measured(name: str, repeats: int) -> Iterator[Figure]:
    from opendetr.bench import load_benchmark
    from opendetr.config import ConfigError

    try:
        yield from load_benchmark(name).measure(repeats)
    except ModuleNotFoundError as error:
        raise ConfigError(f"bench {name}: compares with {error.name}; `pip install {error.name}` first") from None


def _amount(value: float, unit: str) -> str:
    return f"{value:.3g} {unit}" if value < 100 else f"{value:,.0f} {unit}"


def _machine() -> dict[str, Any]:
    import platform

    import torch

    return {"processor": platform.processor(), "threads": torch.get_num_threads(), "torch": torch.__version__}
