"""The weights of TransTrack: the names in the authors' files, and the published file."""

from __future__ import annotations

from dataclasses import replace

from opendetr.weights import deformable
from opendetr.weights.family import NO_FORMAT
from opendetr.weights.name_maps import Rows, below
from opendetr.weights.published import PublishedWeights

OFFICIAL: Rows = (
    *deformable.OFFICIAL,
    *below("transformer.decoder_track.layers.{n}.", "track_decoder.layers.{n}.", deformable.DECODER_LAYER),
    ("combine.", "combine."),
)

FAMILY = replace(
    deformable.FAMILY,
    name="transtrack",
    official=OFFICIAL,
    huggingface=None,
    no_huggingface=NO_FORMAT,
    published={
        "transtrack-r50": PublishedWeights(
            file="671mot17_crowdhuman_mot17.pth",
            place="https://drive.google.com/drive/folders/1DjPL8xWoXDASrxgsA3O06EspJRdUXFQ-",
            licence="MIT",
            figures={"MOTA on half of MOT17": 0.671},
        )
    },
)
