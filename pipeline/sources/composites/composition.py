"""What a composed set will hold, decided before any picture is opened."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pipeline.config import DataParams
from pipeline.core.inputs.texts import find_question_fault
from pipeline.errors import DataError
from pipeline.files.store import load_qrels, load_queries
from pipeline.retrieval.relevance import collect_relevant
from pipeline.sources.composites import Composite, Single
from pipeline.sources.composites.pairs import draw_composites, place_question
from pipeline.sources.composites.pictures import find_shape_fault
from pipeline.sources.composites.published import read_published_list
from pipeline.types import SPLITS, Query, Split

PUT_TOGETHER: Final = frozenset({"mosaic", "composite"})
"""Values of the tag `scene` that say that a picture is made of several photos already."""

_MAX_NAMED: Final = 10


@dataclass(frozen=True, kw_only=True, slots=True)
class ComposeSettings:
    """How a set is composed.

    Attributes:
        seed: who stands beside whom, and on which side.
        height_px: of every picture.
        keep_singles: the single photos are queries too.
        published: a list of ECCV26-ARA, which takes the place of the draw in the splits that it names.
    """

    seed: int
    height_px: int
    keep_singles: bool
    published: Path | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Composition:
    """What is written, and what is not.

    Attributes:
        odd: queries for whom no partner was left.
        left_out: number of queries, or of listed pictures, by reason.
    """

    composites: Mapping[Split, Sequence[Composite]]
    singles: Sequence[Single]
    odd: Sequence[Single]
    left_out: Mapping[str, int]

    def describe(self) -> list[str]:
        """Return lines for people: what each split got, who has no partner, what was left out and why."""
        num_singles = Counter(single.query.split for single in self.singles)
        lines = [
            f"{split}: {len(composites)} pictures of two photos, "
            f"{sum(len(one.asked) for one in composites)} questions; {num_singles[split]} single photos"
            for split, composites in self.composites.items()
        ]
        if self.odd:
            named = ", ".join(single.query.query_id for single in self.odd[:_MAX_NAMED])
            more = f" and {len(self.odd) - _MAX_NAMED} more" if len(self.odd) > _MAX_NAMED else ""
            lines.append(f"without a partner: {named}{more}")
        return lines + [f"left out: {number} {reason}" for reason, number in sorted(self.left_out.items())]


def compose(params: DataParams, tables_dir: Path, settings: ComposeSettings) -> Composition:
    """Decide what stands beside what.

    Args:
        params: those that the tables were prepared with.
        tables_dir: what prepare wrote.
        settings: how the set is composed.

    Raises:
        StageError: prepare has not run.
        DataError: no two photos may stand side by side, or the published list cannot be read.
    """
    singles, left_out = _read_singles(params, tables_dir, settings)
    composites: dict[Split, list[Composite]] = {}
    if settings.published is not None:
        composites, not_found = _take_published(settings.published, singles, params.max_question_chars)
        left_out += not_found
    odd: list[Single] = []
    for split in SPLITS:
        if split not in composites:
            of_split = [single for single in singles if single.query.split == split]
            composites[split], alone = draw_composites(of_split, settings.seed)
            odd += alone
    if not any(composites.values()):
        raise DataError(
            f"no two of {len(singles)} single photos may stand side by side: each pair needs one split, two pictures "
            "and no relevant document in common",
            path=tables_dir,
        )
    return Composition(
        composites={split: composites[split] for split in SPLITS},
        singles=singles if settings.keep_singles else (),
        odd=odd,
        left_out=left_out,
    )


def _take_published(
    path: Path, singles: Sequence[Single], max_question_chars: int
) -> tuple[dict[Split, list[Composite]], Counter[str]]:
    by_id = {single.query.query_id: single for single in singles}
    listed, not_found = read_published_list(path, by_id, max_question_chars)
    if not listed:
        why = "; ".join(f"{number} {reason}" for reason, number in sorted(not_found.items()))
        raise DataError(f"names no pair of photos that is here: {why}", path=path)
    composites: dict[Split, list[Composite]] = {}
    for composite in listed:
        composites.setdefault(composite.left.query.split, []).append(composite)
    return composites, not_found


def _read_singles(params: DataParams, tables_dir: Path, settings: ComposeSettings) -> tuple[list[Single], Counter[str]]:
    relevant = collect_relevant(load_qrels(tables_dir / "qrels.parquet"))
    singles: list[Single] = []
    left_out: Counter[str] = Counter()
    for query in load_queries(tables_dir / "queries.parquet"):
        fault = _find_fault(query, params, settings.height_px)
        if fault is None:
            singles.append(Single(query=query, doc_ids=relevant[query.query_id]))
        else:
            left_out[fault] += 1
    return singles, left_out


def _find_fault(query: Query, params: DataParams, height_px: int) -> str | None:
    """Return why a query cannot be one side of a picture, or None if it can."""
    if query.tags.get("scene") in PUT_TOGETHER:
        return f"of tag scene: {query.tags['scene']}"
    if find_question_fault(place_question(query.question, "right"), params.max_question_chars) is not None:
        return "with a question that is too long once it names the side"
    return find_shape_fault(query, height_px, params.max_image_pixels)
