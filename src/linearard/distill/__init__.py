"""Objectives: relation loss streamed over layers, logit KL, language-model loss."""

from linearard.distill.config import RELATIONS, ObjectiveConfig
from linearard.distill.module import RestorationModule, relation_profile

__all__ = ["RELATIONS", "ObjectiveConfig", "RestorationModule", "relation_profile"]
