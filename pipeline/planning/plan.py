"""What a run would do: stale stages, models, expected memory, and time where an earlier run has measured it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from pipeline.config import Params
from pipeline.errors import write_on_one_line
from pipeline.files.store import read_json
from pipeline.planning import sizes
from pipeline.planning.sizes import GB, Memory, ModelSize
from pipeline.runs.run_lock import Holder, find_holder
from pipeline.stages import STAGE_NAMES
from pipeline.workspace import Workspace

_NO_WEIGHTS: Final = Memory(weights=0.0, gradients=0.0, optimiser=0.0, activations=0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """Where the models would lie.

    Attributes:
        name: the GPU's name, or the machine's memory.
        total: bytes that it has.
        free: bytes that nobody uses now.
        is_gpu: whether it is a GPU.
    """

    name: str
    total: float
    free: float
    is_gpu: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class StagePlan:
    """One stage.

    Attributes:
        name: the stage.
        stale: whether DVC would run it; None if DVC cannot say.
        memory: what its models are expected to take.
        seconds: expected time; None where no earlier run of the same parameters has measured it.
        measured: how the time is known.
    """

    name: str
    stale: bool | None
    memory: Memory
    seconds: float | None
    measured: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Everything that `region-r1 plan` says.

    Attributes:
        params_sha256: hash of the parameters behind an evaluation.
        device: where the models would lie.
        models: what is known of each.
        stages: the stages in order.
        going_on: who works in the checkout now; what is stale is known when it has ended.
        dvc: why DVC cannot say what is stale; empty where it can, or where a run is going on.
    """

    params_sha256: str
    device: Device
    models: tuple[ModelSize, ...]
    stages: tuple[StagePlan, ...]
    going_on: Holder | None
    dvc: str

    def as_json(self) -> dict[str, Any]:
        """Return the plan for scripts; memory in GB (1e9 bytes)."""
        content = asdict(self)
        for row, stage in zip(content["stages"], self.stages, strict=True):
            parts = {name: None if value is None else value / GB for name, value in asdict(stage.memory).items()}
            total = stage.memory.total()
            row["memory_gb"] = parts | {"total": None if total is None else total / GB}
            del row["memory"]
        for name in ("total", "free"):
            content["device"][f"{name}_gb"] = content["device"].pop(name) / GB
        return content


def build_plan(params: Params, root: Path) -> Plan:
    """Return the plan for a checkout; no weights are loaded and nothing is written.

    Raises:
        ModelError: a model's folder is there, but its header is broken.
    """
    device = find_device(params)
    holder = find_holder(root)
    stale, answer = ask_dvc(root) if holder is None else (None, "")
    policy, scorer = sizes.measure_policy(params.policy), sizes.measure_scorer(params.scorer)
    models = [policy, scorer]
    if params.second_scorer is not None:
        models.append(sizes.measure_second_scorer(params.second_scorer))
    memory = _estimate(params, policy, scorer, models[2:], on_gpu=device.is_gpu)
    times = _find_times(params, root)
    stages = tuple(
        StagePlan(
            name=name,
            stale=None if stale is None else name in stale,
            memory=memory.get(name, _NO_WEIGHTS),
            seconds=times.get(name, (None, ""))[0],
            measured=times.get(name, (None, "not measured yet"))[1],
        )
        for name in STAGE_NAMES
    )
    return Plan(
        params_sha256=params.sha256(),
        device=device,
        models=tuple(models),
        stages=stages,
        going_on=holder,
        dvc=answer,
    )


def find_device(params: Params) -> Device:
    """Return the GPU that the policy would take, else this machine's memory."""
    import torch

    if params.policy.device != "cpu" and torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        return Device(name=torch.cuda.get_device_name(), total=float(total), free=float(free), is_gpu=True)
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    kilobytes = {line.split(":")[0]: float(line.split()[1]) for line in lines}
    return Device(
        name="main memory", total=1024 * kilobytes["MemTotal"], free=1024 * kilobytes["MemAvailable"], is_gpu=False
    )


