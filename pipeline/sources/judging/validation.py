"""Great Expectations over the raw rows as read and over what prepare keeps of them.

As read, a failed expectation tells what is wrong with the data and where; the rows at fault are rejected. As
kept, every expectation must hold: a second witness, written apart from the code that rejects.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pipeline.errors import DataError
from pipeline.files.images import ImageFacts
from pipeline.sources import RawQuery
from pipeline.sources.judging.ids import IdList
from pipeline.sources.judging.inspection import ImageReport
from pipeline.sources.judging.ledger import DocumentLedger
from pipeline.sources.judging.verdict import Judgement, Lookalikes
from pipeline.types import Box

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pandas as pd

MAX_ROWS_NAMED = 20


def validate_tables(judged: Judgement) -> dict[str, Any]:
    """Check the rows of the right shape as read, and what is left of them.

    Returns:
        `{"success", "as_read", "as_kept"}`, JSON-ready; each state lists its expectations with the number
        of rows that fail and the first of them by source id. `success` is that of `as_read`.

    Raises:
        DataError: the kept tables do not hold what prepare promises.
    """
    checked_read = _check(judged, judged.queries, kept=False)
    checked_kept = _check(judged, judged.kept_queries, kept=True)
    for result in checked_kept:
        if not result["success"]:
            rows = ", ".join(result["rows"])
            raise DataError(f"{result['table']}: {result['expectation']} does not hold for the rows kept: {rows}")
    return {
        "success": all(result["success"] for result in checked_read),
        "as_read": checked_read,
        "as_kept": checked_kept,
    }


def _check(judged: Judgement, queries: Sequence[RawQuery], *, kept: bool) -> list[dict[str, Any]]:
    ledger = judged.ledger
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
                _document_frame(ledger, kept=kept),
                f"{ledger.file}:",
                [
                    ExpectColumnValuesToBeUnique(column="doc_id"),
                    holds("images_decode"),
                    holds("image_or_text"),
                ],
            ),
            "queries": (
                _query_frame(queries, judged.images, judged.lookalikes),
                "",
                [
                    ExpectColumnValuesToBeUnique(column="query_id"),
                    ExpectColumnValuesToMatchRegex(column="question", regex=r"\S"),
                    holds("image_decodes"),
                    holds("target_box_inside_image"),
                    holds("image_in_one_split"),
                    holds("no_lookalike_in_another_split"),
                    holds("some_relevant_document"),
                ],
            ),
            "qrels": (
                _qrel_frame(ledger, queries, kept=kept),
                "",
                [ExpectColumnValuesToBeUnique(column="pair"), holds("document_exists")],
            ),
        }
        context = gx.get_context(mode="ephemeral")
        context.variables.progress_bars = ProgressBarsConfig(globally=False)
        source = context.data_sources.add_pandas("tables")
        results: list[dict[str, Any]] = []
        for name, (frame, file, expectations) in suites.items():
            batch = source.add_dataframe_asset(name).add_batch_definition_whole_dataframe("all")
            outcome: Any = batch.get_batch({"dataframe": frame}).validate(
                gx.ExpectationSuite(name=name, expectations=expectations),
                result_format={"result_format": "COMPLETE", "unexpected_index_column_names": ["source_id"]},
            )
            results += [_summarise(name, file, len(frame), entry) for entry in outcome.to_json_dict()["results"]]
    return results


def _summarise(table: str, file: str, num_rows: int, entry: Mapping[str, Any]) -> dict[str, Any]:
    config, result = entry["expectation_config"], entry["result"]
    name = f"{config['type']}({config['kwargs']['column']})"
    if num_rows and "unexpected_count" not in result:
        raise RuntimeError(f"{table}: {name} could not be evaluated: {entry['exception_info']}")
    rows = [f"{file}{row['source_id']}" for row in result.get("unexpected_index_list") or []]
    return {
        "table": table,
        "expectation": name,
        "success": bool(entry["success"]) or num_rows == 0,
        "num_rows": num_rows,
        "num_unexpected": int(result.get("unexpected_count", 0)),
        "rows": rows[:MAX_ROWS_NAMED],
    }


def _document_frame(ledger: DocumentLedger, *, kept: bool) -> pd.DataFrame:
    import numpy as np
    import pandas as pd

    frame = pd.DataFrame(
        {
            # Row numbers, and ids as numbers: millions of texts would not fit.
            "source_id": np.array(ledger.rows, dtype=np.int64),
            "doc_id": _number_ids(ledger.doc_ids),
            "images_decode": np.array(ledger.images_decode, dtype=bool),
            "image_or_text": np.array(ledger.image_or_text, dtype=bool),
        }
    )
    return frame[np.array(ledger.kept, dtype=bool)].reset_index(drop=True) if kept else frame


def _number_ids(ids: IdList) -> npt.NDArray[np.int64]:
    """Return a number for each id, equal where ids are: found by hash, made sure of by text."""
    import numpy as np
    import pandas as pd

    hashes = np.fromiter((hash(doc_id) for doc_id in ids), dtype=np.int64, count=len(ids))
    numbers = np.arange(len(ids), dtype=np.int64)
    first_places: dict[str, int] = {}
    for place in np.flatnonzero(pd.Series(hashes).duplicated(keep=False)).tolist():
        numbers[place] = first_places.setdefault(ids[place], place)
    return numbers


def _query_frame(queries: Sequence[RawQuery], images: ImageReport, lookalikes: Lookalikes) -> pd.DataFrame:
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
    used = {sha256: set(rows) for sha256, rows in frame.groupby("sha256")["split"]}
    frame["no_lookalike_in_another_split"] = [
        not any(used.get(other, set()) - {split} for other in lookalikes.get(sha256, ()))
        for sha256, split in zip(frame["sha256"], frame["split"], strict=True)
    ]
    return frame


def _qrel_frame(ledger: DocumentLedger, queries: Sequence[RawQuery], *, kept: bool) -> pd.DataFrame:
    import pandas as pd

    exists = ledger.is_kept if kept else ledger.is_known
    rows = [(query, doc_id) for query in queries for doc_id in query.relevant_doc_ids]
    return pd.DataFrame(
        {
            "source_id": [query.source_id for query, _ in rows],
            # A tab is white space, which no id holds.
            "pair": [f"{query.query_id}\t{doc_id}" for query, doc_id in rows],
            "document_exists": [exists(doc_id) for _, doc_id in rows],
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
