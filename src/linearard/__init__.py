"""Stretch a language model's context and restore its short-text ability."""
