"""Table schemas, and reads and writes that are never seen half-done.

`pipeline.files.atomic` puts every file in its place, and its `replace_dir`, `replace_file`, `writing` and `sweep` are
to be had here too. A box is a nullable list of four numbers, a mapping of tags is map<string, string>; `None` stays
null, never a number.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.disk_faults import find_disk_fault
from pipeline.errors import DataError, StageError
from pipeline.files.atomic import replace_dir as replace_dir
from pipeline.files.atomic import replace_file as replace_file
from pipeline.files.atomic import sweep as sweep
from pipeline.files.atomic import writing as writing
from pipeline.types import (
    Answer,
    Box,
    Crop,
    CurvePoint,
    Decision,
    Document,
    KeepFull,
    Malformed,
    Outcome,
    Pool,
    Qrel,
    Query,
    QueryResult,
    RegionLabel,
    Reject,
    Rollout,
)

Record = TypeVar("Record")
Row = dict[str, Any]

# Rows that are held at once while a table is written; the records may come from a generator.
_BATCH_ROWS = 32_768


@dataclass(frozen=True, slots=True)
class _Table(Generic[Record]):
    """One kind of table: its columns, the stage that writes it, and how a record becomes a row and back."""

    stage: str
    schema: pa.Schema
    to_row: Callable[[Record], Row]
    from_row: Callable[[Row], Record]

    def save(self, path: Path, records: Iterable[Record]) -> None:
        rows = (self.to_row(record) for record in records)
        with (
            replace_file(path) as partial,
            pq.ParquetWriter(partial, self.schema, compression="zstd") as writer,
        ):
            while batch := list(islice(rows, _BATCH_ROWS)):
                writer.write_table(pa.Table.from_pylist(batch, schema=self.schema))

    def load(self, path: Path) -> list[Record]:
        table = _read_table(path, stage=self.stage)
        if not table.schema.equals(self.schema):
            raise DataError(f"is a table of another version; run {self.stage} again", path=path)
        try:
            return [self.from_row(row) for row in table.to_pylist(maps_as_pydicts="strict")]
        except (TypeError, ValueError) as error:
            raise DataError(f"holds a row that is not as specified: {error}", path=path) from error


def _read_table(path: Path, *, stage: str) -> pa.Table:
    if not path.is_file():
        raise StageError(f"{path} is missing; run {stage} first")
    try:
        # ParquetFile reads this one file; read_table would take `key=value` folders above it for columns.
        with pq.ParquetFile(path) as file:
            return file.read()
    except (pa.ArrowException, OSError) as error:
        if fault := find_disk_fault(error):
            raise DataError(f"cannot be read: {fault.reason}", path=path) from error
        raise DataError(f"is no readable Parquet table; run {stage} again", path=path) from error


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 file in one step."""
    with replace_file(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: Path, content: object) -> None:
    """Write JSON in one step.

    Raises:
        ValueError: a number is not finite; JSON has no such number.
    """
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path, *, stage: str | None = None) -> Any:  # noqa: ANN401 - JSON is whatever it is
    """Read JSON.

    Args:
        path: the file.
        stage: the stage that writes it, named when it is missing.

    Raises:
        StageError: the file is missing and `stage` is given.
        DataError: the file is missing or is no JSON.
    """
    if stage is not None and not path.is_file():
        raise StageError(f"{path} is missing; run {stage} first")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"cannot be read as JSON: {error}", path=path) from error


def create_vectors(path: Path, shape: tuple[int, int]) -> npt.NDArray[np.float32]:
    """Return a new .npy file of zeros (float32), mapped into memory to be filled.

    Its room is taken at once: a disk that is found full by a write to mapped memory ends the process with SIGBUS.

    Raises:
        WriteError: the disk has no room for it.
    """
    with writing(path):
        vectors = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return vectors


def _box_to_list(box: Box | None) -> list[float] | None:
    return None if box is None else list(box.as_tuple())


def _box_from_list(values: list[float] | None) -> Box | None:
    return None if values is None else Box(*values)


def _to_row(record: object) -> Row:
    return {name: getattr(record, name) for name in record.__slots__}  # type: ignore[attr-defined]


def _boxed(record: object, name: str) -> Row:
    row = _to_row(record)
    return {**row, name: _box_to_list(row[name])}


def _text(name: str, *, nullable: bool = False) -> pa.Field:
    return pa.field(name, pa.string(), nullable=nullable)


def _int(name: str, *, nullable: bool = False) -> pa.Field:
    return pa.field(name, pa.int64(), nullable=nullable)


def _float(name: str, *, nullable: bool = False) -> pa.Field:
    return pa.field(name, pa.float64(), nullable=nullable)


def _list(name: str, kind: pa.DataType, *, nullable: bool = False) -> pa.Field:
    # Items are named `element` and nullable because that is how Parquet gives them back.
    return pa.field(name, pa.list_(pa.field("element", kind)), nullable=nullable)


