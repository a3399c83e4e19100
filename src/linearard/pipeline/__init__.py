"""Train, evaluate, report and export: one recipe from its text to a model for others."""

from linearard.pipeline.exporting import export_run
from linearard.pipeline.reports import report_runs
from linearard.pipeline.results import check_results_folder, claim_results_folder
from linearard.pipeline.run import Outcome, measure, say, train_and_report
from linearard.pipeline.story import story_of, told

__all__ = [
    "Outcome",
    "check_results_folder",
    "claim_results_folder",
    "export_run",
    "measure",
    "report_runs",
    "say",
    "story_of",
    "told",
    "train_and_report",
]
