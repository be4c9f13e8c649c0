"""TransTrack (Sun et al., "TransTrack: Multiple Object Tracking with Transformer", 2020).

A Deformable DETR with two decoders. One detects the objects of the current frame with learned queries. The other starts
from the boxes and the decoder output of the previous frame, and predicts where these objects are now. The encoder gets
the features of both frames. The boxes of the two decoders are matched by their overlap (see `BoxAssociation`).

Shape letters: B batch, Q queries, L decoder layers, D width, h w cells of a level.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from opendetr.models.deformable import (
    DeformableDETR,
    DeformableDETRConfig,
    DeformableTransformerConfig,
    LayerStack,
)
from opendetr.nn import weights_dtype
from opendetr.structures import FeatureMap, ImageBatch, Movable, Output, Predictions, Scoring, TrackingOutput


@dataclass(frozen=True, kw_only=True)
class TransTrackConfig(DeformableDETRConfig):
    """Configuration of a TransTrack. The defaults are those of the published R50 model.

    Attributes:
        refine: whether every layer of the object decoder starts from the boxes of the previous layer. The track decoder
            never does.
    """

    transformer: DeformableTransformerConfig = field(
        default_factory=lambda: DeformableTransformerConfig(swap_offsets=True)
    )
    num_queries: int = 500
    refine: bool = True

    def build(self, num_logits: int, scoring: Scoring) -> TransTrack:
        """The model, randomly initialised."""
        return TransTrack(self, num_logits, scoring)


@dataclass(frozen=True)
class TransTrackState(Movable):
    """What TransTrack needs of the previous frame.

    Attributes:
        features: backbone features of the previous frame, fine to coarse.
        content: (B, Q, D), output of the object decoder.
        boxes: (B, Q, 4), its boxes, cxcywh in 0..1 of the unpadded image.
    """

    features: tuple[FeatureMap, ...]
    content: Tensor
    boxes: Tensor


@dataclass(frozen=True)
class TransTrackOutput(TrackingOutput):
    """The output of TransTrack: `layers` of the object decoder, and `tracks` of the track decoder.

    Attributes:
        state: what the next frame needs. It does not depend on the tracks that a session finds.
    """

    state: TransTrackState = field(kw_only=True)


class TransTrack(DeformableDETR):
    """The TransTrack model; its arguments are those of `DeformableDETR`."""

    family = "transtrack"
    state_has_tracks = False
    added_parts = frozenset({"track_decoder", "combine"})

    def __init__(self, config: TransTrackConfig, num_logits: int, scoring: Scoring) -> None:
        super().__init__(config, num_logits, scoring)
        width = config.transformer.width
        self.track_decoder = LayerStack(
            self.decoder_layer(config.transformer) for _ in range(config.transformer.decoder_layers)
        )
        self.combine = nn.Conv2d(2 * width, width, kernel_size=1)

    def project_features(
        self,
        features: tuple[FeatureMap, ...],
        padding: Tensor | None = None,
        previous: tuple[FeatureMap, ...] | None = None,
    ) -> tuple[FeatureMap, ...]:
        """Project the features of two frames, and combine them level by level.

        Args:
            features: backbone features of the current frame.
            padding: as in `Detector.project_features`.
            previous: backbone features of the previous frame. By default those of the current one.

        Raises:
            ValueError: the frames differ in size.
        """
        current = super().project_features(features, padding)
        before = current if previous is None else super().project_features(previous, padding)
        sizes = [tuple(level.values.shape[-2:]) for level in (current[0], before[0])]
        if sizes[0] != sizes[1]:
            raise ValueError("TransTrack: a frame differs in size from the one before; resize the frames to one size")
        return tuple(
            FeatureMap(self.combine(torch.cat((level.values, earlier.values), 1)), level.padding)
            for level, earlier in zip(current, before, strict=True)
        )

    def decode(
        self,
        memory: tuple[FeatureMap, ...],
        features: tuple[FeatureMap, ...] = (),
        *,
        position: Tensor | None = None,
        content: Tensor | None = None,
        reference: Tensor | None = None,
        state: TransTrackState | None = None,
    ) -> TransTrackOutput:
        """Memory -> predictions of both decoders.

        Args:
            memory, features: as in `DeformableDETR`.
            position, content, reference: as in `DeformableDETR`, for the object decoder. By default the learned
                position only gives the reference points, and the decoder gets zeros.
            state: the state after the previous frame. Without it, `tracks` are the predictions of the object decoder.
        """
        learned = self.queries.weight[:, : self.queries.weight.shape[1] // 2]
        if reference is None:
            reference = self.reference_of(learned if position is None else position)
        position = torch.zeros_like(learned) if position is None else position
        output = super().decode(memory, features, position=position, content=content, reference=reference)
        tracks = output.layers if state is None else self.decode_tracks(memory, state).layers
        return self._with_state(output, features, tracks)

    def decode_tracks(
        self, memory: tuple[FeatureMap, ...], state: TransTrackState, features: tuple[FeatureMap, ...] = ()
    ) -> TransTrackOutput:
        """Memory -> predictions of the track decoder alone, as `layers`."""
        content = state.content.to(weights_dtype(self.track_decoder))
        layers, queries = self.decode_queries(
            memory, torch.zeros_like(content), content, state.boxes, decoder=self.track_decoder, refine=False
        )
        return self._with_state(Output(layers, queries, features, memory), features, layers)

    def _with_state(
        self, output: Output, features: tuple[FeatureMap, ...], tracks: tuple[Predictions, ...]
    ) -> TransTrackOutput:
        num_used = min(len(self.projections), 3)
        state = TransTrackState(features[-num_used:], output.queries[-1], output.final.boxes)
        ids = torch.full(output.final.boxes.shape[:2], -1, device=output.final.boxes.device)
        return TransTrackOutput(
            output.layers, output.queries, features, output.memory, state=state, track_ids=ids, tracks=tracks
        )

    def completed(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """As `Detector.completed`. The track decoder is a copy of the decoder, and the previous frame has no weight."""
        whole, width = super().completed(state), len(self.combine.weight)
        whole |= {f"track_{name}": value for name, value in state.items() if name.startswith("decoder.")}
        whole["combine.weight"] = torch.eye(width, 2 * width)[..., None, None]
        whole["combine.bias"] = torch.zeros(width)
        return whole

    def update(self, output: TrackingOutput, ids: Tensor) -> Movable:
        """The state for the next frame. It does not depend on `ids`, the tracks (B, Q) of the queries."""
        return output.state

    def forward(self, images: ImageBatch, state: TransTrackState | None = None) -> TransTrackOutput:
        """Frames of B videos -> predictions of both decoders.

        Args:
            images: the current frame of each video.
            state: `state` of the output for the previous frames; None for first frames.
        """
        memory, features = self.encode_frames(images, state)
        return self.decode(memory, features, state=state)

    def detect(self, images: ImageBatch, previous: tuple[FeatureMap, ...] | None = None) -> TransTrackOutput:
        """The predictions of the object decoder alone, for frames and the backbone features of the previous ones."""
        return self.decode(*self._encode_frames(images, previous))

    def follow(self, images: ImageBatch, state: TransTrackState) -> TransTrackOutput:
        """The predictions of the track decoder alone, as `layers`."""
        memory, features = self._encode_frames(images, state.features)
        return self.decode_tracks(memory, state, features)

    def encode_frames(
        self, images: ImageBatch, state: TransTrackState | None = None
    ) -> tuple[tuple[FeatureMap, ...], tuple[FeatureMap, ...]]:
        """The memory and the backbone features of the current frames; the arguments are those of `forward`."""
        return self._encode_frames(images, None if state is None else state.features)

    def _encode_frames(
        self, images: ImageBatch, previous: tuple[FeatureMap, ...] | None
    ) -> tuple[tuple[FeatureMap, ...], tuple[FeatureMap, ...]]:
        """The memory and the backbone features of the current frames."""
        features = self.backbone(images)
        return self.encode(self.project_features(features, images.padding, previous)), features
