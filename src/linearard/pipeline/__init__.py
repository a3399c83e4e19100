"""Train, evaluate and report: one recipe from its text to its report."""

from linearard.pipeline.results import check_results_folder, claim_results_folder
from linearard.pipeline.run import Outcome, check_evaluation, measure, say, train_and_report

__all__ = [
    "Outcome",
    "check_evaluation",
    "check_results_folder",
    "claim_results_folder",
    "measure",
    "say",
    "train_and_report",
]
