"""InfoSeek as published: questions and entities as JSON lines, Wiki6M as encyclopedia, OVEN pictures.

A query's one relevant document is its entity, from the `withkb` file that lies beside the annotation file.
`data_split` becomes the tag `split`: `unseen_question` or `unseen_entity` in val.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field

from pipeline.errors import DataError
from pipeline.sources import RawDocument, RawQuery
from pipeline.sources.formats.jsonl import Identifier, parse_row
from pipeline.sources.formats.knowledge_base import join_sections
from pipeline.sources.formats.layout import SourceFiles
from pipeline.sources.formats.pictures import PictureFinder
from pipeline.sources.formats.streams import read_lines
from pipeline.types import Reject, Split

EntityId = Annotated[str, Field(pattern=r"^Q[1-9]\d{0,8}$")]

# The largest entity number that EntityId allows needs 125 MB as one bit each; today's need 17 MB.
BITS_PER_BYTE: Final = 8


class _Row(BaseModel):
    """Published rows carry more than is read here: `answer` and `answer_eval` belong to answer scoring."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)


class _Question(_Row):
    data_id: Identifier
    image_id: str
    question: str
    data_split: str


class _Entity(_Row):
    data_id: Identifier
    entity_id: EntityId


class _Article(_Row):
    wikidata_id: EntityId
    wikipedia_title: str
    wikipedia_content: str | None = None
    wikipedia_summary: str | None = None
    wikipedia_image_url: str | None = None


class InfoseekSource:
    """Reads InfoSeek's published files."""

    protocol_reasons: frozenset[str] = frozenset({"repeated_entity", "split_leak", "split_lookalike"})

    def __init__(self, files: SourceFiles, max_text_chars: int) -> None:
        self._files = files
        self._max_text_chars = max_text_chars
        self._finder = PictureFinder(files.data_dir, files.images_dir)
        self.census = self._finder.census

    def read_documents(self) -> Iterator[RawDocument | Reject]:
        """Yield Wiki6M's articles; a repeated entity is left out. Nothing where there is only an annotation file."""
        path = self._files.knowledge_base
        if path is None:
            return
        seen = _EntitySet()
        for number, line in read_lines(path):
            source_id = f"{path.name}:{number}"
            row = parse_row(source_id, line, _Article)
            if isinstance(row, Reject):
                yield row
            elif not seen.add(row.wikidata_id):
                detail = f"{row.wikidata_id} stands in an earlier row"
                yield Reject(source_id=source_id, reason="repeated_entity", detail=detail)
            else:
                yield self._to_document(source_id, row)

    def read_queries(self) -> Iterator[RawQuery | Reject]:
        """Yield the questions, split by split.

        Raises:
            DataError: the file with the entities is missing, as it is for the published test and human files.
        """
        for split, path in self._files.annotations.items():
            entities = self._read_entities(path)
            for number, line in read_lines(path):
                source_id = f"{path.name}:{number}"
                row = parse_row(source_id, line, _Question)
                yield row if isinstance(row, Reject) else self._to_query(source_id, split, row, entities)

    def _read_entities(self, annotations: Path) -> Mapping[str, str] | None:
        path = annotations.with_name(f"{annotations.stem}_withkb.jsonl")
        if not path.is_file():
            if self._files.knowledge_base is None:
                return None
            raise DataError("is missing; without entities retrieval cannot be scored", path=path)
        entities: dict[str, str] = {}
        for number, line in read_lines(path):
            row = parse_row(f"{path.name}:{number}", line, _Entity)
            if isinstance(row, Reject):
                raise DataError(row.detail, path=path, row=number)
            if entities.setdefault(row.data_id, row.entity_id) != row.entity_id:
                message = f"gives {row.data_id} the entity {row.entity_id}, an earlier row {entities[row.data_id]}"
                raise DataError(message, path=path, row=number)
        return entities

    def _to_query(
        self, source_id: str, split: Split, row: _Question, entities: Mapping[str, str] | None
    ) -> RawQuery | Reject:
        try:
            image_path = self._finder.find_query_picture("infoseek", row.image_id, inaturalist_split="")
        except ValueError as error:
            return Reject(source_id=source_id, reason="invalid_row", detail=f"image_id: {error}")
        entity_id = None if entities is None else entities.get(row.data_id)
        if entities is not None and entity_id is None:
            detail = f"the withkb file names no entity for {row.data_id}"
            return Reject(source_id=source_id, reason="no_relevant_document", detail=detail)
        return RawQuery(
            source_id=source_id,
            query_id=row.data_id,
            split=split if entity_id is None else self._files.val_cut.place(split, entity_id),
            question=row.question,
            image_path=image_path,
            relevant_doc_ids=() if entity_id is None else (entity_id,),
            tags={"split": _shorten_split(row.data_split)},
        )

    def _to_document(self, source_id: str, row: _Article) -> RawDocument:
        text = join_sections([row.wikipedia_summary or row.wikipedia_content or ""], self._max_text_chars)
        has_picture = bool(row.wikipedia_image_url)
        return RawDocument(
            source_id=source_id,
            doc_id=row.wikidata_id,
            title=row.wikipedia_title,
            text=text,
            image_paths=self._finder.find_infobox_picture(row.wikidata_id) if has_picture else (),
        )


def read_data_splits(folder: Path) -> dict[str, str]:
    """Return data id -> seen/unseen split from `infoseek_val.jsonl`, if that lies in this folder.

    EchoSight's CSV files do not say which InfoSeek questions are unseen_question and which unseen_entity.

    Raises:
        DataError: the file is there and a row of it is not as published.
    """
    path = folder / "infoseek_val.jsonl"
    if not path.is_file():
        return {}
    splits: dict[str, str] = {}
    for number, line in read_lines(path):
        row = parse_row(f"{path.name}:{number}", line, _Question)
        if isinstance(row, Reject):
            raise DataError(row.detail, path=path, row=number)
        splits[row.data_id] = _shorten_split(row.data_split)
    return splits


def _shorten_split(data_split: str) -> str:
    return re.sub(r"^(val|test|human)_", "", data_split)


class _EntitySet:
    """Which entities have been seen, one bit each: exact, and small for millions."""

    def __init__(self) -> None:
        self._bits = bytearray()

    def add(self, entity_id: str) -> bool:
        """Add an entity and return whether it is new."""
        place, bit = divmod(int(entity_id[1:]), BITS_PER_BYTE)
        if place >= len(self._bits):
            self._bits.extend(bytes(place + 1 - len(self._bits)))
        if self._bits[place] >> bit & 1:
            return False
        self._bits[place] |= 1 << bit
        return True
