"""The published lists of ECCV26-ARA: which photos stand side by side, and the questions in their words.

`{evqa,infoseek}_challenging_queries_full_seed3185_with_images.csv` name queries of E-VQA's and InfoSeek's test sets by
the ids that the adapters give them (`E-VQA_17`, `infoseek_val_00048894`). A row is one query, the anchor, in two
pictures: beside a photo of its own category (method1) and beside one of another (method2). Only the anchor is asked
about.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from pipeline.core.inputs.texts import find_question_fault
from pipeline.sources.composites import Asked, Composite, Side, Single
from pipeline.sources.formats.streams import read_csv_records

PAIRINGS: Final = {"method1": "same category", "method2": "other category"}
COLUMNS: Final = (
    "anchor_data_id",
    "anchor_wikipedia_url",
    "target_side",
    *(f"{method}_{column}" for method in PAIRINGS for column in ("pair_data_id", "query")),
)


def read_published_list(
    path: Path, singles: Mapping[str, Single], max_question_chars: int
) -> tuple[list[Composite], Counter[str]]:
    """Read a list and find its queries among those that are here.

    Args:
        path: the CSV file.
        singles: the queries that are here, by id.
        max_question_chars: longest question that `prepare` takes.

    Returns:
        the pictures, two a row at most, and how many were left out by reason.

    Raises:
        DataError: the file is missing, has other columns or cannot be read.
    """
    composites: list[Composite] = []
    left_out: Counter[str] = Counter()
    seen: set[str] = set()
    for _, cells in read_csv_records(path, COLUMNS):
        for method, pairing in PAIRINGS.items():
            found = _find(cells, method, pairing, singles, max_question_chars)
            if isinstance(found, str):
                left_out[f"listed, {found}"] += 1
            elif found.asked[0].query_id in seen:
                left_out["listed, a second time"] += 1
            else:
                seen.add(found.asked[0].query_id)
                composites.append(found)
    return composites, left_out


def _find(
    cells: dict[str, str] | str, method: str, pairing: str, singles: Mapping[str, Single], max_question_chars: int
) -> Composite | str:
    """Return the picture of a row and method, or why there is none."""
    if isinstance(cells, str):
        return f"but the row {cells}"
    anchor = singles.get(cells["anchor_data_id"])
    other = singles.get(cells[f"{method}_pair_data_id"])
    side = _read_side(cells["target_side"])
    question = cells[f"{method}_query"]
    if anchor is None or other is None:
        return "not among the single photos here"
    if side is None:
        return "with a target_side that is neither left nor right"
    if find_question_fault(question, max_question_chars) is not None:
        return "with a question that prepare would reject"
    # E-VQA's ids count rows, so a test.csv in another order would give the questions to other pictures.
    if not _is_about(cells["anchor_wikipedia_url"], anchor):
        return "about another document than the query of that id here"
    if anchor.query.split != other.query.split or not anchor.may_meet(other):
        return "two photos of different splits, or with a relevant document in common"
    left, right = (anchor, other) if side == "left" else (other, anchor)
    asked = Asked(query_id=f"{anchor.query.query_id}@{method}", side=side, question=question, pairing=pairing)
    return Composite(left=left, right=right, asked=(asked,))


def _read_side(cell: str) -> Side | None:
    name = cell.strip().lower()
    return "left" if name == "left" else "right" if name == "right" else None


def _is_about(url: str, anchor: Single) -> bool:
    """Whether the row's entity is the anchor's; Wikidata ids (InfoSeek as published) cannot be compared with a URL."""
    return url in anchor.doc_ids or not any("://" in doc_id for doc_id in anchor.doc_ids)
