"""What a later stage, DVC or MLflow would refuse is refused with the parameters, in one line that names them."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from dvc.utils.serialize import parse_yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.config import Params, RegisterParams, load_params, load_params_for_dvc
from pipeline.errors import ConfigError
from pipeline.yaml_file import read_mapping

SHIPPED = Path(__file__).parents[3] / "params.yaml"


def _refuse(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_params(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        ("register", {"model_name": "team/region-r1"}, "register.model_name"),
        ("register", {"model_name": "a:b"}, "MLflow refuses"),
        ("register", {"model_name": "it's"}, "register.model_name"),
        ("register", {"model_name": "a@b"}, "register.model_name"),
        ("register", {"model_name": ".."}, "register.model_name"),
        ("register", {"model_name": " "}, "register.model_name"),
        ("register", {"model_name": ""}, "register.model_name"),
        ("register", {"model_name": "n\n"}, "register.model_name"),
        ("register", {"model_name": "x" * 257}, "register.model_name"),
        ("policy", {"path": "artifacts/policy"}, "policy.path: Value error, must not lie in artifacts/"),
        ("policy", {"path": "./artifacts/sft/"}, "must not lie in artifacts/"),
        ("policy", {"path": "."}, "a folder of its own"),
        ("policy", {"path": "../.."}, "a folder of its own"),
        ("policy", {"path": "/"}, "a folder of its own"),
        ("scorer", {"path": "s3://bucket/clip"}, "scorer.path: Value error, must be a folder on this machine"),
        ("scorer", {"path": "~/clip"}, "must be a folder on this machine"),
        ("scorer", {"path": "a\0b"}, "control characters"),
        ("evaluate", {"transfer_scorer": "artifacts/index"}, "evaluate.transfer_scorer"),
        ("train", {"learning_rate": float("inf")}, "train.learning_rate"),
        ("reward", {"weight_mrr": float("nan")}, "reward.weight_mrr"),
        ("search", {"stride": 1e-6}, "boxes of each picture"),
        ("search", {"scales": [0.0001]}, "boxes of each picture"),
        ("ablation", {"seeds": [7, -1]}, "ablation.seeds.1"),
        ("data", {"source": "evqa", "annotations": {"train": "a.csv", "test": "a.csv"}}, "one file for several splits"),
        ("policy", {"dtype": "bfloat16"}, "policy.dtype is bfloat16, but without policy.lora"),
        ("policy", {"attention": "flash_attention_2"}, "weights in bfloat16"),
        ("policy", {"attention": "flash_attention_2", "device": "cpu", "lora": {}}, "needs a GPU"),
        ("policy", {"engine": "vllm", "device": "cpu"}, "policy.device is cpu"),
    ],
)
def test_what_would_fail_late_is_refused_with_its_name(
    section: str, values: dict[str, Any], message: str, tmp_path: Path
) -> None:
    assert message in _refuse(tmp_path / "params.yaml", yaml.safe_dump({section: values}))


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_that_numpy_refuses_is_refused(seed: int, tmp_path: Path) -> None:
    assert "seed: " in _refuse(tmp_path / "params.yaml", f"seed: {seed}\n")


@pytest.mark.parametrize("seed", [0, 2**32 - 1])
def test_the_seeds_at_the_ends_of_the_range_can_be_set(seed: int) -> None:
    from pipeline.training.seeding import seed_everything

    seed_everything(Params(seed=seed).seed)


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.text(max_size=12))
def test_no_name_passes_that_mlflow_refuses(name: str) -> None:
    from mlflow.store.artifact.utils.models import _parse_model_uri
    from mlflow.utils.validation import _validate_model_name

    try:
        RegisterParams(model_name=name)
    except ValueError:
        return
    _validate_model_name(name)
    assert _parse_model_uri(f"models:/{name}@champion").name == name


@pytest.mark.parametrize("name", ["region-r1", "Modèle 2.1", "a", "team.region_r1"])
def test_ordinary_model_names_pass(name: str) -> None:
    assert RegisterParams(model_name=name).model_name == name


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed: 1\nthreads: 1\nseed: 2\n", "line 3: `seed` stands there again, first in line 1"),
        ('train:\n  beta: 1\n  "beta": 2\n', "line 3: `beta`"),
        ("train: {beta: 1, max_steps: 3, beta: 2}\n", "line 1: `beta`"),
        ("train: {beta: 1}\ntrain: {beta: 2}\n", "line 2: `train`"),
        ("seed: 2026-13-45\n", "is no YAML"),
        (f"seed: {'9' * 5000}\n", "is no YAML"),
        ("a: " * 2 + "1\n", "is no YAML"),
        ("[" * 5000, "is no YAML"),
        ("- seed\n", "must be a mapping"),
        ("", "must be a mapping"),
        ("1: 2\n", "1: "),
    ],
)
def test_files_that_are_not_what_they_seem_are_refused(text: str, message: str, tmp_path: Path) -> None:
    assert message in _refuse(tmp_path / "params.yaml", text)


def test_anchors_and_merges_may_override(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(
        "search:\n  stride: 0.25\npolicy: &p\n  size: &s\n    parameters: 1\n    source: a\n"
        "scorer:\n  size:\n    <<: *s\n    parameters: 2\n"
    )
    params = load_params(path)
    assert params.scorer.size is not None
    assert (params.scorer.size.parameters, params.scorer.size.source) == (2, "a")


def test_on_and_off_are_words_as_dvc_reads_them(tmp_path: Path) -> None:
    """YAML 1.1 would take them for truth values, as names too; DVC reads YAML 1.2."""
    path = tmp_path / "params.yaml"
    path.write_text("reward:\n  on: search\nretrieve: {search_again: off}\ntrain: {factorised: True}\n")
    params = load_params(path)
    assert (params.reward.on, params.retrieve.search_again, params.train.factorised) == ("search", "off", True)
    assert read_mapping(path) == parse_yaml(path.read_text(), path)
    path.write_text(yaml.safe_dump(params.model_dump(mode="json", by_alias=True)))
    assert load_params(path) == params


@given(st.dictionaries(st.text("onfyestrula", min_size=1, max_size=5), st.text("onfyestrulaOFNY", max_size=5)))
def test_every_word_is_read_as_dvc_reads_it(words: dict[str, str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "params.yaml"
        path.write_text("".join(f"{name}: {word}\n" for name, word in words.items()) or "{}\n")
        assert read_mapping(path) == parse_yaml(path.read_text(), path)


def test_what_dvc_reads_must_be_written_out(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    raw = yaml.safe_load(SHIPPED.read_text(encoding="utf-8"))
    for section in ("batches", "demo", "flow"):
        del raw[section]
    path.write_text(yaml.safe_dump(raw))
    load_params_for_dvc(path)
    del raw["reward"], raw["evaluate"]["transfer_scorer"]
    path.write_text(yaml.safe_dump(raw))
    with pytest.raises(ConfigError, match=r"write out: reward, evaluate\.transfer_scorer$"):
        load_params_for_dvc(path)
    load_params(path)  # for us the defaults do