_QUERIES: _Table[Query] = _Table(
    stage="prepare",
    schema=pa.schema(
        [
            _text("query_id"),
            _text("split"),
            _text("question"),
            _text("image_path"),
            _int("width_px"),
            _int("height_px"),
            _list("target_box", pa.float64(), nullable=True),
            pa.field("tags", pa.map_(pa.string(), pa.string()), nullable=False),
        ]
    ),
    to_row=lambda query: {**_boxed(query, "target_box"), "tags": sorted(query.tags.items())},
    from_row=lambda row: Query(**{**row, "target_box": _box_from_list(row["target_box"])}),
)

_DOCUMENTS: _Table[Document] = _Table(
    stage="prepare",
    schema=pa.schema([_text("doc_id"), _text("title"), _text("text"), _list("image_paths", pa.string())]),
    to_row=_to_row,
    from_row=lambda row: Document(**{**row, "image_paths": tuple(row["image_paths"])}),
)

_QRELS: _Table[Qrel] = _Table(
    stage="prepare",
    schema=pa.schema([_text("query_id"), _text("doc_id")]),
    to_row=_to_row,
    from_row=lambda row: Qrel(**row),
)

_REJECTS: _Table[Reject] = _Table(
    stage="prepare",
    schema=pa.schema([_text("source_id"), _text("reason"), _text("detail")]),
    to_row=_to_row,
    from_row=lambda row: Reject(**row),
)

_POOLS: _Table[Pool] = _Table(
    stage="retrieve",
    schema=pa.schema(
        [
            _text("query_id"),
            _text("split"),
            _list("doc_ids", pa.string()),
            _list("scores", pa.float64()),
            _list("relevance", pa.bool_()),
            _int("num_relevant"),
        ]
    ),
    to_row=_to_row,
    from_row=lambda row: Pool(
        **{
            **row,
            "doc_ids": tuple(row["doc_ids"]),
            "scores": tuple(row["scores"]),
            "relevance": tuple(row["relevance"]),
        }
    ),
)

_OUTCOME_FIELDS = (
    _int("first_rank", nullable=True),
    _float("reciprocal_rank"),
    _float("ndcg"),
    _float("margin", nullable=True),
)

_OUTCOMES: _Table[tuple[str, Outcome]] = _Table(
    stage="retrieve",
    schema=pa.schema([_text("query_id"), *_OUTCOME_FIELDS]),
    to_row=lambda pair: {"query_id": pair[0], **_to_row(pair[1])},
    from_row=lambda row: (row.pop("query_id"), Outcome(**row)),
)

_LABELS: _Table[RegionLabel] = _Table(
    stage="warmup",
    schema=pa.schema([_text("query_id"), _list("box", pa.float64(), nullable=True), _float("gain")]),
    to_row=lambda label: _boxed(label, "box"),
    from_row=lambda row: RegionLabel(**{**row, "box": _box_from_list(row["box"])}),
)

_ROLLOUTS: _Table[Rollout] = _Table(
    stage="train",
    schema=pa.schema(
        [
            _int("step"),
            _text("query_id"),
            _text("arm"),
            _text("completion"),
            _text("decision"),
            _list("box", pa.float64(), nullable=True),
            _float("reward"),
        ]
    ),
    to_row=lambda rollout: _boxed(rollout, "box"),
    from_row=lambda row: Rollout(**{**row, "box": _box_from_list(row["box"])}),
)

_CURVES: _Table[CurvePoint] = _Table(
    stage="warmup and train",
    schema=pa.schema([_int("step"), _text("metric"), _float("value")]),
    to_row=_to_row,
    from_row=lambda row: CurvePoint(**row),
)


def _answer_to_row(answer: Answer) -> Row:
    decision = answer.decision
    boxes = [list(decision.box.as_tuple())] if isinstance(decision, Crop) else []
    kind = "malformed" if isinstance(decision, Malformed) else "region" if boxes else "full"
    reason = decision.reason if isinstance(decision, Malformed) else None
    return {**_to_row(answer), "decision": kind, "boxes": boxes, "reason": reason}


def _answer_from_row(row: Row) -> Answer:
    kind, boxes, reason = row.pop("decision"), row.pop("boxes"), row.pop("reason")
    decision: Decision = KeepFull() if kind == "full" else Malformed(reason)
    if kind == "region":
        (box,) = boxes
        decision = Crop(Box(*box))
    return Answer(**row, decision=decision)


_ANSWERS: _Table[Answer] = _Table(
    stage="answer",
    schema=pa.schema(
        [
            _text("policy"),
            _text("way"),
            _text("split"),
            _text("query_id"),
            _int("sample", nullable=True),
            _text("decision"),
            # Several, so that a decision of more than one region is no other table.
            _list("boxes", pa.list_(pa.field("element", pa.float64()))),
            _text("reason", nullable=True),
            _text("completion"),
            _float("p_region"),
        ]
    ),
    to_row=_answer_to_row,
    from_row=_answer_from_row,
)

