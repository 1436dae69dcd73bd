"""The plan as text for a terminal."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from pipeline.planning.plan import Plan
from pipeline.planning.sizes import GB


def print_plan(plan: Plan, console: Console) -> None:
    """Print stages, models and memory, and the run that is going on."""
    stages = Table(title="stages", title_justify="left", box=None, padding=(0, 2, 0, 0))
    for column in ("stage", "stale", "GB, estimate", "expected time"):
        stages.add_column(column)
    for stage in plan.stages:
        total = stage.memory.total()
        stages.add_row(
            stage.name,
            {True: "yes", False: "no", None: "?"}[stage.stale],
            "not known" if total is None else f"{total / GB:.2f}",
            stage.measured if stage.seconds is None else f"{stage.seconds:.0f} s ({stage.measured})",
        )
    console.print(stages)
    models = Table(title="models", title_justify="left", box=None, padding=(0, 2, 0, 0))
    for column in ("model", "path", "weights", "known from"):
        models.add_column(column)
    for model in plan.models:
        count = "not known" if model.parameters is None else f"{model.parameters:,}"
        models.add_row(
            model.role, model.path, count, model.source if model.present else f"folder missing; {model.source}"
        )
    console.print(models)
    device = plan.device
    console.print(f"{device.name}: {device.total / GB:.1f} GB, {device.free / GB:.1f} GB free", highlight=False)
    for stage in plan.stages:
        total = stage.memory.total()
        if total is not None and total > device.total:
            console.print(f"{stage.name} is expected to need more than that", highlight=False)
    if plan.going_on is not None:
        message = f"a run is going on: {plan.going_on.describe()}; what is stale is known when it has ended"
        console.print(message, highlight=False, markup=False, soft_wrap=True)
    if plan.dvc:
        console.print(plan.dvc, highlight=False)
