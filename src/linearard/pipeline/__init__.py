"""Train, evaluate and report: one recipe from its text to its report."""

from linearard.pipeline.results import check_results_folder, claim_results_folder
from linearard.pipeline.run import Outcome, check_evaluation, measure, say, train_and_report
from linearard.pipeline.story import story_of, told

__all__ = [
    "Outcome",
    "check_evaluation",
    "check_results_folder",
    "claim_results_folder",
    "measure",
    "say",
    "story_of",
    "told",
    "train_and_report",
]
