"""`python -m benchmarks.gpu`: measure published shapes with random weights on one GPU, print tables, write gpu.json.

Nothing is downloaded. Exit codes are those of `python -m pipeline STAGE`; running out of memory is a row, no failure.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pipeline.config import LoraParams, Params, TrainParams
from pipeline.errors import StageError
from pipeline.process.environment import run_to_exit_code

if TYPE_CHECKING:
    import torch

    from benchmarks.gpu.large_shapes import Shape

_GROUP_SIZE: Final = 8
_DISK_GB: Final = {"paper": 10.0, "tiny": 0.1}
"""What the checkpoints take in the scratch folder, with some room: 7.5 GB and 0.9 GB."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Effort:
    """How much is measured; the defaults are the command's.

    Attributes:
        num_calls: batches of each row of answers and embedding, after one that is not counted.
        num_steps: r-GRPO steps, the first of which is not counted.
        num_images: pictures embedded in a call, in scorer batches.
        num_entities: documents of the world.
        num_train: its queries.
    """

    num_calls: int = 3
    num_steps: int = 4
    num_images: int = 4
    num_entities: int = 32
    num_train: int = 64


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__.splitlines()[0] if __doc__ else ""
    )
    parser.add_argument("--shape", choices=sorted(_DISK_GB), default="paper", help="sizes of the models (paper)")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="where they run (cuda)")
    parser.add_argument("--out", type=Path, default=Path("artifacts"), help="where gpu.json goes (artifacts)")
    parser.add_argument("--scratch", type=Path, help="where checkpoints lie meanwhile (the system's temporary folder)")
    parser.add_argument("--engine", choices=("auto", "transformers", "vllm"), default="auto",
                        help="auto and vllm add rows for vLLM, auto where it can run (auto)")  # fmt: skip
    options = parser.parse_args(arguments)
    return run_to_exit_code(
        lambda: measure(options.shape, options.device, options.out, options.scratch, options.engine)
    )


def measure(shape_name: str, device_name: str, out_dir: Path, scratch_dir: Path | None, engine: str) -> None:
    """Measure, print the tables and write gpu.json.

    Raises:
        StageError: there is no GPU, or too little room for the checkpoints.
        ModelError: vLLM is asked for where it cannot run.
    """
    import torch
    from rich.console import Console

    from benchmarks.gpu.large_shapes import SHAPES
    from benchmarks.gpu.table import print_report
    from pipeline.files.store import write_json

    if device_name == "cuda" and not torch.cuda.is_available():
        raise StageError("there is no CUDA device; `--shape tiny --device cpu` tries the benchmark without one")
    with tempfile.TemporaryDirectory(prefix="region-r1-gpu-", dir=scratch_dir) as scratch:
        free_gb, needed_gb = shutil.disk_usage(scratch).free / 1e9, _DISK_GB[shape_name]
        if free_gb < needed_gb:
            raise StageError(
                f"{Path(scratch).parent}: {free_gb:.1f} GB are free, the checkpoints need {needed_gb:g} GB; "
                "name another folder with --scratch"
            )
        report = run(SHAPES[shape_name], torch.device(device_name), Path(scratch), engine, Effort())
    out_dir.mkdir(parents=True, exist_ok=True)
    write_json(out_dir / "gpu.json", report)
    print_report(report, Console())


