"""Candidate kernels: measured beside the product's, and part of it only once they win."""
