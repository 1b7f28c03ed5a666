"""Turns a bundle into checked engines; runs from a checkout and is not installed."""
