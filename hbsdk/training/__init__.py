"""Training of the regressor, and of nothing else: data, loop, checkpoints, estimate."""
