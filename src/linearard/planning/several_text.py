"""Plans of several GPUs as text for the terminal."""

from __future__ import annotations

from linearard.planning.several import SeveralPlan


def several_text(plans: list[SeveralPlan], limit: float | None) -> str:
    """A table of what each GPU needs, by how the work is shared.

    Args:
        plans: of one run.
        limit: bytes of a GPU, or None: not known.
    """
    from tabulate import tabulate

    layout = plans[0].layout
    nodes = f" on {layout.nodes} nodes" if layout.nodes > 1 else ""
    rows = []
    for plan in plans:
        fits = "" if limit is None else "yes" if plan.memory <= limit else "no"
        for step in plan.steps:
            seconds = ["", ""]
            if step.computing is not None:
                seconds = [f"{step.computing:.3g}", f"{step.communicating:.3g}"]
            memory, sent = f"{step.memory / 2**30:.1f}", f"{step.sent / 1e9:.3g}"
            rows.append([str(plan.layout), step.stage, memory, fits, sent, *seconds])
    headers = [
        "sharing",
        "stage",
        "GiB a GPU",
        "fits",
        "GB sent a step",
        "computing, s",
        "sending, s",
    ]
    note = (
        "Sending counts as if nothing were computed meanwhile; bandwidths are assumed: 360 GB/s within a "
        "node, 40 GB/s between nodes, a GPU."
    )
    table = tabulate(rows, headers, disable_numparse=True)
    return f"each of {layout.gpus} GPUs{nodes}:\n{table}\n{note}"
