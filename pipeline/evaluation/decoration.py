"""What an evaluation shows beside its results: the page and sample crops. It never costs the results."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from pipeline.config import Params
from pipeline.errors import write_on_one_line
from pipeline.evaluation.figures import EvalReport
from pipeline.evaluation.methods import QuerySet
from pipeline.files.images import crop_view, load_upright
from pipeline.files.store import load_curves, load_documents, load_rollouts, replace_dir, write_text
from pipeline.report.gallery import build_panels, list_cards, pick_cards
from pipeline.report.page import ReportInputs, render_page
from pipeline.types import Box, CurvePoint, Query, QueryResult
from pipeline.workspace import Workspace

logger = logging.getLogger(__name__)

NUM_SAMPLE_CROPS: Final = 8
_CROP_SIDE_PX: Final = 1024
"""A sample is looked at, not measured; JPEG ends at 65,500 pixels a side."""


def decorate(
    report: EvalReport,
    test: QuerySet,
    by_method: Mapping[str, Sequence[QueryResult]],
    params: Params,
    workspace: Workspace,
) -> None:
    """Write report.html and crops/ beside the results, which are saved already; what fails is a warning.

    Args:
        report: content of report.json.
        test: queries and pools.
        by_method: rows of every method, aligned with the queries.
        params: of this run.
        workspace: where pictures, tables and curves lie.
    """
    cropped = _list_cropped(test.queries, by_method["rgrpo"])

    def draw_page() -> None:
        page = render_page(_gather(report, test, by_method, cropped, params, workspace))
        write_text(workspace.evaluation_dir / "report.html", page)

    _try("sample crops", lambda: _save_crops(cropped[:NUM_SAMPLE_CROPS], params, workspace))
    _try("report.html", draw_page)


def _try(name: str, draw: Callable[[], None]) -> None:
    try:
        draw()
    except Exception as error:  # noqa: BLE001 - hours of answers are saved; whatever fails here loses a picture of them
        reason = write_on_one_line(f"{type(error).__name__}: {error}")
        logger.warning("evaluate: the results are saved, but not %s: %s", name, reason)


def _list_cropped(queries: Sequence[Query], rows: Sequence[QueryResult]) -> list[tuple[Query, Box]]:
    return [(query, row.box) for query, row in zip(queries, rows, strict=True) if row.box is not None]


def _save_crops(cropped: Sequence[tuple[Query, Box]], params: Params, workspace: Workspace) -> None:
    with replace_dir(workspace.evaluation_dir / "crops") as folder:
        for number, (query, box) in enumerate(cropped):
            path = workspace.data_dir / query.image_path
            image = load_upright(path, max_pixels=params.data.max_image_pixels, root=workspace.data_dir)
            crop = crop_view(image, box)
            crop.thumbnail((_CROP_SIDE_PX, _CROP_SIDE_PX))
            crop.save(folder / f"{number}.jpg", quality=90)


def _gather(
    report: EvalReport,
    test: QuerySet,
    by_method: Mapping[str, Sequence[QueryResult]],
    cropped: Sequence[tuple[Query, Box]],
    params: Params,
    workspace: Workspace,
) -> ReportInputs:
    cards, tally = list_cards(test.queries, by_method["full"], by_method["rgrpo"])
    panels = build_panels(
        pick_cards(cards),
        {pool.query_id: pool for pool in test.pools},
        {d.doc_id: d for d in load_documents(workspace.tables_dir / "documents.parquet")},
        workspace.data_dir,
        max_pixels=params.data.max_image_pixels,
    )
    rollouts_path = workspace.rollouts_dir / "rollouts.parquet"
    return ReportInputs(
        report=report.as_json(),
        panels=panels,
        tally=tally,
        crops=[box for _, box in cropped],
        targets=[query.target_box for query, _ in cropped if query.target_box is not None],
        warmup_curve=_load_curve(workspace.curve_path("warmup")),
        train_curve=_load_curve(workspace.curve_path("train")),
        rollouts=load_rollouts(rollouts_path) if rollouts_path.is_file() else (),
    )


def _load_curve(path: Path) -> Sequence[CurvePoint]:
    # Another world's evaluation borrows its policies, so no training lies beside it.
    return load_curves(path) if path.is_file() else ()
