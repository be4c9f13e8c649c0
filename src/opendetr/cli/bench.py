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
        list[str] | None, typer.Argument(help="The benchmarks to run, by default all. --list shows their names.")
    ] = None,
    repeats: Annotated[int, typer.Option(help="How often to run both implementations, alternately.", min=1)] = 5,
    list_all: Annotated[bool, typer.Option("--list", help="List the benchmarks, and measure nothing.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Compare the speed and memory of OpenDETR with those of other implementations, on this machine.

    Each result is in seconds or MiB. The factor is the result of the other implementation divided by that of OpenDETR;
    for seconds, it is the median over all repeats. A comparison with Hugging Face Transformers requires that package.
    OMP_NUM_THREADS sets the number of threads.

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
        descriptions = {name: (load_benchmark(name).__doc__ or "").partition("\n")[0] for name in BENCHMARKS}
        print_json({"benchmarks": descriptions}) if as_json else print(
            table([("name", "measures"), *descriptions.items()])
        )
        return
    rows: list[dict[str, Any]] = []
    for name in names or BENCHMARKS:
        say(f"{name} ...")
        rows += [{"benchmark": name, **asdict(figure)} for figure in _measure(name, repeats)]
    if as_json:
        print_json({"machine": _machine(), "repeats": repeats, "figures": rows})
        return
    header = ("benchmark", "quantity", "opendetr", "compared with", "its result", "factor", "required factor")
    lines = [
        (row["benchmark"], row["what"], _format_result(row["ours"], row["unit"]), row["peer"],
         _format_result(row["theirs"], row["unit"]), f"{row['factor']:.2f}", f"at least {row['expected']:.2f}")
        for row in rows
    ]  # fmt: skip
    print(table([header, *lines]))


def _measure(name: str, repeats: int) -> Iterator[Figure]:
    from opendetr.bench import load_benchmark
    from opendetr.config import MissingPackageError

    try:
        yield from load_benchmark(name).measure(repeats)
    except ModuleNotFoundError as error:
        raise MissingPackageError(f"bench {name}", str(error.name)) from None


def _format_result(value: float, unit: str) -> str:
    return f"{value:.3g} {unit}" if value < 100 else f"{value:,.0f} {unit}"


def _machine() -> dict[str, Any]:
    import platform

    import torch

    return {"processor": platform.processor(), "threads": torch.get_num_threads(), "torch": torch.__version__}
