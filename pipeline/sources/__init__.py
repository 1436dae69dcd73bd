"""Where raw data come from: an adapter streams raw rows as candidates, or as rejects that name file and row.

A candidate has the right shape and nothing more: whether its pictures decode, its ids are unique and its
relevant documents exist is for the prepare stage to find out, in the same way for every source.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from pipeline.config import DataParams
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
    """Streams the raw rows of one data folder, in file order."""

    def read_documents(self) -> Iterator[DocumentCandidate | Reject]:
        """Yield one item per raw document row; raises DataError if the file is missing or cannot be read."""

    def read_queries(self) -> Iterator[QueryCandidate | Reject]:
        """Yield one item per raw query row; raises DataError if the file is missing or cannot be read."""


def open_source(params: DataParams, data_dir: Path) -> Source:
    """Return the adapter that `data.source` names, reading from `data_dir`."""
    from pipeline.sources.jsonl import JsonlSource

    sources: dict[str, Callable[[Path], Source]] = {"jsonl": JsonlSource}
    return sources[params.source](data_dir)
