"""Times of candidates on a GPU, in turns, as replays of CUDA graphs; and their memory."""

from __future__ import annotations

import torch

from benchmarks.record import in_turns, quantiles

WINDOW_MS = 60


def recorded(run):
    """``run`` as a replay of a CUDA graph."""
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        run()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def replayed(candidates, rounds):
    """As ``interleaved``, of recordings."""
    return interleaved({name: recorded(run) for name, run in candidates.items()}, rounds)


def interleaved(candidates, rounds):
    """Milliseconds {p20, p50, p80} of each candidate, taken in turns, so many calls on end as fill a window.

    A long window, because the clock that a GPU near its power limit runs at is first that of what ran before.
    """
    calls = {name: max(1, round(WINDOW_MS / timed(run, 1))) for name, run in candidates.items()}
    times = {name: [] for name in candidates}
    for name in in_turns(candidates, rounds):
        times[name].append(timed(candidates[name], calls[name]))
    return {name: quantiles(t) for name, t in times.items()}


def timed(run, calls):
    """Milliseconds a call."""
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    run()  # the device is busy while the timed calls queue
    start.record()
    for _ in range(calls):
        run()
    stop.record()
    stop.synchronize()
    return start.elapsed_time(stop) / calls


def peak_gib(run):
    run()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run()
    return round((torch.cuda.max_memory_allocated() - before) / 2**30, 3)


def gemm_rate():
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    ms = interleaved({"gemm": lambda: a @ b}, 10)["gemm"]["p50"]
    return round(2 * 8192**3 / ms / 1e9, 1)
