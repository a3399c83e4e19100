"""Perplexity, agreement with the original, tasks, retrieval, repetition, and the report."""

from linearard.evaluation.compare import evaluate, prepare_inputs
from linearard.evaluation.config import EvaluationConfig
from linearard.evaluation.documents import held_out_documents
from linearard.evaluation.gates import check_gates, failed_gates, read_gates
from linearard.evaluation.inputs import EvaluationInputs
from linearard.evaluation.report import render_report, render_runs, write_report, write_runs
from linearard.evaluation.summary import Row, summarise
from linearard.evaluation.table import comparison_table
from linearard.evaluation.texts import TextWindows, read_texts

__all__ = [
    "EvaluationConfig",
    "EvaluationInputs",
    "Row",
    "TextWindows",
    "check_gates",
    "comparison_table",
    "evaluate",
    "failed_gates",
    "held_out_documents",
    "prepare_inputs",
    "read_gates",
    "read_texts",
    "render_report",
    "render_runs",
    "summarise",
    "write_report",
    "write_runs",
]
