"""data.* of params.yaml: what fits which source, and paths that stay inside data/."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.config import load_params
from pipeline.errors import ConfigError
from pipeline.sources.formats.layout import find_files


def write(folder: Path, **data: Any) -> Path:
    path = folder / "params.yaml"
    path.write_text(yaml.safe_dump({"data": data}))
    return path


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"source": "okvqa"}, "data.source"),
        ({"annotations": {"test": "x.csv"}}, "data.annotations is for published sources"),
        ({"knowledge_base": "kb.json"}, "data.knowledge_base is for published sources"),
        ({"faiss_index": "faiss"}, "data.faiss_index is for published sources"),
        ({"source": "infoseek", "faiss_index": "faiss"}, "needs a knowledge base in EchoSight's form"),
        ({"source": "evqa", "annotations": {"dev": "x.csv"}}, "data.annotations.dev"),
        ({"source": "evqa", "annotations": {"test": "../x.csv"}}, "inside data/"),
        ({"source": "evqa", "knowledge_base": "/kb.json"}, "inside data/"),
        ({"source": "evqa", "images_dir": "a\\b"}, "inside data/"),
        ({"source": "evqa", "images_dir": ""}, "data.images_dir"),
        ({"source": "evqa", "max_missing_image_rate": 1.5}, "data.max_missing_image_rate"),
        ({"source": "evqa", "max_text_chars": 0}, "data.max_text_chars"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path: Path, data: dict[str, Any], message: str):
    with pytest.raises(ConfigError) as caught:
        load_params(write(tmp_path, **data))
    assert message in str(caught.value)


def test_files_are_those_that_the_parameters_name(tmp_path: Path):
    for name in ("mine.csv", "kb.json"):
        (tmp_path / name).touch()
    path = write(tmp_path, source="evqa", annotations={"test": "mine.csv"}, knowledge_base="kb.json", images_dir="pics")
    files = find_files(load_params(path).data, tmp_path)
    assert (files.annotations, files.knowledge_base) == ({"test": tmp_path / "mine.csv"}, tmp_path / "kb.json")
    assert files.images_dir == "pics"
