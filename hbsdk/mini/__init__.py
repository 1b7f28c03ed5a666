"""A procedural cartoon world to train and test on: identities with exact ground truth."""
