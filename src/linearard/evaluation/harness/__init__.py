"""Tasks of lm-eval (an optional extra) over the views of one model: the same weights, loaded once."""

from linearard.evaluation.harness.results import harness_results
from linearard.evaluation.harness.run import HarnessScore, ask
from linearard.evaluation.harness.tasks import HarnessTasks, harness_tasks, ruler_tasks

__all__ = ["HarnessScore", "HarnessTasks", "ask", "harness_results", "harness_tasks", "ruler_tasks"]
