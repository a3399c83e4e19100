"""Train, evaluate and report: one recipe from its text to its report."""

from linearard.pipeline.run import check_evaluation, measure, say, train_and_report

__all__ = ["check_evaluation", "measure", "say", "train_and_report"]
