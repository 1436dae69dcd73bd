"""The encyclopedia of Encyclopedic VQA, and EchoSight's in the same shape: one JSON object, URL -> entry."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline.sources import RawDocument
from pipeline.sources.formats.pictures import PictureFinder
from pipeline.sources.formats.streams import RepeatedKey, read_json_entries
from pipeline.sources.judging.ids import check_id
from pipeline.types import Reject


class _Entry(BaseModel):
    """What is read of an entry; `image_section_indices` and captions are not used."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)

    title: str
    section_titles: list[str]
    section_texts: list[str]
    image_urls: list[str]


def read_knowledge_base(path: Path, finder: PictureFinder, max_text_chars: int) -> Iterator[RawDocument | Reject]:
    """Yield one item per entry, in file order; the n-th has `source_id` FILE:n.

    A document's text is its sections in order, cut after `max_text_chars` characters: the frozen encoder reads
    less than that. Pictures without a file are counted and left out; the entry stays.

    Raises:
        DataError: the file is missing, damaged or no JSON object.
    """
    for number, url, value in read_json_entries(path):
        source_id = f"{path.name}:{number}"
        if isinstance(value, RepeatedKey):
            yield Reject(source_id=source_id, reason="invalid_row", detail=f"key {value.key} stands there twice")
            continue
        try:
            yield _to_document(source_id, url, value, finder, max_text_chars)
        except ValueError as error:
            yield Reject(source_id=source_id, reason="invalid_row", detail=_describe(error))


def _to_document(source_id: str, url: str, value: Any, finder: PictureFinder, max_chars: int) -> RawDocument:  # noqa: ANN401 - JSON
    entry = _Entry.model_validate(value)
    check_id("the entry's URL", url)
    if len(entry.section_titles) != len(entry.section_texts):
        raise ValueError(f"{len(entry.section_titles)} section titles, {len(entry.section_texts)} section texts")
    pictures = dict.fromkeys(path for image in entry.image_urls for path in finder.find_encyclopedia_picture(image))
    return RawDocument(
        source_id=source_id,
        doc_id=url,
        title=entry.title,
        text=join_sections(entry.section_texts, max_chars),
        image_paths=tuple(pictures),
    )


def join_sections(section_texts: list[str], max_chars: int) -> str:
    """Return the sections with text, one to a line, cut after `max_chars` characters."""
    kept: list[str] = []
    num_chars = 0
    for text in section_texts:
        if num_chars >= max_chars:
            break
        if stripped := text.strip():
            kept.append(stripped)
            num_chars += len(stripped) + 1
    return "\n".join(kept)[:max_chars].rstrip()


def _describe(error: ValueError) -> str:
    if not isinstance(error, ValidationError):
        return str(error)
    problems = error.errors(include_url=False, include_input=False)
    return "; ".join(f"{'.'.join(map(str, problem['loc'])) or 'entry'}: {problem['msg']}" for problem in problems)
