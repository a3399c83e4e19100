"""Perplexity, agreement with the original, retrieval, task files, and the report."""

from linearard.evaluation.compare import evaluate
from linearard.evaluation.config import EvaluationConfig
from linearard.evaluation.report import render_report, write_report
from linearard.evaluation.summary import Row, summarise
from linearard.evaluation.table import comparison_table
from linearard.model.causal_lm import ORIGINAL, RESTORED, STRETCHED, Views

__all__ = [
    "ORIGINAL",
    "RESTORED",
    "STRETCHED",
    "EvaluationConfig",
    "Row",
    "Views",
    "comparison_table",
    "evaluate",
    "render_report",
    "summarise",
    "write_report",
]
