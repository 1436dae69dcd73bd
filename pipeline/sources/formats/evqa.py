"""Encyclopedic VQA, and EchoSight's CSV files in the same columns, by EchoSight's single-hop protocol.

Rows of type 2_hop are left out, the first image id counts, and a query of the test split is `E-VQA_<row>`, the row
counted from 0 after that filter; other splits carry their name in the id, so that ids stay unique. A query's one
relevant document is the entry whose URL equals `wikipedia_url`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from pipeline.sources import RawDocument, RawQuery
from pipeline.sources.formats.infoseek import read_data_splits
from pipeline.sources.formats.knowledge_base import read_knowledge_base
from pipeline.sources.formats.layout import SourceFiles
from pipeline.sources.formats.pictures import PictureFinder
from pipeline.sources.formats.streams import read_csv_records
from pipeline.sources.judging.ids import check_id
from pipeline.types import Reject, Split

COLUMNS: Final = (
    "question", "answer", "dataset_image_ids", "dataset_name", "dataset_category_id", "question_type",
    "wikipedia_url", "wikipedia_title", "evidence", "evidence_section_id", "evidence_section_title",
    "encyclopedic_vqa_split", "question_original", "wikipedia_url_used_in_train",
)  # fmt: skip
TWO_HOP: Final = "2_hop"
EVQA_TYPES: Final = frozenset({"templated", "automatic", "multi_answer", TWO_HOP})
EVQA_DATASETS: Final = frozenset({"landmarks", "inaturalist"})
# Which iNaturalist map names the pictures of an E-VQA split.
INATURALIST_SPLITS: Final[Mapping[str, str]] = {"train": "train", "val": "val", "test": "val"}
ENTITY_TAGS: Final[Mapping[str, str | None]] = {"True": "seen", "False": "unseen", "0": None}


class EvqaSource:
    """Reads E-VQA's annotation files and knowledge base."""

    datasets: frozenset[str] = EVQA_DATASETS
    protocol_reasons: frozenset[str] = frozenset({"two_hop", "split_leak", "split_lookalike"})

    def __init__(self, files: SourceFiles, max_text_chars: int) -> None:
        self._files = files
        self._max_text_chars = max_text_chars
        self._finder = PictureFinder(files.data_dir, files.images_dir)
        self.census = self._finder.census

    def read_documents(self) -> Iterator[RawDocument | Reject]:
        """Yield the entries of the knowledge base; nothing where there is only an annotation file."""
        if self._files.knowledge_base is not None:
            yield from read_knowledge_base(self._files.knowledge_base, self._finder, self._max_text_chars)

    def read_queries(self) -> Iterator[RawQuery | Reject]:
        """Yield the rows of the annotation files, split by split."""
        for inaturalist_split, wanted_ids in self._collect_inaturalist_ids().items():
            self._finder.load_inaturalist_names(inaturalist_split, wanted_ids)
        for split, path in self._files.annotations.items():
            yield from self._read_split(split, path)

    def _collect_inaturalist_ids(self) -> dict[str, set[str]]:
        wanted: dict[str, set[str]] = {name: set() for name in INATURALIST_SPLITS.values()}
        for path in self._files.annotations.values():
            for _, cells in read_csv_records(path, COLUMNS):
                if not isinstance(cells, str) and cells["dataset_name"] == "inaturalist":
                    names = INATURALIST_SPLITS.get(cells["encyclopedic_vqa_split"])
                    if names is not None:
                        wanted[names].add(_first_image_id(cells))
        return wanted

    def _read_split(self, split: Split, path: Path) -> Iterator[RawQuery | Reject]:
        data_splits = read_data_splits(path.parent)
        num_single_hop = 0
        for row, cells in read_csv_records(path, COLUMNS):
            source_id = f"{path.name}:{row}"
            if isinstance(cells, str):
                yield Reject(source_id=source_id, reason="invalid_row", detail=cells)
                continue
            if cells["question_type"] == TWO_HOP:
                yield Reject(source_id=source_id, reason="two_hop", detail="single-hop questions only")
                continue
            number, num_single_hop = num_single_hop, num_single_hop + 1
            yield self._to_query(source_id, split, number, cells, data_splits)

    def _to_query(
        self, source_id: str, split: Split, number: int, cells: Mapping[str, str], data_splits: Mapping[str, str]
    ) -> RawQuery | Reject:
        bad_column = _find_undecoded(cells)
        if bad_column is not None:
            return Reject(source_id=source_id, reason="not_utf8", detail=f"{bad_column} holds bytes that are not UTF-8")
        try:
            tags = _read_tags(cells, self.datasets)
            query_id = _name_query(split, number, cells)
            if query_id in data_splits:
                tags["split"] = data_splits[query_id]
            _check_url(cells["wikipedia_url"])
            image_path = self._finder.find_query_picture(
                cells["dataset_name"],
                _first_image_id(cells),
                inaturalist_split=INATURALIST_SPLITS.get(cells["encyclopedic_vqa_split"], ""),
            )
        except ValueError as error:
            return Reject(source_id=source_id, reason="invalid_row", detail=str(error))
        except LookupError as error:
            return Reject(source_id=source_id, reason="image_missing", detail=str(error.args[0]))
        return RawQuery(
            source_id=source_id,
            query_id=query_id,
            split=self._files.val_cut.place(split, cells["wikipedia_url"]),
            question=cells["question"],
            image_path=image_path,
            relevant_doc_ids=(cells["wikipedia_url"],),
            tags=tags,
        )


