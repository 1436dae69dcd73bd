"""prepare: raw data -> canonical tables; every row left out is listed with its reason.

Rows are judged in file order and get the first reason that applies; docs/data-format.md has the table of
reasons. Above `data.max_reject_rate` the stage fails and writes nothing.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Protocol, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from pipeline.config import DataParams, Params
from pipeline.errors import DataError
from pipeline.images import ImageError, ImageFacts, inspect_image
from pipeline.sources import DocumentCandidate, QueryCandidate, open_source
from pipeline.sources.validation import ImageReport, Tables, validate_tables
from pipeline.store import (
    replace_dir,
    save_documents,
    save_qrels,
    save_queries,
    save_rejects,
    write_json,
)
from pipeline.tracking import StageRun
from pipeline.types import SPLITS, Box, Document, Qrel, Query, Reject
from pipeline.workspace import Workspace

logger = logging.getLogger(__name__)

NUM_THREADS = 2
BATCH_SIZE = 256
MAX_ROWS_NAMED = 10
MAX_DETAIL_CHARS = 400
REPORT_EVERY_S = 5.0

Candidate = TypeVar("Candidate")


def run(params: Params, workspace: Workspace, run: StageRun) -> dict[str, float]:
    """Write queries, documents, qrels and rejects as Parquet, the outcome of the checks as validation.json.

    Returns:
        num_queries (and per split), num_documents, num_qrels, num_rejected (raw rows left out or cut short)
        and reject_rate (num_rejected over the raw rows).

    Raises:
        DataError: a raw file is missing or empty, more rows are rejected than allowed, or nothing is left.
    """
    source = open_source(params.data, workspace.data_dir)
    documents, misshapen_documents = _divide(source.read_documents())
    queries, misshapen_queries = _divide(source.read_queries())
    images = _inspect_images(_image_paths(documents, queries), workspace.data_dir, params.data)

    kept_documents, rejected_documents = _judge_documents(documents, images)
    kept_queries, rejected_queries = _judge_queries(queries, kept_documents, documents, images)
    rejects = _in_file_order([*misshapen_documents, *rejected_documents, *misshapen_queries, *rejected_queries])
    num_rows = len(documents) + len(misshapen_documents) + len(queries) + len(misshapen_queries)
    num_rejected = len({reject.source_id for reject in rejects})
    _check_reject_rate(rejects, num_rejected, num_rows, params.data.max_reject_rate, workspace.data_dir)
    if not kept_documents or not kept_queries:
        raise DataError("no query is left that has a relevant document", path=workspace.data_dir)

    validation = validate_tables(Tables(documents, queries), Tables(kept_documents, kept_queries), images)
    validation["num_rows"] = num_rows
    validation["rejects"] = dict(sorted(Counter(reject.reason for reject in rejects).items()))
    qrels = [
        Qrel(query_id=query.query_id, doc_id=doc_id) for query in kept_queries for doc_id in query.relevant_doc_ids
    ]
    with replace_dir(workspace.tables_dir) as folder:
        save_documents(folder / "documents.parquet", (_to_document(document) for document in kept_documents))
        save_queries(folder / "queries.parquet", (_to_query(query, images) for query in kept_queries))
        save_qrels(folder / "qrels.parquet", qrels)
        save_rejects(folder / "rejects.parquet", rejects)
        write_json(folder / "validation.json", validation)
    run.log_dict(validation, "validation.json")

    num_by_split = Counter(query.split for query in kept_queries)
    return {
        "num_queries": float(len(kept_queries)),
        **{f"num_queries_{split}": float(num_by_split[split]) for split in SPLITS},
        "num_documents": float(len(kept_documents)),
        "num_qrels": float(len(qrels)),
        "num_rejected": float(num_rejected),
        "reject_rate": num_rejected / num_rows,
    }


def _divide(rows: Iterable[Candidate | Reject]) -> tuple[list[Candidate], list[Reject]]:
    candidates: list[Candidate] = []
    rejects: list[Reject] = []
    for row in rows:
        if isinstance(row, Reject):
            rejects.append(_shortened(row))
        else:
            candidates.append(row)
    return candidates, rejects


def _shortened(reject: Reject) -> Reject:
    detail = " ".join(reject.detail.split())
    return replace(reject, detail=detail if len(detail) <= MAX_DETAIL_CHARS else detail[: MAX_DETAIL_CHARS - 1] + "…")


def _in_file_order(rejects: Sequence[Reject]) -> list[Reject]:
    def place(reject: Reject) -> tuple[str, int]:
        file, _, row = reject.source_id.rpartition(":")
        return file, int(row)

    return sorted(rejects, key=place)


# Pictures


def _image_paths(documents: Sequence[DocumentCandidate], queries: Sequence[QueryCandidate]) -> list[str]:
    paths = [path for document in documents for path in document.image_paths]
    return list(dict.fromkeys([*paths, *(query.image_path for query in queries)]))


def _inspect_images(image_paths: Sequence[str], data_dir: Path, params: DataParams) -> ImageReport:
    def inspect(image_path: str) -> ImageFacts | ImageError:
        path = data_dir / image_path
        try:
            if not _is_plain_relative(image_path):
                raise ImageError("unsafe_path", "must be relative, without `..` or `\\`", path=path)
            return inspect_image(path, max_pixels=params.max_image_pixels, root=data_dir)
        except ImageError as error:
            return error

    report: dict[str, ImageFacts | ImageError] = {}
    # PIL and hashlib let go of the interpreter lock, so threads do; an interrupt waits for one batch.
    with ThreadPoolExecutor(NUM_THREADS) as pool, _progress(len(image_paths)) as progress:
        for start in range(0, len(image_paths), BATCH_SIZE):
            batch = image_paths[start : start + BATCH_SIZE]
            report.update(zip(batch, pool.map(inspect, batch), strict=True))
            progress.advance(len(batch))
    return report


def _is_plain_relative(image_path: str) -> bool:
    return (
        not PurePosixPath(image_path).is_absolute()
        and ".." not in PurePosixPath(image_path).parts
        and "\\" not in image_path
    )


class _Reporter(Protocol):
    def advance(self, num_done: int) -> None: ...


class _BarReporter:
    def __init__(self, bar: Progress, total: int) -> None:
        self._bar = bar
        self._task = bar.add_task("images", total=total)

    def advance(self, num_done: int) -> None:
        self._bar.advance(self._task, num_done)


class _LineReporter:
    def __init__(self, total: int) -> None:
        self._total = total
        self._num_done = 0
        self._started = self._reported = time.monotonic()

    def advance(self, num_done: int) -> None:
        self._num_done += num_done
        now = time.monotonic()
        if now - self._reported < REPORT_EVERY_S and self._num_done < self._total:
            return
        self._reported = now
        left_s = (now - self._started) / self._num_done * (self._total - self._num_done)
        logger.info("prepare: %d of %d images checked, %.0f s left", self._num_done, self._total, left_s)


@contextmanager
def _progress(total: int) -> Iterator[_Reporter]:
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _LineReporter(total)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        yield _BarReporter(bar, total)


# Judgement


def _judge_documents(
    documents: Sequence[DocumentCandidate], images: ImageReport
) -> tuple[list[DocumentCandidate], list[Reject]]:
    kept: list[DocumentCandidate] = []
    rejects: list[Reject] = []
    first_rows: dict[str, str] = {}
    for document in documents:
        first_row = first_rows.setdefault(document.doc_id, document.source_id)
        fault = _find_document_fault(document, first_row, images)
        if fault is None:
            kept.append(document)
        else:
            rejects.append(fault)
    return kept, rejects


def _find_document_fault(document: DocumentCandidate, first_row: str, images: ImageReport) -> Reject | None:
    if first_row != document.source_id:
        detail = f"doc_id {document.doc_id} is already taken by {first_row}"
        return _reject(document.source_id, "duplicate_id", detail)
    if not document.image_paths and not document.text.strip():
        return _reject(document.source_id, "empty_document", "has neither an image nor text")
    return next(
        (fault for path in document.image_paths if (fault := _find_image_fault(document.source_id, path, images))),
        None,
    )


def _judge_queries(
    queries: Sequence[QueryCandidate],
    kept_documents: Sequence[DocumentCandidate],
    all_documents: Sequence[DocumentCandidate],
    images: ImageReport,
) -> tuple[list[QueryCandidate], list[Reject]]:
    kept_doc_ids = {document.doc_id for document in kept_documents}
    document_rows = {document.doc_id: document.source_id for document in reversed(all_documents)}
    kept: list[QueryCandidate] = []
    rejects: list[Reject] = []
    first_rows: dict[str, str] = {}
    image_owners: dict[str, QueryCandidate] = {}
    for query in queries:
        first_row = first_rows.setdefault(query.query_id, query.source_id)
        fault = _find_query_fault(query, first_row, images)
        if fault is not None:
            rejects.append(fault)
            continue
        missing = [doc_id for doc_id in query.relevant_doc_ids if doc_id not in kept_doc_ids]
        details = [_describe_missing(doc_id, document_rows) for doc_id in missing]
        if len(missing) == len(query.relevant_doc_ids):
            rejects.append(_reject(query.source_id, "no_relevant_document", "; ".join(details) or "names none"))
            continue
        fact = images[query.image_path]
        owner = image_owners.setdefault(fact.sha256, query) if isinstance(fact, ImageFacts) else query
        if owner.split != query.split:
            detail = f"{query.split} image is the same as that of {owner.source_id} in {owner.split}"
            rejects.append(_reject(query.source_id, "split_leak", detail))
            continue
        rejects += [_reject(query.source_id, "unresolved_qrel", detail) for detail in details]
        resolved = tuple(doc_id for doc_id in query.relevant_doc_ids if doc_id in kept_doc_ids)
        kept.append(replace(query, relevant_doc_ids=resolved))
    return kept, rejects


def _find_query_fault(query: QueryCandidate, first_row: str, images: ImageReport) -> Reject | None:
    if first_row != query.source_id:
        detail = f"query_id {query.query_id} is already taken by {first_row}"
        return _reject(query.source_id, "duplicate_id", detail)
    if not query.question.strip():
        return _reject(query.source_id, "empty_question", "question is blank")
    if query.target_box is not None:
        try:
            Box(*query.target_box)
        except ValueError as error:
            return _reject(query.source_id, "bad_box", f"target_box: {error}")
    return _find_image_fault(query.source_id, query.image_path, images)


def _find_image_fault(source_id: str, image_path: str, images: ImageReport) -> Reject | None:
    finding = images[image_path]
    if isinstance(finding, ImageFacts):
        return None
    return _reject(source_id, finding.fault, f"{image_path}: {finding.reason}")


def _describe_missing(doc_id: str, document_rows: dict[str, str]) -> str:
    row = document_rows.get(doc_id)
    return f"document {doc_id} " + ("does not exist" if row is None else f"was rejected ({row})")


def _reject(source_id: str, reason: str, detail: str) -> Reject:
    return _shortened(Reject(source_id=source_id, reason=reason, detail=detail))


def _check_reject_rate(
    rejects: Sequence[Reject], num_rejected: int, num_rows: int, max_reject_rate: float, data_dir: Path
) -> None:
    if num_rejected <= max_reject_rate * num_rows:
        return
    counts = ", ".join(f"{reason} {count}" for reason, count in Counter(r.reason for r in rejects).most_common())
    named = "; ".join(f"{r.source_id} {r.reason}: {r.detail[:120]}" for r in rejects[:MAX_ROWS_NAMED])
    raise DataError(
        f"{num_rejected} of {num_rows} rows are rejected ({num_rejected / num_rows:.2%}), more than "
        f"data.max_reject_rate = {max_reject_rate:g} allows ({counts}); first: {named}",
        path=data_dir,
    )


# Canonical records


def _to_document(document: DocumentCandidate) -> Document:
    return Document(doc_id=document.doc_id, title=document.title, text=document.text, image_paths=document.image_paths)


def _to_query(query: QueryCandidate, images: ImageReport) -> Query:
    facts = images[query.image_path]
    if isinstance(facts, ImageError):
        raise facts
    return Query(
        query_id=query.query_id,
        split=query.split,
        question=query.question,
        image_path=query.image_path,
        width_px=facts.width_px,
        height_px=facts.height_px,
        target_box=None if query.target_box is None else Box(*query.target_box),
        tags=query.tags,
    )
