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
    names: Annotated[
        list[str] | None, typer.Argument(help="Which benchmarks; all if omitted. --list names them.")
    ] = None,
    repeats: Annotated[int, typer.Option(help="Rounds in which OpenDETR and the peer run in turn.", min=1)] = 5,
    list_all: Annotated[bool, typer.Option("--list", help="List the benchmarks, and measure nothing.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Compare OpenDETR with other implementations, its peers, on this machine.

    A figure is seconds or memory. The factor is the peer's figure divided by OpenDETR's; for seconds it is the median
    over rounds in which both run in turn. A comparison with transformers requires that package. OMP_NUM_THREADS sets
    the number of threads.

    Examples:

        opendetr bench

        opendetr bench panoptic --repeats 3 --json
    """
    from opendetr.bench import BENCHMARKS, load_benchmark
    from opendetr.config import SettingError

    unknown = next((name for name in names or () if name not in BENCHMARKS), None)
    if unknown is not None:
        raise SettingError(f"bench: no benchmark {unknown!r}; choose from {', '.join(BENCHMARKS)}")
    if list_all:
        about = {name: (load_benchmark(name).__doc__ or "").partition("\n")[0] for name in BENCHMARKS}
        print_json({"benchmarks": about}) if as_json else print(table([("name", "measures"), *about.items()]))
        return
    rows: list[dict[str, Any]] = []
    for name in names or BENCHMARKS:
        say(f"{name} ...")
        rows += [{"benchmark": name, **asdict(figure)} for figure in _measured(name, repeats)]
    if as_json:
        print_json({"machine": _machine(), "repeats": repeats, "figures": rows})
        return
    heads = ("benchmark", "measured", "opendetr", "peer", "peer's figure", "factor", "expected")
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
        raise ConfigError(
            f"bench {name}: compares with {error.name}, which `pip install {error.name}` installs"
        ) from None


def _amount(value: float, unit: str) -> str:
    return f"{value:.3g} {unit}" if value < 100 else f"{value:,.0f} {unit}"


def _machine() -> dict[str, Any]:
    import platform

    import torch

    return {"processor": platform.processor(), "threads": torch.get_num_threads(), "torch": torch.__version__}