class EchosightSource(EvqaSource):
    """Reads EchoSight's files: InfoSeek in E-VQA's columns."""

    datasets = EVQA_DATASETS | {"infoseek"}


def _first_image_id(cells: Mapping[str, str]) -> str:
    return cells["dataset_image_ids"].split("|")[0].strip()


def _find_undecoded(cells: Mapping[str, str]) -> str | None:
    """Return the first column whose bytes were not UTF-8: they came through as lone surrogates."""
    return next((name for name, cell in cells.items() if any("\ud800" <= sign <= "\udfff" for sign in cell)), None)


def _read_tags(cells: Mapping[str, str], datasets: frozenset[str]) -> dict[str, str]:
    dataset, question_type = cells["dataset_name"], cells["question_type"]
    if dataset not in datasets:
        hint = "; EchoSight's files for InfoSeek are read with source echosight" if dataset == "infoseek" else ""
        raise ValueError(f"dataset_name {dataset!r} is none of {', '.join(sorted(datasets))}{hint}")
    if dataset in EVQA_DATASETS:
        if question_type not in EVQA_TYPES:
            raise ValueError(f"question_type {question_type!r} is none of {', '.join(sorted(EVQA_TYPES))}")
        if cells["encyclopedic_vqa_split"] not in INATURALIST_SPLITS:
            raise ValueError(f"encyclopedic_vqa_split {cells['encyclopedic_vqa_split']!r} is none of train, val, test")
    used_in_train = cells["wikipedia_url_used_in_train"]
    if used_in_train not in ENTITY_TAGS:
        raise ValueError(f"wikipedia_url_used_in_train {used_in_train!r} is neither True nor False")
    entity = ENTITY_TAGS[used_in_train]
    tags = {"dataset": dataset, "question_type": question_type}
    return tags if entity is None else {**tags, "entity": entity}


def _name_query(split: Split, number: int, cells: Mapping[str, str]) -> str:
    if cells["dataset_name"] == "infoseek":
        data_id = cells.get("data_id", "")
        check_id("data_id", data_id)
        return data_id
    return f"E-VQA_{number}" if split == "test" else f"E-VQA_{split}_{number}"


def _check_url(url: str) -> None:
    check_id("wikipedia_url", url)
    if "|" in url:
        raise ValueError(f"a single-hop question has one wikipedia_url, this one has {url.count('|') + 1}")
