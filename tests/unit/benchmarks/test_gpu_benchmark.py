"""Published shapes are those published; the benchmark of one GPU runs whole on a CPU. No test asserts a time."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from rich.console import Console
from transformers import CLIPModel, Qwen2_5_VLForConditionalGeneration

from benchmarks.gpu import run as gpu
from benchmarks.gpu.device import measure_on
from benchmarks.gpu.large_costs import measure_answers
from benchmarks.gpu.large_shapes import (
    PAPER,
    TINY,
    build_policy_config,
    build_policy_tokenizer,
    build_scorer_config,
)
from benchmarks.gpu.table import print_report
from pipeline.config import load_params
from pipeline.core.boxes import Frame
from pipeline.core.completion import format_decision
from pipeline.types import Box, Crop

pytestmark = pytest.mark.slow
CHECKOUT = Path(__file__).resolve().parents[3]
EFFORT = gpu.Effort(num_calls=1, num_steps=2, num_images=1, num_entities=24, num_train=24)


def test_policy_has_the_published_shape() -> None:
    tokenizer = build_policy_tokenizer(["What does the red moth stand for?"])
    with torch.device("meta"):
        model = Qwen2_5_VLForConditionalGeneration._from_config(build_policy_config(PAPER, tokenizer))
    for name in ("evqa", "infoseek"):
        stated = load_params(CHECKOUT / "params" / f"{name}-qwen2.5-vl-3b.yaml").policy.size
        assert stated is not None
        assert sum(weights.numel() for weights in model.parameters()) == stated.parameters == 3_754_622_976
        layers = model.model.language_model.layers
        assert (len(layers), layers[0].self_attn.q_proj.in_features) == (stated.num_layers, stated.hidden_size)
    assert len(model.model.visual.blocks) == 32
    assert model.model.visual.blocks[0].attn.qkv.in_features == 1280
    assert tuple(model.lm_head.weight.shape) == (151936, 2048)
    assert model.lm_head.weight is model.model.language_model.embed_tokens.weight
    assert all(weights.is_meta for weights in model.parameters())


def test_scorer_has_the_published_shape() -> None:
    with torch.device("meta"):
        model = CLIPModel._from_config(build_scorer_config(PAPER))
    assert sum(weights.numel() for weights in model.parameters()) == 427_616_513
    assert (len(model.vision_model.encoder.layers), len(model.text_model.encoder.layers)) == (24, 12)
    assert model.visual_projection.weight.shape == (768, 1024)


def test_a_decision_is_about_as_long_as_with_the_published_vocabulary() -> None:
    tokenizer = build_policy_tokenizer(["What does the red moth stand for?"])
    crop = format_decision(Crop(Box(0.1, 0.2, 0.7, 0.9)), Frame(616, 616))
    ids = tokenizer(crop)["input_ids"]
    assert tokenizer.decode(ids) == crop
    assert 30 <= len(ids) <= 50
    assert tokenizer.convert_ids_to_tokens([ids[0], ids[-1]]) == ["<tool_call>", "</tool_call>"]


def test_no_gpu_is_one_clear_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert gpu.main(["--out", str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "no CUDA device" in line
    assert "--device cpu" in line
    assert not list(tmp_path.iterdir())


def test_too_little_room_is_said_beforehand(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=2e9))
    assert gpu.main(["--device", "cpu", "--scratch", str(tmp_path)]) == 2
    assert "2.0 GB are free, the checkpoints need 10 GB" in capsys.readouterr().err


@pytest.fixture
def small_device(monkeypatch: pytest.MonkeyPatch) -> Iterator[torch.device]:
    """A CUDA device that holds 5 GB at its peak, as far as the counters say."""
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda _: None)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _: 5e9)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    return torch.device("cuda")


def _run_out() -> None:
    raise torch.cuda.OutOfMemoryError("CUDA out of memory")


def test_running_out_of_memory_is_a_result(small_device: torch.device) -> None:
    measured = measure_on(small_device, _run_out)
    assert (measured.result, measured.peak_gb) == (None, 5.0)
    assert measure_on(small_device, lambda: 3).result == 3
    assert measure_on(torch.device("cpu"), lambda: 3).peak_gb is None


def test_any_other_fault_is_none(small_device: torch.device) -> None:
    with pytest.raises(ZeroDivisionError):
        measure_on(small_device, lambda: 1 / 0)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return gpu.run(TINY, torch.device("cpu"), tmp_path_factory.mktemp("gpu"), "auto", EFFORT)


@pytest.mark.smoke
def test_a_small_run_gives_every_figure(report: dict[str, Any]) -> None:
    json.dumps(report)
    assert [(row["ending"], row["batch_size"]) for row in report["answers"]] == [
        (ending, size) for ending in ("action", "longest") for size in TINY.batch_sizes
    ]
    assert [row["ending"] for row in report["steps"]] == ["action", "longest"]
    for row in (*report["answers"], *report["steps"]):
        short = row["num_tokens"] < 50
        assert short == (row["ending"] == "action")
        assert short or row["num_tokens"] == TINY.max_new_tokens
    for row in (*report["answers"], *report["steps"], report["embedding"]):
        figures = {name: value for name, value in row.items() if name.endswith("_s") or name == "s_per_sample"}
        assert figures
        assert all(value > 0 for value in figures.values())
        assert row["peak_gb"] is None
    assert report["setting"]["policy_parameters"] > report["setting"]["scorer_parameters"] > 0


@pytest.mark.smoke
def test_tables_fit_80_columns_whatever_happened(report: dict[str, Any]) -> None:
    row = report["answers"][0]
    rows = [
        *report["answers"],
        row
        | {"batch_size": 128, "num_tokens": 256.0, "samples_per_s": 123.4, "s_per_sample": 0.00812, "peak_gb": 79.9},
        row | {"batch_size": 128, "num_tokens": None, "samples_per_s": None, "s_per_sample": None, "peak_gb": 79.9},
    ]
    out_of_memory = dict.fromkeys(("num_tokens", "generation_s", "reward_s", "update_s"))
    steps = [*report["steps"], report["steps"][0] | out_of_memory]
    console = Console(record=True, width=80)
    print_report(report | {"answers": rows, "steps": steps}, console)
    lines = console.export_text().splitlines()
    assert max(map(len, lines)) <= 80
    output = "\n".join(lines)
    assert output.count("out of memory") == 2
    assert "not measured" in output
    assert "paper, on an A6000" in output
    assert len(lines) == 3 + 3 + len(rows) + 1 + len(steps) + 2  # nothing is broken into two lines


@pytest.mark.smoke
def test_answers_that_run_out_of_memory_leave_their_row(
    small_device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = SimpleNamespace(
        params=load_params(CHECKOUT / "params.yaml").policy, model=SimpleNamespace(device=small_device)
    )
    monkeypatch.setattr("benchmarks.gpu.large_costs.speak", lambda *_: _run_out())
    row = measure_answers(policy, ([Image.new("RGB", (2, 2))] * 128, ["?"] * 128), "longest", 616, 1)  # type: ignore[arg-type]
    assert (row.batch_size, row.samples_per_s, row.s_per_sample, row.peak_gb) == (128, None, None, 5.0)


@pytest.mark.gpu
def test_a_gpu_gives_peaks_too(tmp_path: Path) -> None:
    report = gpu.run(TINY, torch.device("cuda"), tmp_path, "transformers", EFFORT)
    for row in (*report["answers"], *report["steps"], report["embedding"]):
        assert row["peak_gb"] > 0
    assert report["machine"]["memory_gb"] > 0
