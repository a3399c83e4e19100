"""Objectives: relation loss streamed over layers, logit KL, language-model loss."""

from linearard.distill.config import RELATIONS, ObjectiveConfig
from linearard.distill.counts import needs_shares, step_shares
from linearard.distill.module import RestorationModule
from linearard.distill.profile import RelationProfile, attention_maps, relation_profile

__all__ = [
    "RELATIONS",
    "ObjectiveConfig",
    "RelationProfile",
    "RestorationModule",
    "attention_maps",
    "needs_shares",
    "relation_profile",
    "step_shares",
]
