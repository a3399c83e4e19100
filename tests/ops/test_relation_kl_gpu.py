"""The fused kernels on an NVIDIA GPU: 1,000 random calls in 40 compile classes, and some of its own.

The calls run in one process a core, up to 16, because compiling takes longer than running.
"""

import importlib.util
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor

import pytest
import torch
from gpu_jobs import (
    CALLS,
    CLASSES,
    HOPPER_CALLS,
    HOPPER_JOBS,
    ON_HOPPER,
    SINGLE_JOBS,
    hopper_calls,
    random_calls,
)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs triton"),
]
#: Classes run once more, a few calls each, without tensor descriptors.
POINTERS = [k.index for k in CLASSES if k.dtype != "float32" and k.head_dim in (64, 128)]


@pytest.fixture(scope="module")
def jobs():
    """All jobs, started together: name -> future."""
    workers = min(16, os.cpu_count() or 1)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        futures = {job.__name__: pool.submit(job) for job in SINGLE_JOBS}
        # the widest float32 kernels take longest to compile
        order = sorted(CLASSES, key=lambda k: (k.dtype != "float32", -k.head_dim))
        futures |= {k.index: pool.submit(random_calls, k.index) for k in order}
        futures |= {(i, "pointers"): pool.submit(random_calls, i, True) for i in POINTERS}
        if ON_HOPPER:
            futures |= {(i, "hopper"): pool.submit(hopper_calls, i) for i in range(HOPPER_JOBS)}
        yield futures
        pool.shutdown(cancel_futures=True)


@pytest.mark.parametrize("kind", CLASSES, ids=str)
def test_random_calls_within_twice_the_error_of_plain_pytorch(kind, jobs):
    assert jobs[kind.index].result() == CALLS // len(CLASSES)


@pytest.mark.skipif(not ON_HOPPER, reason="needs a Hopper GPU")
@pytest.mark.parametrize("index", range(HOPPER_JOBS))
def test_random_calls_of_the_hopper_kernels(index, jobs):
    assert jobs[index, "hopper"].result() == HOPPER_CALLS // HOPPER_JOBS


@pytest.mark.parametrize("index", POINTERS)
def test_random_calls_without_descriptors(index, jobs):
    assert jobs[index, "pointers"].result() > 0


@pytest.mark.parametrize("name", [job.__name__ for job in SINGLE_JOBS])
def test_on_a_gpu(name, jobs):
    jobs[name].result()
