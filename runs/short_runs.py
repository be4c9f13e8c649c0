"""Short runs: AP after 1, 2, 5 and 15 minutes of fine-tuning the default detector, on three datasets.

    python runs/short_runs.py train bccd=BCCD scenes=SCENES hard=HARD --folder WORK --results RESULTS --label after
    python runs/short_runs.py show RESULTS

SCENES and HARD are `opendetr data make SCENES --train 160 --val 40 --seed 5` and `opendetr data make HARD --hard
--train 400 --val 100 --seed 6`; BCCD is trained on "trainval" and evaluated on "test". Every figure is a run of its own
by `opendetr train DATA --time LENGTH` with one thread and the checkpoint that the run deploys, evaluated on all images.
A result that exists is not repeated. `show` prints the mean of the seeds, and AP of each. To compare two versions, run
each with its own label at the same time on the same machine; a run is as long as the clock says, so another load would
favour one of them.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any

LENGTHS = ("1m", "2m", "5m", "15m")
SPLITS = {"bccd": ("--train-split", "trainval", "--val-split", "test")}


def train(data: dict[str, Path], folder: Path, results: Path, label: str, lengths: list[str], seeds: list[int]) -> None:
    """Make the runs that have no result yet, the short ones first."""
    results.mkdir(parents=True, exist_ok=True)
    for seed, length, (name, source) in product(seeds, lengths, data.items()):
        path = results / f"{label}-{name}-{length}-{seed}.json"
        if not path.exists():
            path.write_text(json.dumps(_run(source, name, folder / path.stem, length, seed)) + "\n", encoding="utf-8")
            print(path.stem, path.read_text(encoding="utf-8").strip(), flush=True)


def _run(source: Path, name: str, out: Path, length: str, seed: int) -> dict[str, Any]:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    split = SPLITS.get(name, ())
    command = [sys.executable, "-m", "opendetr"]
    began = time.perf_counter()
    training = [*command, "train", str(source), "--time", length, "--out", str(out), "--workers", "1", *split]
    training += ["--seed", str(seed)]
    subprocess.run(training, check=True, env=environment, capture_output=True)
    seconds = time.perf_counter() - began
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    evaluations = [row for row in rows if row["kind"] == "evaluation"]
    evaluate = [*command, "eval", str(source), "--weights", str(out), "--json"]
    if split:
        evaluate += ["--split", split[-1]]
    report = json.loads(subprocess.run(evaluate, check=True, env=environment, capture_output=True, text=True).stdout)
    return {
        "steps": sum(row["kind"] == "step" for row in rows),
        "seconds": round(seconds, 1),
        "evaluating": round(sum(row["seconds"] for row in evaluations), 1),
        "start": evaluations[0]["metrics"]["AP"] if evaluations[0]["step"] == 0 else None,
        "last": evaluations[-1]["metrics"]["AP"],
        "AP": report["metrics"]["AP"],
    }


def show(results: Path) -> None:
    """Print the table as Markdown."""
    rows = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(results.glob("*.json"))}
    heads = ("data", "time", "version", "steps", "seconds", "evaluating", "AP last", "AP deployed")
    print("| " + " | ".join(heads) + " |\n" + "|---" * len(heads) + "|")
    labels, names, _, _ = (sorted(set(parts)) for parts in zip(*(stem.split("-") for stem in rows), strict=True))
    for name, length, label in product(names, LENGTHS, reversed(labels)):
        found = [row for stem, row in rows.items() if stem.startswith(f"{label}-{name}-{length}-")]
        if found:
            steps, seconds, evaluating, last, ap = (
                fmean(row[key] for row in found) for key in ("steps", "seconds", "evaluating", "last", "AP")
            )
            each = ", ".join(f"{row['AP']:.3f}" for row in found)
            of_each = f" ({each})" if len(found) > 1 else ""
            cells = [name, length, label, f"{steps:.0f}", f"{seconds:.0f}", f"{evaluating:.0f}"]
            print("| " + " | ".join([*cells, f"{last:.3f}", f"{ap:.3f}{of_each}"]) + " |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    training = commands.add_parser("train")
    training.add_argument("data", nargs="+", metavar="NAME=FOLDER")
    training.add_argument("--folder", type=Path, required=True)
    training.add_argument("--results", type=Path, required=True)
    training.add_argument("--label", default="now")
    training.add_argument("--lengths", nargs="+", default=list(LENGTHS))
    training.add_argument("--seeds", nargs="+", type=int, default=[0])
    showing = commands.add_parser("show")
    showing.add_argument("results", type=Path)
    chosen = parser.parse_args()
    if chosen.command == "show":
        show(chosen.results)
    else:
        named = dict(each.split("=", 1) for each in chosen.data)
        sources = {name: Path(folder) for name, folder in named.items()}
        train(sources, chosen.folder, chosen.results, chosen.label, chosen.lengths, chosen.seeds)
