"""Stage report: what an evaluation shows beside its figures, for people: the page, and sample crops.

It reads what other stages have written and changes none of it: whatever fails here, the results stand.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from pipeline.config import Params
from pipeline.errors import StageError
from pipeline.evaluation.methods import QuerySet
from pipeline.evaluation.query_set import hash_pools, load_query_set
from pipeline.files.images import PictureFolder, crop_view
from pipeline.files.store import (
    load_curves,
    load_documents,
    load_qrels,
    load_results,
    load_rollouts,
    read_json,
    replace_dir,
    write_text,
)
from pipeline.report.gallery import Card, build_panels, list_cards, pick_cards
from pipeline.report.page import ReportInputs, render_page
from pipeline.report.search.won_back import SearchTally, list_won_back, pick_won_back
from pipeline.runs.tracking import StageRun
from pipeline.types import Box, CurvePoint, Query, QueryResult
from pipeline.workspace import Workspace

NUM_SAMPLE_CROPS: Final = 8
_CROP_SIDE_PX: Final = 1024
"""A sample is looked at, not measured; JPEG ends at 65,500 pixels a side."""


def run(params: Params, workspace: Workspace, run: StageRun) -> dict[str, float]:
    """Write `report_dir`: report.html and crops/.

    Returns:
        How many queries the gallery shows, and how many sample crops were cut.

    Raises:
        StageError: evaluate has not run, or on other pools than lie here.
        DataError: a picture that is to be shown cannot be read.
    """
    report = read_json(workspace.evaluation_dir / "report.json", stage="evaluate")
    test = load_query_set(workspace, "test")
    if report["pools_sha256"] != hash_pools(test.pools):
        raise StageError(f"{workspace.evaluation_dir} is of another state of {workspace.pools_dir}; run evaluate again")
    rows = load_results(workspace.evaluation_dir / "results.parquet")
    full, policy = ([row for row in rows if row.method == method] for method in ("full", "rgrpo"))
    cropped = [(query, row.box) for query, row in zip(test.queries, policy, strict=True) if row.box is not None]
    inputs = _gather(report, test, full, policy, cropped, params, workspace)
    with replace_dir(workspace.report_dir) as folder:
        write_text(folder / "report.html", render_page(inputs))
        _save_crops(folder / "crops", cropped[:NUM_SAMPLE_CROPS], params, workspace)
    run.log_artifact(workspace.report_dir / "report.html", "report")
    run.log_artifact(workspace.report_dir / "crops", "crops")
    return {"num_shown": len(inputs.panels), "num_sample_crops": min(len(cropped), NUM_SAMPLE_CROPS)}


def _gather(
    report: dict[str, Any],
    test: QuerySet,
    full: Sequence[QueryResult],
    policy: Sequence[QueryResult],
    cropped: Sequence[tuple[Query, Box]],
    params: Params,
    workspace: Workspace,
) -> ReportInputs:
    cards, tally = list_cards(test.queries, full, policy)
    won_back, search_tally = _list_won_back(report, test, full, workspace)
    panels = build_panels(
        [*pick_cards(cards), *pick_won_back(won_back)],
        {(qrel.query_id, qrel.doc_id) for qrel in load_qrels(workspace.tables_dir / "qrels.parquet")},
        {d.doc_id: d for d in load_documents(workspace.tables_dir / "documents.parquet")},
        workspace.data_dir,
        max_pixels=params.data.max_image_pixels,
    )
    rollouts_path = workspace.rollouts_dir / "rollouts.parquet"
    return ReportInputs(
        report=report,
        panels=panels,
        tally=tally,
        search_tally=search_tally,
        crops=[box for _, box in cropped],
        targets=[query.target_box for query, _ in cropped if query.target_box is not None],
        warmup_curve=_load_curve(workspace.curve_path("warmup")),
        train_curve=_load_curve(workspace.curve_path("train")),
        rollouts=load_rollouts(rollouts_path) if rollouts_path.is_file() else (),
    )


def _list_won_back(
    report: dict[str, Any], test: QuerySet, full: Sequence[QueryResult], workspace: Workspace
) -> tuple[Sequence[Card], SearchTally | None]:
    if "search" not in report:
        return (), None
    choices = report["search_choices"]
    rows = load_results(workspace.evaluation_dir / "search_results.parquet")
    found = [row for row in rows if row.method == choices["headline"]]
    return list_won_back(test.queries, full, found, depth=choices["num_candidates"])


def _load_curve(path: Path) -> Sequence[CurvePoint]:
    # Another world's evaluation borrows its policies, so no training lies beside it.
    return load_curves(path) if path.is_file() else ()


def _save_crops(folder: Path, cropped: Sequence[tuple[Query, Box]], params: Params, workspace: Workspace) -> None:
    folder.mkdir()
    pictures = PictureFolder(workspace.data_dir, params.data.max_image_pixels)
    for number, (query, box) in enumerate(cropped):
        crop = crop_view(pictures.load(query.image_path), box)
        crop.thumbnail((_CROP_SIDE_PX, _CROP_SIDE_PX))
        crop.save(folder / f"{number}.jpg", quality=90)
