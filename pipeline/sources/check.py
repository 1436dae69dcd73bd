"""What `prepare` would make of a data folder or of one annotation file, without writing anything."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

from pipeline.config import DataParams
from pipeline.errors import DataError, write_on_one_line
from pipeline.sources import RawQuery, Source, open_source
from pipeline.sources.formats.pictures import ImageCensus
from pipeline.sources.judging.judgement import judge, judge_alone
from pipeline.sources.judging.verdict import Judgement, refuse_unusable

MAX_REJECTS_SHOWN: Final = 50


def check_data(params: DataParams, path: Path) -> tuple[dict[str, Any], list[str], DataError | None]:
    """Read and judge a data folder as prepare does, or the rows of one annotation file by themselves.

    Of an annotation file alone neither pictures nor relevant documents can be found: pictures count as
    unresolved, nothing is rejected for want of them, and no other split is missed.

    Args:
        params: those that prepare would run with.
        path: the data folder, or one annotation file.

    Returns:
        the findings, JSON-ready; the files that the queries need; and why prepare would refuse, if it would.

    Raises:
        DataError: a file is missing or cannot be read.
    """
    if not path.exists():
        raise DataError("is missing", path=path)
    source = open_source(params, path)
    judged = judge_alone(source, params) if path.is_file() else judge(source, params, path, _drain)
    findings, needed = _describe(params, path, source, judged), _list_needed(source.census)
    try:
        refuse_unusable(judged, params, path)
    except DataError as error:
        return findings, needed, error
    return findings, needed, None


def _describe(params: DataParams, path: Path, source: Source, judged: Judgement) -> dict[str, Any]:
    kept = judged.kept_queries
    tags = sorted({tag for query in kept for tag in query.tags})
    return {
        "source": params.source,
        "path": str(path),
        "num_rows": judged.num_rows,
        "num_queries": len(kept),
        "num_documents": sum(judged.ledger.kept),
        "num_rejected": judged.num_rejected,
        "num_dropped": judged.num_dropped,
        "num_missing_images": judged.num_missing_images,
        "queries_by_split": dict(sorted(Counter(query.split for query in kept).items())),
        "queries_by_tag": {
            tag: dict(sorted(Counter(query.tags[tag] for query in kept if tag in query.tags).items())) for tag in tags
        },
        "images": _count_images(source, judged.queries),
        "unusable_images": {} if source.census is None else source.census.name_unusable(),
        "rejects_by_reason": dict(sorted(Counter(row.reason for row in judged.rejects).items())),
        "rejects": [
            {"source_id": row.source_id, "reason": row.reason, "detail": write_on_one_line(row.detail)}
            for row in judged.rejects[:MAX_REJECTS_SHOWN]
        ],
    }


def _count_images(source: Source, queries: Sequence[RawQuery]) -> dict[str, dict[str, int]]:
    if source.census is not None:
        return source.census.summarise()
    return {"queries": {"needed": len({query.image_path for query in queries})}}


def _list_needed(census: ImageCensus | None) -> list[str]:
    return [] if census is None else census.list_needed()


def _drain(items: Iterable[object]) -> None:
    deque(items, maxlen=0)
