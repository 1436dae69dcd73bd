"""What a process of ours keeps out of the user's log."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings

import pytest

from pipeline.process.environment import prepare_process


def test_libraries_old_names_for_one_another_are_kept_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    monkeypatch.setattr(os, "environ", dict(os.environ))
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=8, **sizes))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(FutureWarning):
            _ = model.is_gradient_checkpointing
        prepare_process()
        _ = model.is_gradient_checkpointing
        model.gradient_checkpointing_enable()
        model.gradient_checkpointing_disable()
        with pytest.raises(FutureWarning, match="of ours"):
            warnings.warn("a name of ours is deprecated", FutureWarning, stacklevel=1)


def test_mlflows_models_are_imported_without_a_word() -> None:
    code = "from pipeline.process.environment import prepare_process; prepare_process(); import mlflow.pyfunc"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stderr == ""


def test_threads_are_limited_whatever_was_imported_before() -> None:
    code = """
import numpy
from threadpoolctl import threadpool_info
from pipeline.process.environment import limit_threads
print(max(pool["num_threads"] for pool in threadpool_info()))
limit_threads(1)
print(max(pool["num_threads"] for pool in threadpool_info()))
"""
    env = os.environ | dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "2")
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["2", "1"]
