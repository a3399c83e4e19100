"""Which batches are worth recording as CUDA graphs."""

#: Operations a layer. Launching a layer of both passes takes a host some 6 ms; a large GPU needs as long for
#: these.
_FLOPS = 3e12


def worth_recording(flops: int, layers: int, kinds: int) -> bool:
    """Whether a batch is to be recorded, on a GPU and with a model that allow it.

    The memory that a recording works in is lost to every other kind of batch. So beside others only those are
    recorded that wait for the launches of their kernels: a batch that computes for longer is launched as fast
    as it runs, and would hold the most.

    Args:
        flops: that the batch needs (`step_flops`); 0: not known.
        layers: of the model.
        kinds: of batches in the stage.
    """
    return kinds == 1 or flops < _FLOPS * layers
