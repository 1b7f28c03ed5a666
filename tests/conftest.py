"""What all tests share: no network, and one tiny random bundle."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # read by huggingface_hub when it is imported

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a complete bundle of random weights, shared: copy before changing."""
    from tests.tiny_bundle import write_tiny_bundle

    return write_tiny_bundle(tmp_path_factory.mktemp("bundle") / "tiny")