def run(shape: Shape, device: torch.device, scratch_dir: Path, engine: str, effort: Effort) -> dict[str, Any]:
    """Write checkpoints and a world, measure everything and return what gpu.json holds.

    Args:
        shape: sizes of models, pictures and batches.
        device: where the models run.
        scratch_dir: an empty folder.
        engine: as `policy.engine`; with transformers there are no rows for vLLM.
        effort: how much is measured.

    Raises:
        ModelError: vLLM is asked for where it cannot run.
    """
    import logging

    import torch

    from benchmarks.gpu import large_costs as costs
    from benchmarks.gpu.script import ENDINGS
    from benchmarks.rewards.setting import load_setting
    from pipeline.policy.policy import load_policy
    from pipeline.policy.vllm_engine import choose_engine
    from pipeline.workspace import Workspace

    logger = logging.getLogger("pipeline.bench")
    params = write_inputs(shape, device, scratch_dir, engine, effort)
    world, asked = Workspace.at(scratch_dir / "world"), params.policy
    setting = load_setting(world, params)
    logger.info("gpu: embedding")
    embedding = costs.measure_embedding(setting, effort.num_images * shape.scorer_batch, effort.num_calls)
    batches = [costs.load_batch(setting, size) for size in shape.batch_sizes]
    del setting  # and the scorer on the device: the peaks of answers are the policy's own
    logger.info("gpu: answers")
    policy = load_policy(asked.path, asked)
    prompt_tokens = costs.count_prompt_tokens(policy, batches[0])
    num_parameters = sum(weights.numel() for weights in policy.model.parameters())
    answers = [
        costs.measure_answers(policy, batch, ending, shape.side_px, effort.num_calls)
        for ending in ENDINGS
        for batch in batches
    ]
    del policy
    if choose_engine(asked) == "vllm":
        answers += [costs.measure_vllm_answers(Path(asked.path), asked, batch, effort.num_calls) for batch in batches]
    trained = asked.model_copy(update={"dtype": "auto", "lora": LoraParams()})
    train = TrainParams(max_steps=effort.num_steps, queries_per_step=2, group_size=_GROUP_SIZE, num_region=3,
                        num_full=2, beta=0.1, save_steps=1000)  # fmt: skip
    setting, steps = load_setting(world, params), []
    for ending in ENDINGS:
        logger.info("gpu: r-GRPO steps, %s", ending)
        steps.append(costs.measure_step(Path(asked.path), trained, train, setting, ending, shape.side_px))
    on_gpu = device.type == "cuda"
    return {
        "setting": {
            "shape": shape.name,
            "policy_parameters": num_parameters,
            "scorer_parameters": costs.count_parameters(scratch_dir / "scorer"),
            "side_px": shape.side_px,
            "max_new_tokens": shape.max_new_tokens,
            "prompt_tokens": prompt_tokens,
            "group_size": _GROUP_SIZE,
        },
        "machine": {
            "device": torch.cuda.get_device_name(device) if on_gpu else "cpu",
            "memory_gb": torch.cuda.get_device_properties(device).total_memory / 1e9 if on_gpu else None,
            "dtype": asked.dtype,
            "torch": torch.__version__,
        },
        "answers": [asdict(row) for row in answers],
        "steps": [asdict(row) for row in steps],
        "embedding": asdict(embedding),
    }


def write_inputs(shape: Shape, device: torch.device, scratch_dir: Path, engine: str, effort: Effort) -> Params:
    """Write both checkpoints and a small world of the shape's pictures, bring it through retrieve."""
    import json

    from benchmarks.gpu.large_shapes import save_policy, save_scorer
    from benchmarks.rewards.setting import draw_world, resize_world, run_stages
    from pipeline.training.seeding import seed_everything
    from pipeline.workspace import Workspace

    policy_dir, scorer_dir = scratch_dir / "policy", scratch_dir / "scorer"
    params = Params.model_validate(
        {
            "demo": {"num_entities": effort.num_entities, "num_train": effort.num_train},
            "scorer": {"path": str(scorer_dir), "device": device.type},
            "batches": {"scorer": shape.scorer_batch},
            "policy": {
                "path": str(policy_dir),
                "prompt": "instruct",
                "engine": engine,
                "max_new_tokens": shape.max_new_tokens,
                "device": device.type,
                "dtype": "bfloat16" if device.type == "cuda" else "float32",
            },
        }
    )
    drawn, world = (Workspace.at(scratch_dir / name) for name in ("drawn", "world"))
    draw_world(drawn, params)
    lines = (drawn.data_dir / "queries.jsonl").read_text(encoding="utf-8").splitlines()
    queries = [json.loads(line) for line in lines]
    resize_world(drawn, world, shape.side_px, [query["query_id"] for query in queries])
    seed_everything(params.seed)
    save_policy(shape, policy_dir, [query["question"] for query in queries], device)
    save_scorer(shape, scorer_dir, device)
    run_stages(world, params)
    return params
