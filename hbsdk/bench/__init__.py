"""Measures time and memory: cases take turns in processes of their own; one JSON a question."""
