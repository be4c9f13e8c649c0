"""Losses: matching, class terms, and the loss terms of a task."""

from opendetr.losses.class_terms import (
    ClassTerm,
    SigmoidFocalClassification,
    SoftmaxClassification,
    SoftTokenClassification,
    of_matches,
)
from opendetr.losses.criterion import CriterionConfig, ProposalLoss, SetCriterion
from opendetr.losses.dense import DenseConfig, DenseSupervision, GroundingSupervision
from opendetr.losses.grounding import (
    AlignmentLoss,
    AnswerLoss,
    FinalLoss,
    GroundingLossConfig,
    GroundingNormaliser,
    PairLoss,
)
from opendetr.losses.masks import MaskCriterionConfig, MaskLoss
from opendetr.losses.matcher import MatcherConfig, match
from opendetr.losses.reconstruction import FeatureReconstruction, ReconstructionConfig
from opendetr.losses.term import LossTerm, Normaliser
from opendetr.losses.tracks import ANONYMOUS, TrackCriterion, inherited

__all__ = [
    "ANONYMOUS",
    "AlignmentLoss",
    "AnswerLoss",
    "ClassTerm",
    "CriterionConfig",
    "DenseConfig",
    "DenseSupervision",
    "FeatureReconstruction",
    "FinalLoss",
    "GroundingLossConfig",
    "GroundingNormaliser",
    "GroundingSupervision",
    "LossTerm",
    "MaskCriterionConfig",
    "MaskLoss",
    "MatcherConfig",
    "Normaliser",
    "PairLoss",
    "ProposalLoss",
    "ReconstructionConfig",
    "SetCriterion",
    "SigmoidFocalClassification",
    "SoftTokenClassification",
    "SoftmaxClassification",
    "TrackCriterion",
    "inherited",
    "match",
    "of_matches",
]
