"""What a run needs, before it is started: operations, memory, time, and what to change so that it fits."""

from linearard.planning.flops import step_flops

__all__ = ["step_flops"]
