"""Great Expectations over the raw rows as read and over what prepare keeps of them.

As read, a failed expectation tells what is wrong with the data and where; the rows at fault are rejected. As
kept, every expectation must hold: a second witness, written apart from the code that rejects.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.errors import DataError
from pipeline.images import ImageError, ImageFacts
from pipeline.sources import DocumentCandidate, QueryCandidate
from pipeline.types import Box

if TYPE_CHECKING:
    import pandas as pd

MAX_ROWS_NAMED = 20

ImageReport = Mapping[str, ImageFacts | ImageError]


@dataclass(frozen=True, slots=True)
class Tables:
    """Documents and queries (with their relevance judgements) that are checked together."""

    documents: Sequence[DocumentCandidate]
    queries: Sequence[QueryCandidate]


def validate_tables(as_read: Tables, as_kept: Tables, images: ImageReport) -> dict[str, Any]:
    """Check both states of the tables.

    Args:
        as_read: every row that had the right shape.
        as_kept: what is left after rejection.
        images: what decoding found, by image path.

    Returns:
        `{"success", "as_read", "as_kept"}`, JSON-ready; each state lists its expectations with the number
        of rows that fail and the first of them by source id. `success` is that of `as_read`.

    Raises:
        DataError: the kept tables do not hold what prepare promises.
    """
    checked_read = _check(as_read, images)
    checked_kept = _check(as_kept, images)
    for result in checked_kept:
        if not result["success"]:
            rows = ", ".join(result["rows"])
            raise DataError(f"{result['table']}: {result['expectation']} does not hold for the rows kept: {rows}")
    return {
        "success": all(result["success"] for result in checked_read),
        "as_read": checked_read,
        "as_kept": checked_kept,
    }


def _check(tables: Tables, images: ImageReport) -> list[dict[str, Any]]:
    os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")
    logging.getLogger("great_expectations").setLevel(logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Great Expectations and what it imports use deprecated names
        import great_expectations as gx
        from great_expectations.data_context.types.base import ProgressBarsConfig
        from great_expectations.expectations.core.expect_column_values_to_be_in_set import (
            ExpectColumnValuesToBeInSet,
        )
        from great_expectations.expectations.core.expect_column_values_to_be_unique import (
            ExpectColumnValuesToBeUnique,
        )
        from great_expectations.expectations.core.expect_column_values_to_match_regex import (
            ExpectColumnValuesToMatchRegex,
        )

        # The import has just set this one to INFO.
        logging.getLogger("great_expectations.data_context.types.base").setLevel(logging.WARNING)

        def holds(column: str) -> ExpectColumnValuesToBeInSet:
            return ExpectColumnValuesToBeInSet(column=column, value_set=[True])

        suites = {
            "documents": (
                _document_frame(tables.documents, images),
                [
                    ExpectColumnValuesToBeUnique(column="doc_id"),
                    holds("images_decode"),
                    holds("image_or_text"),
                ],
            ),
            "queries": (
                _query_frame(tables.queries, images),
                [
                    ExpectColumnValuesToBeUnique(column="query_id"),
                    ExpectColumnValuesToMatchRegex(column="question", regex=r"\S"),
                    holds("image_decodes"),
                    holds("target_box_inside_image"),
                    holds("image_in_one_split"),
                    holds("some_relevant_document"),
                ],
            ),
            "qrels": (
                _qrel_frame(tables),
                [ExpectColumnValuesToBeUnique(column="pair"), holds("document_exists")],
            ),
        }
        context = gx.get_context(mode="ephemeral")
        context.variables.progress_bars = ProgressBarsConfig(globally=False)
        source = context.data_sources.add_pandas("tables")
        results: list[dict[str, Any]] = []
        for name, (frame, expectations) in suites.items():
            batch = source.add_dataframe_asset(name).add_batch_definition_whole_dataframe("all")
            outcome: Any = batch.get_batch({"dataframe": frame}).validate(
                gx.ExpectationSuite(name=name, expectations=expectations),
                result_format={"result_format": "COMPLETE", "unexpected_index_column_names": ["source_id"]},
            )
            results += [_summarise(name, len(frame), entry) for entry in outcome.to_json_dict()["results"]]
    return results


def _summarise(table: str, num_rows: int, entry: Mapping[str, Any]) -> dict[str, Any]:
    config, result = entry["expectation_config"], entry["result"]
    name = f"{config['type']}({config['kwargs']['column']})"
    if num_rows and "unexpected_count" not in result:
        raise RuntimeError(f"{table}: {name} could not be evaluated: {entry['exception_info']}")
    rows = [row["source_id"] for row in result.get("unexpected_index_list") or []]
    return {
        "table": table,
        "expectation": name,
        "success": bool(entry["success"]) or num_rows == 0,
        "num_rows": num_rows,
        "num_unexpected": int(result.get("unexpected_count", 0)),
        "rows": rows[:MAX_ROWS_NAMED],
    }


def _document_frame(documents: Sequence[DocumentCandidate], images: ImageReport) -> pd.DataFrame:
    import pandas as pd

    return pd.DataFrame(
        {
            "source_id": [document.source_id for document in documents],
            "doc_id": [document.doc_id for document in documents],
            "images_decode": [
                all(isinstance(images[path], ImageFacts) for path in document.image_paths) for document in documents
            ],
            "image_or_text": [bool(document.image_paths) or bool(document.text.strip()) for document in documents],
        }
    )


def _query_frame(queries: Sequence[QueryCandidate], images: ImageReport) -> pd.DataFrame:
    import pandas as pd

    facts = [images[query.image_path] for query in queries]
    frame = pd.DataFrame(
        {
            "source_id": [query.source_id for query in queries],
            "query_id": [query.query_id for query in queries],
            "question": [query.question for query in queries],
            "split": [query.split for query in queries],
            "sha256": [fact.sha256 if isinstance(fact, ImageFacts) else "" for fact in facts],
            "image_decodes": [isinstance(fact, ImageFacts) for fact in facts],
            "target_box_inside_image": [_lies_inside(query.target_box) for query in queries],
            "some_relevant_document": [bool(query.relevant_doc_ids) for query in queries],
        }
    )
    num_splits = frame.groupby("sha256")["split"].transform("nunique")
    frame["image_in_one_split"] = (frame["sha256"] == "") | (num_splits == 1)
    return frame


def _qrel_frame(tables: Tables) -> pd.DataFrame:
    import pandas as pd

    doc_ids = {document.doc_id for document in tables.documents}
    rows = [(query, doc_id) for query in tables.queries for doc_id in query.relevant_doc_ids]
    return pd.DataFrame(
        {
            "source_id": [query.source_id for query, _ in rows],
            # A tab is white space, which no id holds.
            "pair": [f"{query.query_id}\t{doc_id}" for query, doc_id in rows],
            "document_exists": [doc_id in doc_ids for _, doc_id in rows],
        }
    )


def _lies_inside(box: tuple[float, float, float, float] | None) -> bool:
    if box is None:
        return True
    try:
        Box(*box)
    except ValueError:
        return False
    return True
