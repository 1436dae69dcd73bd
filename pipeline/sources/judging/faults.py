"""What is wrong with one row, in the words of rejects.parquet."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from pipeline.core.inputs.texts import find_question_fault, is_blank, is_one_line
from pipeline.errors import write_on_one_line
from pipeline.files.images import ImageFacts
from pipeline.sources import RawDocument, RawQuery
from pipeline.sources.judging.inspection import ImageReport
from pipeline.types import Box, Reject

MAX_DETAIL_CHARS: Final = 400


def find_document_fault(document: RawDocument, earlier_row: str | None, images: ImageReport) -> Reject | None:
    """Return what is wrong with a document.

    Args:
        document: the document.
        earlier_row: FILE:ROW of an earlier row that has its id, None if there is none.
        images: what decoding its pictures found.
    """
    if earlier_row is not None:
        detail = f"doc_id {document.doc_id} is already taken by {earlier_row}"
        return reject_row(document.source_id, "duplicate_id", detail)
    if not document.image_paths and is_blank(document.text):
        return reject_row(document.source_id, "empty_document", "has neither an image nor text")
    return next(
        (fault for path in document.image_paths if (fault := find_image_fault(document.source_id, path, images))),
        None,
    )


def find_query_fault(query: RawQuery, first_row: str, max_question_chars: int) -> Reject | None:
    """Return what is wrong with a query by itself, without looking at pictures or documents.

    Args:
        query: the query.
        first_row: the first row that has its id.
        max_question_chars: longest question that is taken, in characters.
    """
    if first_row != query.source_id:
        detail = f"query_id {query.query_id} is already taken by {first_row}"
        return reject_row(query.source_id, "duplicate_id", detail)
    if (fault := find_question_fault(query.question, max_question_chars)) is not None:
        return reject_row(query.source_id, fault[0], f"question {fault[1]}")
    for name, value in query.tags.items():
        if not is_one_line(name + value):
            detail = f"tag {name}: {value} holds a line end or control character"
            return reject_row(query.source_id, "invalid_row", detail)
    if query.target_box is not None:
        try:
            Box(*query.target_box)
        except ValueError as error:
            return reject_row(query.source_id, "bad_box", f"target_box: {error}")
    return None


def find_image_fault(source_id: str, image_path: str, images: ImageReport) -> Reject | None:
    """Return why the picture of a row cannot be used, None if it can."""
    finding = images[image_path]
    if isinstance(finding, ImageFacts):
        return None
    return reject_row(source_id, finding.fault, f"{image_path}: {finding.reason}")


def reject_row(source_id: str, reason: str, detail: str) -> Reject:
    """Return the reject of a row, its detail short and on one line."""
    return shorten(Reject(source_id=source_id, reason=reason, detail=detail))


def shorten(reject: Reject) -> Reject:
    """Return a reject whose detail is one printable line of bounded length."""
    detail = write_on_one_line(reject.detail)
    return replace(reject, detail=detail if len(detail) <= MAX_DETAIL_CHARS else detail[: MAX_DETAIL_CHARS - 1] + "…")
