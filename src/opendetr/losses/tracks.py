"""Matching and losses of tracks: queries that keep their object from frame to frame (MOTR, section 3.3).

Shape letters: B images, R queries, n objects of an image, m matches.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from opendetr.losses.class_terms import of_matches
from opendetr.losses.criterion import SetCriterion
from opendetr.structures import Matches, Target

ANONYMOUS = -1  # track id of an object that is visible but not annotated as a track


class TrackCriterion(SetCriterion):
    """The set loss of a video frame. Anonymous objects have a class loss, but no box losses."""

    def boxed(self, targets: Sequence[Target], matches: Matches) -> Matches:
        """The matches with objects whose track is known; all if the targets have no track ids."""
        if any(target.track_ids is None for target in targets):
            return matches
        known = of_matches(targets, matches, "track_ids") != ANONYMOUS
        if known.all():
            return matches
        return Matches(matches.layer[known], matches.image[known], matches.query[known], matches.target[known])


def inherited(track_ids: Tensor, targets: Sequence[Target]) -> Matches:
    """The pairs of queries and objects with the same track.

    Args:
        track_ids: (B, R) int64, the track that each query follows, or -1.
        targets: B targets. Those without `track_ids` have no pairs.
    """
    images, queries, objects = [], [], []
    for index, target in enumerate(targets):
        if target.track_ids is not None and len(target):
            own = track_ids[index, :, None]
            query, item = ((own == target.track_ids.to(own)) & (own >= 0)).nonzero(as_tuple=True)
            images.append(torch.full_like(query, index))
            queries.append(query)
            objects.append(item)
    if not images:
        return Matches(*torch.empty((4, 0), dtype=torch.int64, device=track_ids.device))
    image = torch.cat(images)
    return Matches(torch.zeros_like(image), image, torch.cat(queries), torch.cat(objects))
