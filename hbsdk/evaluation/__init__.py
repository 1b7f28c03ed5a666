"""Evaluation: subjects x prompts x seeds, metrics, methods to compare with, and the report."""