_RESULTS: _Table[QueryResult] = _Table(
    stage="evaluate",
    schema=pa.schema(
        [
            _text("query_id"),
            _text("method"),
            _text("decision"),
            _list("box", pa.float64(), nullable=True),
            _list("doc_ids", pa.string()),
            _list("scores", pa.float64()),
            *_OUTCOME_FIELDS,
            _float("iou", nullable=True),
            _text("completion", nullable=True),
        ]
    ),
    to_row=lambda result: _boxed(result, "box"),
    from_row=lambda row: QueryResult(
        **{
            **row,
            "box": _box_from_list(row["box"]),
            "doc_ids": tuple(row["doc_ids"]),
            "scores": tuple(row["scores"]),
        }
    ),
)


def save_queries(path: Path, queries: Iterable[Query]) -> None:
    """Write tables/queries.parquet."""
    _QUERIES.save(path, queries)


def load_queries(path: Path) -> list[Query]:
    """Read tables/queries.parquet, in the order written; raises StageError if prepare has not run."""
    return _QUERIES.load(path)


def save_documents(path: Path, documents: Iterable[Document]) -> None:
    """Write tables/documents.parquet."""
    _DOCUMENTS.save(path, documents)


def load_documents(path: Path) -> list[Document]:
    """Read tables/documents.parquet, in the order written; raises StageError if prepare has not run."""
    return _DOCUMENTS.load(path)


def save_qrels(path: Path, qrels: Iterable[Qrel]) -> None:
    """Write tables/qrels.parquet."""
    _QRELS.save(path, qrels)


def load_qrels(path: Path) -> list[Qrel]:
    """Read tables/qrels.parquet; raises StageError if prepare has not run."""
    return _QRELS.load(path)


def save_rejects(path: Path, rejects: Iterable[Reject]) -> None:
    """Write tables/rejects.parquet."""
    _REJECTS.save(path, rejects)


def load_rejects(path: Path) -> list[Reject]:
    """Read tables/rejects.parquet; raises StageError if prepare has not run."""
    return _REJECTS.load(path)


def save_pools(path: Path, pools: Iterable[Pool]) -> None:
    """Write pools/pools.parquet."""
    _POOLS.save(path, pools)


def load_pools(path: Path) -> list[Pool]:
    """Read pools/pools.parquet, in the order written; raises StageError if retrieve has not run."""
    return _POOLS.load(path)


def save_outcomes(path: Path, outcomes: Mapping[str, Outcome]) -> None:
    """Write pools/baseline.parquet: query id -> outcome of the full image."""
    _OUTCOMES.save(path, outcomes.items())


def load_outcomes(path: Path) -> dict[str, Outcome]:
    """Read pools/baseline.parquet, in the order written; raises StageError if retrieve has not run."""
    return dict(_OUTCOMES.load(path))


def save_labels(path: Path, labels: Iterable[RegionLabel]) -> None:
    """Write labels/labels.parquet."""
    _LABELS.save(path, labels)


def load_labels(path: Path) -> list[RegionLabel]:
    """Read labels/labels.parquet; raises StageError if warmup has not run."""
    return _LABELS.load(path)


def save_rollouts(path: Path, rollouts: Iterable[Rollout]) -> None:
    """Write rollouts/rollouts.parquet."""
    _ROLLOUTS.save(path, rollouts)


def load_rollouts(path: Path) -> list[Rollout]:
    """Read rollouts/rollouts.parquet; raises StageError if train has not run."""
    return _ROLLOUTS.load(path)


def save_curves(path: Path, points: Iterable[CurvePoint]) -> None:
    """Write curves/STAGE.parquet."""
    _CURVES.save(path, points)


def load_curves(path: Path) -> list[CurvePoint]:
    """Read curves/STAGE.parquet; raises StageError if the training has not run."""
    return _CURVES.load(path)


def save_answers(path: Path, answers: Iterable[Answer]) -> None:
    """Write answers/answers.parquet."""
    _ANSWERS.save(path, answers)


def load_answers(path: Path) -> list[Answer]:
    """Read answers/answers.parquet, in the order written; raises StageError if answer has not run."""
    return _ANSWERS.load(path)


def save_results(path: Path, results: Iterable[QueryResult]) -> None:
    """Write evaluation/results.parquet."""
    _RESULTS.save(path, results)


def load_results(path: Path) -> list[QueryResult]:
    """Read evaluation/results.parquet; raises StageError if evaluate has not run."""
    return _RESULTS.load(path)


def save_ids(path: Path, ids: Iterable[str]) -> None:
    """Write one column `id`: the order of the rows of a vector file that lies beside it."""
    schema = pa.schema([_text("id")])
    rest = iter(ids)
    with replace_file(path) as partial, pq.ParquetWriter(partial, schema, compression="zstd") as writer:
        while batch := list(islice(rest, _BATCH_ROWS)):
            writer.write_table(pa.table({"id": pa.array(batch, pa.string())}, schema=schema))


def load_ids(path: Path, *, stage: str) -> list[str]:
    """Read ids in the order written; `stage` is the one that writes them, named when the file is missing."""
    table = _read_table(path, stage=stage)
    if table.schema.names != ["id"]:
        raise DataError(f"is a table of another version; run {stage} again", path=path)
    return [str(value) for value in table.column("id").to_pylist()]
