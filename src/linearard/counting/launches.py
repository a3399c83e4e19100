"""Which batches are worth recording beside others."""

#: Operations a layer. Launching a layer, forward and backward, takes a host some 5 ms; a large GPU needs as
#: long for these.
_FLOPS = 2e12


def worth_recording(flops: int, layers: int) -> bool:
    """Whether a batch waits for the launches of its kernels, so that a recording of them saves time.

    The memory that a recording works in is lost to every other step: a batch that computes for long is
    launched as fast as it runs, and would only hold it.

    Args:
        flops: that the batch needs (`step_flops`); 0: not known.
        layers: of the model.
    """
    return flops < _FLOPS * layers
