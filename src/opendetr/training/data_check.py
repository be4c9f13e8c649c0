"""What a run finds out about its dataset before the first step, and the faults that stop it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

from opendetr.data import DataError, DetectionData, Effect, FaultCount, FaultKind, count_faults
from opendetr.data.tools import Demands, annotation_faults
from opendetr.presets import Preset

# `check_settings` reports them with the setting to change.
_REPORTED_ELSEWHERE = frozenset({FaultKind.TOO_MANY_OBJECTS, FaultKind.IN_TRAINING})


def check_annotations(preset: Preset, folder: Path, splits: Mapping[str, DetectionData]) -> list[str]:
    """Check the annotations of the splits "train" and "val" as `opendetr data check` does.

    Returns lines about what was found, except what the summaries of the splits contain.

    Raises:
        DataError: the annotations probably do not mean what is read, and `data.allow` does not contain the fault.
    """
    used = {role: splits[role] for role in ("train", "val")}
    demands = Demands.of(preset.data, preset.model.num_queries)
    counts = count_faults(dict.fromkeys(annotation_faults(folder, used, demands)))
    allowed = preset.data.allow
    misread = [entry for entry in counts if entry.kind.effect is Effect.MISREADS]
    stopping = [entry for entry in misread if entry.kind not in allowed]
    if stopping:
        raise DataError(_stopped(stopping))
    lines = [f"warning: {_described(entry)}; allowed" for entry in misread]
    known = {entry.kind for data in used.values() for entry in data.fault_counts}
    found = [entry for entry in counts if entry.kind not in known | _REPORTED_ELSEWHERE and entry not in misread]
    if found:
        texts = ", ".join(entry.kind.describe(entry.count) for entry in found)
        lines.append(f"check: {texts}; `opendetr data check {folder}` lists them")
    return lines


def _described(entry: FaultCount) -> str:
    """The first fault of a kind with its place."""
    fault = entry.faults[0]
    return f"{fault.place}: {entry.kind.describe(entry.count)}{': ' if fault.detail else ''}{fault.detail}"


def _stopped(stopping: Collection[FaultCount]) -> str:
    """The message of the error: the first fault with its fix, and the kinds of all faults."""
    first, *others = stopping
    more = f"; also {', '.join(entry.kind.describe(entry.count) for entry in others)}" if others else ""
    allow = " ".join(f"--allow {entry.kind}" for entry in stopping)
    fix = f"; {first.kind.fix}" if first.kind.fix else ""
    return f"{_described(first)}{fix}, or train nevertheless with {allow}{more}"
