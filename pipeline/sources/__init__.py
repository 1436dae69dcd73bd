"""Where raw data come from: an adapter streams raw rows as candidates, or as rejects that name file and row.

A candidate has the right shape and nothing more: whether its pictures decode, its ids are unique and its
relevant documents exist is found out by `judgement`, in the same way for every source.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from pipeline.config import DataParams
from pipeline.errors import ConfigError
from pipeline.sources.pictures import ImageCensus
from pipeline.types import Reject, Split


@dataclass(frozen=True, kw_only=True, slots=True)
class DocumentCandidate:
    """A raw document; `source_id` names file and row, such as `documents.jsonl:17`."""

    source_id: str
    doc_id: str
    title: str
    text: str
    image_paths: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class QueryCandidate:
    """A raw query with its relevance judgements; `target_box` is as written, not yet a Box."""

    source_id: str
    query_id: str
    split: Split
    question: str
    image_path: str
    relevant_doc_ids: tuple[str, ...]
    target_box: tuple[float, float, float, float] | None = None
    tags: Mapping[str, str] = field(default_factory=dict)


class Source(Protocol):
    """Streams the raw rows of one data folder, in file order; one file holds all documents.

    Attributes:
        census: pictures that ids asked for, so far; None where rows name files themselves.
        protocol_reasons: reject reasons that the published protocol asks for; `data.max_reject_rate` does
            not count them.
    """

    census: ImageCensus | None
    protocol_reasons: frozenset[str]

    def read_documents(self) -> Iterator[DocumentCandidate | Reject]:
        """Yield one item per raw document row; raises DataError if the file is missing or cannot be read."""

    def read_queries(self) -> Iterator[QueryCandidate | Reject]:
        """Yield one item per raw query row; raises DataError if a file is missing or cannot be read."""


def open_source(params: DataParams, data_dir: Path) -> Source:
    """Return the adapter that `data.source` names, reading from `data_dir`.

    Raises:
        DataError: a file that the source needs is missing.
    """
    from pipeline.sources.jsonl import JsonlSource
    from pipeline.sources.layout import find_files

    if params.source == "jsonl":
        return JsonlSource(data_dir)
    from pipeline.sources.evqa import CsvSource
    from pipeline.sources.infoseek import InfoseekSource

    published: dict[str, Callable[..., Source]] = {
        "evqa": CsvSource,
        "echosight": CsvSource,
        "infoseek": InfoseekSource,
    }
    if params.source not in published:
        raise ConfigError(f"data.source: there is no source {params.source!r}")
    return published[params.source](find_files(params, data_dir), params.max_text_chars)
