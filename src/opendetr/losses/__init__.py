"""Losses: matching, class terms, and the loss terms of a task."""

from opendetr.losses.class_terms import ClassTerm, SigmoidFocalClassification, SoftmaxClassification, of_matches
from opendetr.losses.criterion import CriterionConfig, ProposalLoss, SetCriterion
from opendetr.losses.dense import DenseConfig, DenseSupervision
from opendetr.losses.masks import MaskCriterionConfig, MaskLoss
from opendetr.losses.matcher import MatcherConfig, match
from opendetr.losses.term import LossTerm, Normaliser
from opendetr.losses.tracks import ANONYMOUS, TrackCriterion, inherited

__all__ = [
    "ANONYMOUS",
    "ClassTerm",
    "CriterionConfig",
    "DenseConfig",
    "DenseSupervision",
    "LossTerm",
    "MaskCriterionConfig",
    "MaskLoss",
    "MatcherConfig",
    "Normaliser",
    "ProposalLoss",
    "SetCriterion",
    "SigmoidFocalClassification",
    "SoftmaxClassification",
    "TrackCriterion",
    "inherited",
    "match",
    "of_matches",
]
