"""Losses: matching, class terms, and the loss terms of a task."""

from opendetr.losses.class_terms import ClassTerm, SigmoidFocalClassification, SoftmaxClassification, of_matches
from opendetr.losses.criterion import CriterionConfig, ProposalLoss, SetCriterion
from opendetr.losses.dense import DenseConfig, DenseSupervision
from opendetr.losses.masks import MaskCriterionConfig, MaskLoss
from opendetr.losses.matcher import MatcherConfig, match
from opendetr.losses.reconstruction import FeatureReconstruction, ReconstructionConfig
from opendetr.losses.term import LossTerm, Normaliser

__all__ = [
    "ClassTerm",
    "CriterionConfig",
    "DenseConfig",
    "DenseSupervision",
    "FeatureReconstruction",
    "LossTerm",
    "MaskCriterionConfig",
    "MaskLoss",
    "MatcherConfig",
    "Normaliser",
    "ProposalLoss",
    "ReconstructionConfig",
    "SetCriterion",
    "SigmoidFocalClassification",
    "SoftmaxClassification",
    "match",
    "of_matches",
]