def ask_dvc(root: Path) -> tuple[frozenset[str] | None, str]:
    """Return the stages that DVC holds stale, or None, and what DVC says otherwise."""
    from dvc.config import ConfigError
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        with Repo(str(root)) as repo:
            return frozenset(str(name) for name in repo.status(targets=[str(root / "dvc.yaml")])), ""
    except (DvcException, ConfigError, OSError) as error:
        return None, f"DVC cannot say what is stale: {write_on_one_line(error)}"


def _estimate(
    params: Params, policy: ModelSize, scorer: ModelSize, second: list[ModelSize], *, on_gpu: bool
) -> dict[str, Memory]:
    frozen = [_weigh(scorer, sizes.weight_bytes(params.scorer, on_gpu=on_gpu))]
    both = [*frozen, *(_weigh(model, sizes.weight_bytes(params.scorer, on_gpu=on_gpu)) for model in second)]
    idle = [_weigh(policy, sizes.weight_bytes(params.policy, on_gpu=on_gpu))]
    sft = sizes.estimate_training(policy, params.policy, num_rows=params.warmup.batch_size, num_copies=1, on_gpu=on_gpu)
    grpo = sizes.estimate_training(
        policy,
        params.policy,
        num_rows=params.train.queries_per_step * params.train.group_size,
        num_copies=2 if params.train.beta > 0 and params.policy.lora is None else 1,
        on_gpu=on_gpu,
    )
    return {
        "index": _add(_NO_WEIGHTS, frozen),
        "retrieve": _add(_NO_WEIGHTS, frozen),
        "warmup": _add(sft, frozen),
        "train": _add(grpo, frozen),
        "answer": _add(_NO_WEIGHTS, idle),
        "evaluate": _add(_NO_WEIGHTS, both),
    }


def _weigh(model: ModelSize, bytes_each: int) -> float | None:
    return None if model.parameters is None else float(model.parameters * bytes_each)


def _add(memory: Memory, weights: list[float | None]) -> Memory:
    known = [value for value in (memory.weights, *weights) if value is not None]
    return Memory(
        weights=sum(known) if len(known) == 1 + len(weights) else None,
        gradients=memory.gradients,
        optimiser=memory.optimiser,
        activations=memory.activations,
    )


def _find_times(params: Params, root: Path) -> dict[str, tuple[float, str]]:
    """Return times of stages whose last run here had the same models and batch sizes, by what that run measured."""
    workspace = Workspace.at(root)
    sections = params.model_dump(mode="json", by_alias=True)
    times: dict[str, tuple[float, str]] = {}
    index = _read_provenance(workspace, "index")
    if _same(index, sections, ("scorer", "batches")) and "images_per_s" in index:
        rate = float(index["images_per_s"])
        times["index"] = (index["figures"]["num_images"] / rate, f"{rate:.0f} images/s in the last run")
    train = _read_provenance(workspace, "train")
    work = {key: sections["train"][key] for key in ("queries_per_step", "group_size", "updates_per_generation")}
    if _same(train, sections, ("policy", "scorer")) and work.items() <= train["params"]["train"].items():
        each = float(train["step_seconds"])
        times["train"] = (each * params.train.max_steps, f"{each:.2f} s a step in the last run")
    answer = _read_provenance(workspace, "answer")
    if _same(answer, sections, ("policy", "answer", "batches")) and "answers_per_s" in answer:
        rate = float(answer["answers_per_s"])
        times["answer"] = (answer["figures"]["num_answers"] / rate, f"{rate:.0f} answers/s in the last run")
    return times


def _same(ran: Mapping[str, Any], sections: Mapping[str, Any], names: tuple[str, ...]) -> bool:
    """Return whether a stage's last run had these sections; a stage that never ran had none."""
    return bool(ran) and all(ran["params"].get(name) == sections[name] for name in names)


def _read_provenance(workspace: Workspace, stage: str) -> Mapping[str, Any]:
    path = workspace.provenance_path(stage)
    provenance: Mapping[str, Any] = read_json(path) if path.is_file() else {}
    return provenance
