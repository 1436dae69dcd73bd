"""Raw rows -> what is kept and what is rejected, in the same way for every source.

Rows are judged in file order and get the first reason that applies; docs/data-format.md has the table of
reasons. Documents stream through: only ids and verdicts stay in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from pipeline.config import DataParams
from pipeline.core.inputs.lookalikes import Fingerprint, find_lookalikes
from pipeline.core.inputs.texts import clean_text, is_blank, unify_line_ends
from pipeline.files.images import ImageError, ImageFacts
from pipeline.process.progress import Advance, track
from pipeline.sources import RawDocument, RawQuery, Source
from pipeline.sources.formats.pictures import ImageCensus
from pipeline.sources.judging.faults import find_document_fault, find_image_fault, find_query_fault, reject_row, shorten
from pipeline.sources.judging.inspection import BATCH_SIZE, ImageReport, PictureInspector, split_batches
from pipeline.sources.judging.ledger import DocumentLedger
from pipeline.sources.judging.verdict import Judgement, Lookalikes
from pipeline.types import Document, Reject, Split


def judge(
    source: Source, params: DataParams, data_dir: Path, save_documents: Callable[[Iterable[Document]], None]
) -> Judgement:
    """Read a source whole and judge every row; pictures are decoded.

    Args:
        source: where the rows come from.
        params: which pictures are too large, and which questions too long.
        data_dir: the folder that pictures must lie in.
        save_documents: takes the kept documents, one after another.

    Raises:
        DataError: a raw file is missing, empty or cannot be read.
    """
    inspector = PictureInspector(data_dir, params.max_image_pixels)
    ledger = DocumentLedger()
    rejects: list[Reject] = []
    with track("prepare: documents", None) as advance:
        save_documents(_keep_documents(source, inspector, ledger, rejects, advance))
    queries, misshapen = _divide(source.read_queries())
    paths = dict.fromkeys(query.image_path for query in queries)
    with track("prepare: query images", len(paths)) as advance:
        images = inspector.inspect(paths, advance, look=True)
    if source.census is not None:
        _count_unusable(source.census, paths, images)
    lookalikes = match_lookalikes(queries, images)
    kept, rejected = _judge_queries(queries, ledger, images, lookalikes, params.max_question_chars)
    return _sum_up(
        source,
        ledger=ledger,
        queries=queries,
        kept_queries=kept,
        images=images,
        lookalikes=lookalikes,
        misshapen=misshapen,
        rejects=[*rejects, *misshapen, *rejected],
    )


def judge_alone(source: Source, params: DataParams) -> Judgement:
    """Judge the rows of one annotation file by themselves: neither pictures nor relevant documents are looked for.

    Raises:
        DataError: the file is missing, empty or cannot be read.
    """
    queries, misshapen = _divide(source.read_queries())
    first_rows: dict[str, str] = {}
    faults = [
        find_query_fault(query, first_rows.setdefault(query.query_id, query.source_id), params.max_question_chars)
        for query in queries
    ]
    return _sum_up(
        source,
        ledger=DocumentLedger(),
        queries=queries,
        kept_queries=[query for query, fault in zip(queries, faults, strict=True) if fault is None],
        images={},
        lookalikes={},
        misshapen=misshapen,
        rejects=[*misshapen, *(fault for fault in faults if fault is not None)],
    )


def _sum_up(
    source: Source,
    *,
    ledger: DocumentLedger,
    queries: Sequence[RawQuery],
    kept_queries: Sequence[RawQuery],
    images: ImageReport,
    lookalikes: Lookalikes,
    misshapen: Sequence[Reject],
    rejects: Sequence[Reject],
) -> Judgement:
    """Return what was found out, with the rejects told apart by what they count for."""
    rejects = _in_file_order(rejects)
    dropped = {reject.source_id for reject in rejects if reject.reason in source.protocol_reasons}
    missing = {reject.source_id for reject in rejects if source.census and reject.reason == "image_missing"}
    apart = dropped | missing
    return Judgement(
        ledger=ledger,
        queries=queries,
        kept_queries=kept_queries,
        images=images,
        lookalikes=lookalikes,
        rejects=rejects,
        num_query_rows=len(queries) + len(misshapen),
        num_image_queries=len(queries) + sum(reject.reason == "image_missing" for reject in misshapen),
        num_dropped=len(dropped),
        num_missing_images=len(missing),
        counted_rejects=[reject for reject in rejects if reject.source_id not in apart],
    )


def match_lookalikes(queries: Iterable[RawQuery], images: ImageReport) -> Lookalikes:
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


def _divide(rows: Iterable[RawQuery | Reject]) -> tuple[list[RawQuery], list[Reject]]:
    raw: list[RawQuery] = []
    rejects: list[Reject] = []
    for row in rows:
        if isinstance(row, Reject):
            rejects.append(shorten(row))
        else:
            raw.append(replace(row, question=unify_line_ends(row.question)))
    return raw, rejects


def _in_file_order(rejects: Sequence[Reject]) -> list[Reject]:
    def place(reject: Reject) -> tuple[str, int]:
        file, _, row = reject.source_id.rpartition(":")
        return file, int(row)

    return sorted(rejects, key=place)


def _keep_documents(
    source: Source, inspector: PictureInspector, ledger: DocumentLedger, rejects: list[Reject], advance: Advance
) -> Iterator[Document]:
    """Yield the documents that are kept; the ledger and the list of rejects grow on the way."""
    for batch in split_batches(source.read_documents(), BATCH_SIZE):
        advance(len(batch))
        ledger.num_rows += len(batch)
        documents = [row for row in batch if not isinstance(row, Reject)]
        rejects += [shorten(row) for row in batch if isinstance(row, Reject)]
        images = inspector.inspect((path for document in documents for path in document.image_paths), lambda _: None)
        for raw in documents:
            document = _clean(raw) if source.census is None else _drop_unusable(_clean(raw), images, source.census)
            fault = find_document_fault(document, ledger.find_earlier_row(document.doc_id), images)
            ledger.add(
                document.source_id,
                document.doc_id,
                images_decode=all(isinstance(images[path], ImageFacts) for path in document.image_paths),
                image_or_text=bool(document.image_paths) or not is_blank(document.text),
            )
            if fault is not None:
                rejects.append(fault)
                continue
            ledger.kept[-1] = True
            yield Document(
                doc_id=document.doc_id, title=document.title, text=document.text, image_paths=document.image_paths
            )


def _clean(document: RawDocument) -> RawDocument:
    return replace(document, title=clean_text(document.title), text=clean_text(document.text))


def _drop_unusable(document: RawDocument, images: ImageReport, census: ImageCensus) -> RawDocument:
    """Leave out pictures that cannot be used, as those without a file were: a published set has some of either."""
    _count_unusable(census, document.image_paths, images)
    usable = tuple(path for path in document.image_paths if isinstance(images[path], ImageFacts))
    return document if len(usable) == len(document.image_paths) else replace(document, image_paths=usable)


def _count_unusable(census: ImageCensus, paths: Iterable[str], images: ImageReport) -> None:
    for path in paths:
        finding = images[path]
        if isinstance(finding, ImageError) and finding.fault != "image_missing":
            census.count_unusable(path, f"{finding.fault}: {finding.reason}")


def _judge_queries(
    queries: Sequence[RawQuery],
    ledger: DocumentLedger,
    images: ImageReport,
    lookalikes: Lookalikes,
    max_question_chars: int,
) -> tuple[list[RawQuery], list[Reject]]:
    kept: list[RawQuery] = []
    rejects: list[Reject] = []
    first_rows: dict[str, str] = {}
    image_owners: dict[str, RawQuery] = {}
    for query in queries:
        first_row = first_rows.setdefault(query.query_id, query.source_id)
        fault = find_query_fault(query, first_row, max_question_chars)
        fault = fault or find_image_fault(query.source_id, query.image_path, images)
        if fault is not None:
            rejects.append(fault)
            continue
        missing = [doc_id for doc_id in query.relevant_doc_ids if not ledger.is_kept(doc_id)]
        details = [_describe_missing(doc_id, ledger) for doc_id in missing]
        if len(missing) == len(query.relevant_doc_ids):
            rejects.append(reject_row(query.source_id, "no_relevant_document", "; ".join(details) or "names none"))
            continue
        leak = _find_leak(query, images, lookalikes, image_owners)
        if leak is not None:
            rejects.append(leak)
            continue
        owner = image_owners.setdefault(_hash_of(query, images), query)
        rejects += [reject_row(query.source_id, "unresolved_qrel", detail) for detail in details]
        resolved = tuple(doc_id for doc_id in query.relevant_doc_ids if doc_id not in missing)
        # One picture has one path, whatever the files are called: intervals draw pictures, and each is encoded once.
        kept.append(replace(query, relevant_doc_ids=resolved, image_path=owner.image_path))
    return kept, rejects


def _find_leak(
    query: RawQuery, images: ImageReport, lookalikes: Lookalikes, owners: Mapping[str, RawQuery]
) -> Reject | None:
    """Return the reject of a query whose picture a kept query of another split has, in the same bytes or in others."""
    sha256 = _hash_of(query, images)
    owner = owners.get(sha256)
    if owner is not None and owner.split != query.split:
        detail = f"{query.split} image is the same as that of {owner.source_id} in {owner.split}"
        return reject_row(query.source_id, "split_leak", detail)
    for other in lookalikes.get(sha256, ()):
        owner = owners.get(other)
        if owner is not None and owner.split != query.split:
            detail = f"{query.split} image looks the same as that of {owner.source_id} in {owner.split}"
            return reject_row(query.source_id, "split_lookalike", detail)
    return None


def _hash_of(query: RawQuery, images: ImageReport) -> str:
    fact = images[query.image_path]
    assert isinstance(fact, ImageFacts)  # others have been rejected
    return fact.sha256


def _describe_missing(doc_id: str, ledger: DocumentLedger) -> str:
    row = ledger.find_earlier_row(doc_id)
    return f"document {doc_id} " + ("does not exist" if row is None else f"was rejected ({row})")
