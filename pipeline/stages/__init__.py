"""The stages in order; a stage's module is imported only when it runs, so this table costs nothing."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType

from pipeline.config import Params
from pipeline.runs.tracking import StageRun
from pipeline.workspace import Workspace

StageFunction = Callable[[Params, Workspace, StageRun], dict[str, float]]

STAGE_NAMES = ("prepare", "index", "retrieve", "warmup", "train", "answer", "evaluate", "report", "register")


def _run(name: str, params: Params, workspace: Workspace, run: StageRun) -> dict[str, float]:
    figures: dict[str, float] = importlib.import_module(f"pipeline.stages.{name}").run(params, workspace, run)
    return figures


STAGES: Mapping[str, StageFunction] = MappingProxyType({name: partial(_run, name) for name in STAGE_NAMES})
