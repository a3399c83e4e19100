"""Perplexity, agreement with the original, retrieval, task files, and the report."""

from linearard.evaluation.compare import EvaluationInputs, evaluate, prepare_inputs
from linearard.evaluation.config import EvaluationConfig
from linearard.evaluation.report import render_report, write_report
from linearard.evaluation.summary import Row, summarise
from linearard.evaluation.table import comparison_table

__all__ = [
    "EvaluationConfig",
    "EvaluationInputs",
    "Row",
    "comparison_table",
    "evaluate",
    "prepare_inputs",
    "render_report",
    "summarise",
    "write_report",
]
