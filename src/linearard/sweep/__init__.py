"""Sweeps: many arms over one loaded model, each with its evaluation."""

from linearard.sweep.plan import Job, Sweep, SweepFile, load_sweep
from linearard.sweep.results import Results, failures, read_results, table
from linearard.sweep.run import run_sweep, write_results

__all__ = [
    "Job",
    "Results",
    "Sweep",
    "SweepFile",
    "failures",
    "load_sweep",
    "read_results",
    "run_sweep",
    "table",
    "write_results",
]
