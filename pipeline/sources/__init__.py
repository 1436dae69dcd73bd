"""Where raw data come from: an adapter streams raw documents and queries, or rejects that name file and row.

A raw row has the right shape and nothing more: whether its pictures decode, its ids are unique and its
relevant documents exist is found out by `judgement`, in the same way for every source.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from pipeline.config import DataParams
from pipeline.sources.formats.pictures import ImageCensus
from pipeline.types import Reject, Split

if TYPE_CHECKING:
    from pipeline.sources.formats.layout import SourceFiles


@dataclass(frozen=True, kw_only=True, slots=True)
class RawDocument:
    """A raw document; `source_id` names file and row, such as `documents.jsonl:17`."""

    source_id: str
    doc_id: str
    title: str
    text: str
    image_paths: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class RawQuery:
    """A raw query with the ids of its relevant documents; `target_box` is as written, not yet a Box."""

    source_id: str
    query_id: str
    split: Split
    question: str
    image_path: str
    relevant_doc_ids: tuple[str, ...]
    target_box: tuple[float, float, float, float] | None = None
    tags: Mapping[str, str] = field(default_factory=dict)


class Source(Protocol):
    """Streams the raw rows of one data folder, in file order; one file holds all documents."""

    @property
    def census(self) -> ImageCensus | None:
        """Pictures that ids asked for, so far; None where rows name files themselves."""

    @property
    def protocol_reasons(self) -> frozenset[str]:
        """Reject reasons that the published protocol asks for; `data.max_reject_rate` does not count them."""

    def read_documents(self) -> Iterator[RawDocument | Reject]:
        """Yield one item per raw document row; raises DataError if the file is missing or cannot be read."""

    def read_queries(self) -> Iterator[RawQuery | Reject]:
        """Yield one item per raw query row; raises DataError if a file is missing or cannot be read."""


def open_source(params: DataParams, path: Path) -> Source:
    """Return the adapter that `data.source` names.

    Args:
        params: which source, and which files of it.
        path: the data folder; or one annotation file, which is then all there is to read: no documents, and
            no picture is looked for.

    Raises:
        DataError: a file that the source needs is missing.
    """
    from pipeline.sources.formats.evqa import EchosightSource, EvqaSource
    from pipeline.sources.formats.infoseek import InfoseekSource
    from pipeline.sources.formats.jsonl import JsonlSource
    from pipeline.sources.formats.layout import find_files, take_annotation_file

    alone = path.is_file()
    if params.source == "jsonl":
        return JsonlSource(path.parent, queries_file=path.name) if alone else JsonlSource(path)
    published: dict[str, Callable[[SourceFiles, int], Source]] = {
        "evqa": EvqaSource,
        "echosight": EchosightSource,
        "infoseek": InfoseekSource,
    }
    files = take_annotation_file(params, path) if alone else find_files(params, path)
    return published[params.source](files, params.max_text_chars)
