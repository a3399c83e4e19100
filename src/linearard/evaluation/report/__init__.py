"""Evaluations as pages: one in full, or any number side by side."""

from linearard.evaluation.report.runs import render_runs, write_runs
from linearard.evaluation.report.single import render_report, write_report

__all__ = ["render_report", "render_runs", "write_report", "write_runs"]
