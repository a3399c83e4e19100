"""Candidate kernels, measured beside the product's."""


def main(arguments: list[str]) -> None:
    from benchmarks.designs.triton import measure

    measure.main(arguments)
