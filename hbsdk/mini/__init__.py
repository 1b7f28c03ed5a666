"""The embedded bundle: a procedural cartoon world, and how its networks were trained on it."""
