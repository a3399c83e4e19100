"""Run one benchmark by name: `python -m benchmarks relation_kl --out FILE.json`."""

import importlib
import sys

BENCHMARKS = (
    "attention",
    "gguf",
    "host_time",
    "kernel_plot",
    "launches",
    "planner",
    "planner_rates",
    "portable",
    "queue",
    "readers",
    "relation_kl",
    "restored",
    "ruler",
    "same_bits",
    "same_training",
    "scale",
    "scale_model",
    "soak",
    "soak_plot",
    "stage1",
    "text_memory",
    "training_step",
    "triton_variants",
    "width",
)


def main() -> None:
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name not in BENCHMARKS:
        sys.exit(f"usage: python -m benchmarks {{{','.join(BENCHMARKS)}}} --out FILE.json")
    importlib.import_module(f"benchmarks.{name}").main(sys.argv[2:])


if __name__ == "__main__":
    main()
