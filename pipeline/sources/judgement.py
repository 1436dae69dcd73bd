"""Candidates -> what is kept and what is rejected, in the same way for every source.

Rows are judged in file order and get the first reason that applies; docs/data-format.md has the table of
reasons. Documents stream through: only ids and verdicts stay in memory.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from pipeline.config import DataParams
from pipeline.core.lookalikes import Fingerprint, find_lookalikes
from pipeline.errors import DataError, write_on_one_line
from pipeline.images import ImageFacts
from pipeline.progress import Advance, track
from pipeline.sources import DocumentCandidate, QueryCandidate, Source
from pipeline.sources.inspection import BATCH_SIZE, ImageReport, PictureInspector, split_batches
from pipeline.sources.ledger import DocumentLedger
from pipeline.types import Box, Document, Reject, Split

Lookalikes = Mapping[str, Sequence[str]]

MAX_ROWS_NAMED: Final = 10
MAX_DETAIL_CHARS: Final = 400


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
    queries: Sequence[QueryCandidate]
    kept_queries: Sequence[QueryCandidate]
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


def judge(
    source: Source, params: DataParams, data_dir: Path, save_documents: Callable[[Iterable[Document]], None]
) -> Judgement:
    """Read a source whole and judge every row; pictures are decoded.

    Args:
        source: where the rows come from.
        params: which pictures are too large.
        data_dir: the folder that pictures must lie in.
        save_documents: takes the kept documents, one after another.

    Raises:
        DataError: a raw file is missing, empty or cannot be read.
    """
    inspector = PictureInspector(data_dir, params.max_image_pixels)
    ledger = DocumentLedger()
    rejects: list[Reject] = []
    with track("prepare: documents", None) as advance:
        save_documents(_keep_documents(source.read_documents(), inspector, ledger, rejects, advance))
    queries, misshapen = _divide(source.read_queries())
    paths = dict.fromkeys(query.image_path for query in queries)
    with track("prepare: query images", len(paths)) as advance:
        images = inspector.inspect(paths, advance, look=True)
    lookalikes = match_lookalikes(queries, images)
    kept, rejected = _judge_queries(queries, ledger, images, lookalikes)
    rejects = _in_file_order([*rejects, *misshapen, *rejected])
    dropped = {reject.source_id for reject in rejects if reject.reason in source.protocol_reasons}
    missing = {reject.source_id for reject in rejects if source.census and reject.reason == "image_missing"}
    apart = dropped | missing
    return Judgement(
        ledger=ledger,
        queries=queries,
        kept_queries=kept,
        images=images,
        lookalikes=lookalikes,
        rejects=rejects,
        num_query_rows=len(queries) + len(misshapen),
        num_image_queries=len(queries) + sum(reject.reason == "image_missing" for reject in misshapen),
        num_dropped=len(dropped),
        num_missing_images=len(missing),
        counted_rejects=[reject for reject in rejects if reject.source_id not in apart],
    )


def match_lookalikes(queries: Iterable[QueryCandidate], images: ImageReport) -> Lookalikes:
    """Return which pictures look the same and are used in different splits; those of the same bytes are left out."""
    used: dict[tuple[str, Split], Fingerprint] = {}
    for query in queries:
        fact = images[query.image_path]
        if isinstance(fact, ImageFacts) and fact.fingerprint is not None:
            used.setdefault((fact.sha256, query.split), fact.fingerprint)
    hashes = [sha256 for sha256, _ in used]
    found: dict[str, list[str]] = {}
    for one, other in find_lookalikes(list(used.values()), [split for _, split in used]):
        if hashes[one] != hashes[other]:
            found.setdefault(hashes[one], []).append(hashes[other])
            found.setdefault(hashes[other], []).append(hashes[one])
    return found


def check_rates(judgement: Judgement, params: DataParams, where: Path) -> None:
    """Refuse data of which too much is unusable.

    Raises:
        DataError: more rows are rejected or more pictures missing than allowed, or no query is left.
    """
    rejected = judgement.num_rejected
    if rejected > params.max_reject_rate * judgement.num_rows:
        raise DataError(
            f"{rejected} of {judgement.num_rows} rows are rejected ({judgement.reject_rate:.2%}), more than "
            f"data.max_reject_rate = {params.max_reject_rate:g} allows ({count_reasons(judgement.counted_rejects)}); "
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
    if not judgement.kept_queries:
        raise DataError("no query is left that has a relevant document", path=where)


def count_reasons(rejects: Iterable[Reject]) -> str:
    """Return the rejects by reason, most frequent first, as text."""
    return ", ".join(f"{reason} {count}" for reason, count in Counter(r.reason for r in rejects).most_common())


def _divide(rows: Iterable[QueryCandidate | Reject]) -> tuple[list[QueryCandidate], list[Reject]]:
    candidates: list[QueryCandidate] = []
    rejects: list[Reject] = []
    for row in rows:
        if isinstance(row, Reject):
            rejects.append(_shortened(row))
        else:
            candidates.append(row)
    return candidates, rejects


def _in_file_order(rejects: Sequence[Reject]) -> list[Reject]:
    def place(reject: Reject) -> tuple[str, int]:
        file, _, row = reject.source_id.rpartition(":")
        return file, int(row)

    return sorted(rejects, key=place)


def _keep_documents(
    rows: Iterable[DocumentCandidate | Reject],
    inspector: PictureInspector,
    ledger: DocumentLedger,
    rejects: list[Reject],
    advance: Advance,
) -> Iterator[Document]:
    """Yield the documents that are kept; the ledger and the list of rejects grow on the way."""
    for batch in split_batches(rows, BATCH_SIZE):
        advance(len(batch))
        ledger.num_rows += len(batch)
        documents = [row for row in batch if not isinstance(row, Reject)]
        rejects += [_shortened(row) for row in batch if isinstance(row, Reject)]
        images = inspector.inspect((path for document in documents for path in document.image_paths), lambda _: None)
        for document in documents:
            fault = _find_document_fault(document, ledger.find_earlier_row(document.doc_id), images)
            ledger.add(
                document.source_id,
                document.doc_id,
                images_decode=all(isinstance(images[path], ImageFacts) for path in document.image_paths),
                image_or_text=bool(document.image_paths) or bool(document.text.strip()),
            )
            if fault is not None:
                rejects.append(fault)
                continue
            ledger.kept[-1] = True
            yield Document(
                doc_id=document.doc_id, title=document.title, text=document.text, image_paths=document.image_paths
            )


def _find_document_fault(document: DocumentCandidate, earlier_row: str | None, images: ImageReport) -> Reject | None:
    if earlier_row is not None:
        detail = f"doc_id {document.doc_id} is already taken by {earlier_row}"
        return _reject(document.source_id, "duplicate_id", detail)
    if not document.image_paths and not document.text.strip():
        return _reject(document.source_id, "empty_document", "has neither an image nor text")
    return next(
        (fault for path in document.image_paths if (fault := _find_image_fault(document.source_id, path, images))),
        None,
    )


def _judge_queries(
    queries: Sequence[QueryCandidate], ledger: DocumentLedger, images: ImageReport, lookalikes: Lookalikes
) -> tuple[list[QueryCandidate], list[Reject]]:
    kept: list[QueryCandidate] = []
    rejects: list[Reject] = []
    first_rows: dict[str, str] = {}
    image_owners: dict[str, QueryCandidate] = {}
    for query in queries:
        first_row = first_rows.setdefault(query.query_id, query.source_id)
        fault = find_query_fault(query, first_row) or _find_image_fault(query.source_id, query.image_path, images)
        if fault is not None:
            rejects.append(fault)
            continue
        missing = [doc_id for doc_id in query.relevant_doc_ids if not ledger.is_kept(doc_id)]
        details = [_describe_missing(doc_id, ledger) for doc_id in missing]
        if len(missing) == len(query.relevant_doc_ids):
            rejects.append(_reject(query.source_id, "no_relevant_document", "; ".join(details) or "names none"))
            continue
        leak = _find_leak(query, images, lookalikes, image_owners)
        if leak is not None:
            rejects.append(leak)
            continue
        owner = image_owners.setdefault(_hash_of(query, images), query)
        rejects += [_reject(query.source_id, "unresolved_qrel", detail) for detail in details]
        resolved = tuple(doc_id for doc_id in query.relevant_doc_ids if doc_id not in missing)
        # One picture has one path, whatever the files are called: intervals draw pictures, and each is encoded once.
        kept.append(replace(query, relevant_doc_ids=resolved, image_path=owner.image_path))
    return kept, rejects


def _find_leak(
    query: QueryCandidate, images: ImageReport, lookalikes: Lookalikes, owners: Mapping[str, QueryCandidate]
) -> Reject | None:
    """Return the reject of a query whose picture a kept query of another split has, in the same bytes or in others."""
    sha256 = _hash_of(query, images)
    owner = owners.get(sha256)
    if owner is not None and owner.split != query.split:
        detail = f"{query.split} image is the same as that of {owner.source_id} in {owner.split}"
        return _reject(query.source_id, "split_leak", detail)
    for other in lookalikes.get(sha256, ()):
        owner = owners.get(other)
        if owner is not None and owner.split != query.split:
            detail = f"{query.split} image looks the same as that of {owner.source_id} in {owner.split}"
            return _reject(query.source_id, "split_lookalike", detail)
    return None


def _hash_of(query: QueryCandidate, images: ImageReport) -> str:
    fact = images[query.image_path]
    assert isinstance(fact, ImageFacts)  # others have been rejected
    return fact.sha256


def find_query_fault(query: QueryCandidate, first_row: str) -> Reject | None:
    """Return what is wrong with a query by itself, without looking at pictures or documents.

    Args:
        query: the query.
        first_row: the first row that has its id.
    """
    if first_row != query.source_id:
        detail = f"query_id {query.query_id} is already taken by {first_row}"
        return _reject(query.source_id, "duplicate_id", detail)
    if not query.question.strip():
        return _reject(query.source_id, "empty_question", "question is blank")
    if (place := query.question.find("\0")) >= 0:
        return _reject(query.source_id, "invalid_row", f"question holds a NUL character at place {place + 1}")
    if query.target_box is not None:
        try:
            Box(*query.target_box)
        except ValueError as error:
            return _reject(query.source_id, "bad_box", f"target_box: {error}")
    return None


def _find_image_fault(source_id: str, image_path: str, images: ImageReport) -> Reject | None:
    finding = images[image_path]
    if isinstance(finding, ImageFacts):
        return None
    return _reject(source_id, finding.fault, f"{image_path}: {finding.reason}")


def _describe_missing(doc_id: str, ledger: DocumentLedger) -> str:
    row = ledger.find_earlier_row(doc_id)
    return f"document {doc_id} " + ("does not exist" if row is None else f"was rejected ({row})")


def _reject(source_id: str, reason: str, detail: str) -> Reject:
    return _shortened(Reject(source_id=source_id, reason=reason, detail=detail))


def _shortened(reject: Reject) -> Reject:
    detail = write_on_one_line(reject.detail)
    return replace(reject, detail=detail if len(detail) <= MAX_DETAIL_CHARS else detail[: MAX_DETAIL_CHARS - 1] + "…")


def _name_first(rejects: Sequence[Reject]) -> str:
    return "; ".join(f"{r.source_id} {r.reason}: {r.detail[:120]}" for r in rejects[:MAX_ROWS_NAMED])
