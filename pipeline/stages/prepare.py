"""prepare: raw data -> canonical tables; every row left out is listed with its reason.

`pipeline.sources` reads and judges. Above `data.max_reject_rate` or `data.max_missing_image_rate` the stage
fails and writes nothing.
"""

from __future__ import annotations

from collections import Counter
from functools import partial

from pipeline.config import Params
from pipeline.files.images import ImageError
from pipeline.files.store import (
    replace_dir,
    save_documents,
    save_ids,
    save_qrels,
    save_queries,
    save_rejects,
    write_json,
    write_text,
)
from pipeline.runs.tracking import StageRun
from pipeline.sources import RawQuery, open_source
from pipeline.sources.judging.inspection import ImageReport
from pipeline.sources.judging.judgement import judge
from pipeline.sources.judging.validation import validate_tables
from pipeline.sources.judging.verdict import Judgement, refuse_unusable
from pipeline.types import SPLITS, Box, Qrel, Query
from pipeline.workspace import Workspace


def run(params: Params, workspace: Workspace, run: StageRun) -> dict[str, float]:
    """Write queries, documents, qrels and rejects as Parquet, the outcome of the checks as validation.json.

    A published source also leaves `needed_images.txt`: the files that its queries need.

    Returns:
        num_queries (and per split), num_documents, num_qrels, num_rejected (raw rows left out or cut short)
        and reject_rate (num_rejected over the raw rows). A published source also counts num_dropped (by its
        protocol) and num_missing_images, neither of them in num_rejected, and missing_image_rate.

    Raises:
        DataError: a raw file is missing or empty, more rows are rejected than allowed, or no train or no test query
            is left.
    """
    source = open_source(params.data, workspace.data_dir)
    with replace_dir(workspace.tables_dir) as folder:
        judged = judge(source, params.data, workspace.data_dir, partial(save_documents, folder / "documents.parquet"))
        refuse_unusable(judged, params.data, workspace.data_dir)
        qrels = [
            Qrel(query_id=query.query_id, doc_id=doc_id)
            for query in judged.kept_queries
            for doc_id in query.relevant_doc_ids
        ]
        validation = validate_tables(judged)
        validation["num_rows"] = judged.num_rows
        validation["rejects"] = dict(sorted(Counter(reject.reason for reject in judged.rejects).items()))
        save_queries(folder / "queries.parquet", (_to_query(query, judged.images) for query in judged.kept_queries))
        save_qrels(folder / "qrels.parquet", qrels)
        save_rejects(folder / "rejects.parquet", judged.rejects)
        if source.census is not None:
            validation["images"] = source.census.summarise()
            validation["unusable_images"] = source.census.name_unusable()
            write_text(folder / "needed_images.txt", "".join(f"{path}\n" for path in source.census.list_needed()))
        if params.data.faiss_index is not None:
            save_ids(folder / "document_order.parquet", judged.ledger.list_by_row())
        write_json(folder / "validation.json", validation)
    run.log_dict(validation, "validation.json")
    return _measure(judged, len(qrels), published=source.census is not None)


def _measure(judged: Judgement, num_qrels: int, *, published: bool) -> dict[str, float]:
    num_by_split = Counter(query.split for query in judged.kept_queries)
    figures = {
        "num_queries": float(len(judged.kept_queries)),
        **{f"num_queries_{split}": float(num_by_split[split]) for split in SPLITS},
        "num_documents": float(sum(judged.ledger.kept)),
        "num_qrels": float(num_qrels),
        "num_rejected": float(judged.num_rejected),
        "reject_rate": judged.reject_rate,
    }
    if published:
        figures["num_dropped"] = float(judged.num_dropped)
        figures["num_missing_images"] = float(judged.num_missing_images)
        figures["missing_image_rate"] = judged.missing_image_rate
    return figures


def _to_query(query: RawQuery, images: ImageReport) -> Query:
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
