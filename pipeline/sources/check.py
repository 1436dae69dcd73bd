"""What `prepare` would make of a data folder or of one annotation file, without writing anything."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

from pipeline.config import DataParams
from pipeline.errors import DataError, write_on_one_line
from pipeline.sources import QueryCandidate, Source, open_source
from pipeline.sources.judgement import check_rates, find_query_fault, judge
from pipeline.sources.pictures import ImageCensus
from pipeline.types import Reject

MAX_REJECTS_SHOWN: Final = 50


def check_data(params: DataParams, path: Path) -> tuple[dict[str, Any], list[str], DataError | None]:
    """Read and judge a data folder as prepare does, or the rows of one annotation file by themselves.

    Of an annotation file alone neither pictures nor relevant documents can be found: pictures count as
    unresolved, and nothing is rejected for want of them.

    Returns:
        the findings, JSON-ready; the files that the queries need; and why prepare would refuse, if it would.

    Raises:
        DataError: a file is missing or cannot be read.
    """
    if path.is_file():
        return _check_file(params, path)
    if not path.is_dir():
        raise DataError("is missing", path=path)
    source = open_source(params, path)
    judged = judge(source, params, path, _drain)
    findings = _describe(params, path, source, judged.queries, judged.kept_queries, judged.rejects)
    findings["num_rows"] = judged.num_rows
    findings["num_documents"] = sum(judged.ledger.kept)
    findings["num_rejected"] = judged.num_rejected
    findings["num_missing_images"] = judged.num_missing_images
    try:
        check_rates(judged, params, path)
    except DataError as error:
        return findings, _list_needed(source.census), error
    return findings, _list_needed(source.census), None


def _check_file(params: DataParams, path: Path) -> tuple[dict[str, Any], list[str], DataError | None]:
    source = open_source(params, path)
    rows = list(source.read_queries())
    first_rows: dict[str, str] = {}
    queries: list[QueryCandidate] = []
    kept: list[QueryCandidate] = []
    rejects: list[Reject] = []
    for row in rows:
        if isinstance(row, Reject):
            rejects.append(row)
            continue
        queries.append(row)
        fault = find_query_fault(row, first_rows.setdefault(row.query_id, row.source_id))
        if fault is None:
            kept.append(row)
        else:
            rejects.append(fault)
    findings = _describe(params, path, source, queries, kept, rejects)
    findings["num_rows"] = len(rows)
    counted = [reject for reject in rejects if reject.reason not in source.protocol_reasons]
    findings["num_rejected"] = len(counted)
    refusal = None if kept else DataError("no query is left", path=path)
    if len(counted) > params.max_reject_rate * len(rows):
        said = f"{len(counted)} of {len(rows)} rows are rejected, more than data.max_reject_rate allows"
        first = f"{counted[0].source_id} {counted[0].reason}: {write_on_one_line(counted[0].detail)[:120]}"
        refusal = DataError(f"{said}; first: {first}", path=path)
    return findings, _list_needed(source.census), refusal


def _describe(
    params: DataParams,
    path: Path,
    source: Source,
    queries: Sequence[QueryCandidate],
    kept: Sequence[QueryCandidate],
    rejects: Sequence[Reject],
) -> dict[str, Any]:
    tags = sorted({tag for query in kept for tag in query.tags})
    return {
        "source": params.source,
        "path": str(path),
        "num_rows": 0,
        "num_queries": len(kept),
        "num_documents": 0,
        "num_rejected": 0,
        "num_dropped": len({row.source_id for row in rejects if row.reason in source.protocol_reasons}),
        "num_missing_images": 0,
        "queries_by_split": dict(sorted(Counter(query.split for query in kept).items())),
        "queries_by_tag": {
            tag: dict(sorted(Counter(query.tags[tag] for query in kept if tag in query.tags).items())) for tag in tags
        },
        "images": _count_images(source, queries),
        "rejects_by_reason": dict(sorted(Counter(row.reason for row in rejects).items())),
        "rejects": [
            {"source_id": row.source_id, "reason": row.reason, "detail": write_on_one_line(row.detail)}
            for row in rejects[:MAX_REJECTS_SHOWN]
        ],
    }


def _count_images(source: Source, queries: Sequence[QueryCandidate]) -> dict[str, dict[str, int]]:
    if source.census is not None:
        return source.census.summarise()
    return {"queries": {"needed": len({query.image_path for query in queries})}}


def _list_needed(census: ImageCensus | None) -> list[str]:
    return [] if census is None else census.list_needed()


def _drain(items: Iterable[object]) -> None:
    deque(items, maxlen=0)
