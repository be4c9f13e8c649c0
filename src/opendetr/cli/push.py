"""`opendetr push`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from opendetr.cli.output import JsonOption, ModelOption, command, print_json


@command
def push(
    weights: Annotated[str, typer.Argument(help="A run folder, a file of weights, or a name of `opendetr models`.")],
    repository: Annotated[str, typer.Argument(help="owner/name on Hugging Face's hub; is made if missing.")],
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    model: ModelOption = None,
    as_json: JsonOption = False,
) -> None:
    """Upload a detector to Hugging Face's hub, from where --weights hf:owner/name loads it.

    You must be logged in (`hf auth login`), or HF_TOKEN must hold a token that may write.

    Examples:

        opendetr push runs/mine anna/blood-cells

        opendetr predict photo.jpg --weights hf:anna/blood-cells
    """
    from opendetr.export import push as upload
    from opendetr.inference import load
    from opendetr.network import OFFLINE, is_offline
    from opendetr.weights import WeightsError

    if is_offline():
        raise WeightsError(f"push: {OFFLINE} is set; push without --offline")
    detector = load(weights, model=model, device="cpu")
    address = upload(
        detector.model,
        detector.preset,
        detector.categories,
        repository,
        scores=_scores(Path(weights)),
        private=private,
    )
    if as_json:
        print_json({"repository": repository, "address": address, "model": detector.preset.name})
    else:
        print(f"{detector.preset.name}: {address}")


def _scores(folder: Path) -> dict[str, float]:
    """AP, AP50, mask_AP, PQ and the like of a run folder's best weights; none where there is no run."""
    from opendetr.evaluation import meaning
    from opendetr.training import find_checkpoint, load_checkpoint

    best = find_checkpoint(folder / "best")
    metrics = {} if best is None else load_checkpoint(best).facts["metrics"]
    return {name: value for name, value in metrics.items() if value is not None and meaning(name)}
