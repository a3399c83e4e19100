"""Measurements: `python -m benchmarks NAME --out FILE.json`."""
