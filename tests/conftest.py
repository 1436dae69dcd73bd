from __future__ import annotations

from pathlib import Path

import pytest

from tests.tiny_models import build_tiny_clip


@pytest.fixture(scope="session")
def tiny_clip_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random tiny CLIP with its processor."""
    return build_tiny_clip(tmp_path_factory.mktemp("tiny_clip"))
