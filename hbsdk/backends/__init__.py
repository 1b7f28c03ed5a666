"""Runtimes that run a bundle's networks, one a file."""
