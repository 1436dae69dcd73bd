"""What was found out about a data folder, and whether `prepare` takes it: `data check` asks the same question."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pipeline.config import DataParams
from pipeline.errors import DataError, write_on_one_line
from pipeline.sources import RawQuery
from pipeline.sources.judging.inspection import ImageReport
from pipeline.sources.judging.ledger import DocumentLedger
from pipeline.types import Reject, Split

Lookalikes = Mapping[str, Sequence[str]]

MAX_ROWS_NAMED: Final = 10
MAX_DETAIL_CHARS: Final = 120
# Splits that the stages after prepare cannot do without, and why.
NEEDED_SPLITS: Final[Mapping[Split, str]] = {"train": "nothing can be trained", "test": "nothing can be measured"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Judgement:
    """All that was found out about a data folder.

    Attributes:
        ledger: the document rows.
        queries: query rows of the right shape.
        kept_queries: those that stay, with the relevant documents that exist.
        images: what decoding the queries' pictures found.
        lookalikes: hash of a picture -> hashes of those that look the same and are used in another split.
        rejects: rows left out or cut short, in file order.
        num_query_rows: raw query rows.
        num_image_queries: query rows that ask for a picture, whether their id has a file name or not.
        num_dropped: rows that the published protocol leaves out.
        num_missing_images: queries of a published source that lack their picture.
        counted_rejects: those of `rejects` that `data.max_reject_rate` counts: all others.
    """

    ledger: DocumentLedger
    queries: Sequence[RawQuery]
    kept_queries: Sequence[RawQuery]
    images: ImageReport
    lookalikes: Lookalikes
    rejects: Sequence[Reject]
    num_query_rows: int
    num_image_queries: int
    num_dropped: int
    num_missing_images: int
    counted_rejects: Sequence[Reject]

    @property
    def num_rows(self) -> int:
        """Raw rows, documents and queries."""
        return self.ledger.num_rows + self.num_query_rows

    @property
    def num_rejected(self) -> int:
        """Rows left out or cut short, those that the protocol drops or that lack their picture apart."""
        return len({reject.source_id for reject in self.counted_rejects})

    @property
    def reject_rate(self) -> float:
        """Rejected rows over raw rows."""
        return self.num_rejected / self.num_rows

    @property
    def missing_image_rate(self) -> float:
        """Queries without their picture over queries that ask for one."""
        return self.num_missing_images / self.num_image_queries if self.num_image_queries else 0.0


def refuse_unusable(judgement: Judgement, params: DataParams, where: Path) -> None:
    """Refuse data of which too much is unusable, or with which no run could get to its end.

    Args:
        judgement: what was found out.
        params: the rates that are allowed.
        where: the data folder, or the one annotation file that was judged by itself and so needs no other splits.

    Raises:
        DataError: more rows are rejected or more pictures missing than allowed, no query is left, or none of a split
            that later stages need.
    """
    _check_rates(judgement, params, where)
    if not judgement.kept_queries:
        raise DataError("no query is left that has a relevant document", path=where)
    if where.is_dir():
        _check_splits(judgement, where)


def _check_rates(judgement: Judgement, params: DataParams, where: Path) -> None:
    rejected = judgement.num_rejected
    if rejected > params.max_reject_rate * judgement.num_rows:
        raise DataError(
            f"{rejected} of {judgement.num_rows} rows are rejected ({judgement.reject_rate:.2%}), more than "
            f"data.max_reject_rate = {params.max_reject_rate:g} allows ({_count_reasons(judgement.counted_rejects)}); "
            f"first: {_name_first(judgement.counted_rejects)}",
            path=where,
        )
    if judgement.missing_image_rate > params.max_missing_image_rate:
        missing = [reject for reject in judgement.rejects if reject.reason == "image_missing"]
        raise DataError(
            f"{judgement.num_missing_images} queries lack their picture ({judgement.missing_image_rate:.2%}), more "
            f"than data.max_missing_image_rate = {params.max_missing_image_rate:g} allows; "
            f"first: {_name_first(missing)}",
            path=where,
        )


def _check_splits(judgement: Judgement, where: Path) -> None:
    left = {query.split for query in judgement.kept_queries}
    for split, what in NEEDED_SPLITS.items():
        if split in left:
            continue
        rows = {query.source_id for query in judgement.queries if query.split == split}
        if not rows:
            raise DataError(f"holds no {split} queries, and without them {what}", path=where)
        lost = [reject for reject in judgement.rejects if reject.source_id in rows]
        raise DataError(
            f"none of its {len(rows)} {split} queries is left, and without them {what} ({_count_reasons(lost)}); "
            f"first: {_name_first(lost)}",
            path=where,
        )


def _count_reasons(rejects: Iterable[Reject]) -> str:
    return ", ".join(f"{reason} {count}" for reason, count in Counter(r.reason for r in rejects).most_common())


def _name_first(rejects: Sequence[Reject]) -> str:
    return "; ".join(
        f"{reject.source_id} {reject.reason}: {write_on_one_line(reject.detail)[:MAX_DETAIL_CHARS]}"
        for reject in rejects[:MAX_ROWS_NAMED]
    )
