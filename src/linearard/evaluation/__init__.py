"""Perplexity, agreement with the original, retrieval, task files, and the report."""

from linearard.evaluation.compare import check_inputs, evaluate
from linearard.evaluation.config import EvaluationConfig
from linearard.evaluation.report import render_report, write_report
from linearard.evaluation.summary import Row, summarise
from linearard.evaluation.table import comparison_table

__all__ = [
    "EvaluationConfig",
    "Row",
    "check_inputs",
    "comparison_table",
    "evaluate",
    "render_report",
    "summarise",
    "write_report",
]
