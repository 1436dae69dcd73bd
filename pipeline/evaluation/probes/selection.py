"""One crop out of several sampled ones, chosen without labels, against the greedy crop.

widest_gap   the sample whose view has the largest difference between its best and its second best candidate score.
median_box   the coordinate-wise median of the sampled boxes, which need not be one of them.

Only queries that the greedy answer crops get another box. A malformed sample takes no part; where all of them are
malformed the greedy box stays.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Final

import numpy as np

from pipeline.core.statistics.significance import Interval
from pipeline.evaluation.answers.reading import Samples
from pipeline.evaluation.figures import Bootstrap, Difference
from pipeline.evaluation.measures import compare_methods, measure_method, rank_choices
from pipeline.evaluation.methods import Choice, PoolRanking, QuerySet, Scorer
from pipeline.types import Answer, Box, Crop, Query

SAMPLING_TEMPERATURE: Final = 1.0
"""What `sample_regions` draws at."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SelectionFigures:
    """The section `selection` of the report.

    Attributes:
        num_samples: answers sampled for each query that the greedy answer crops.
        temperature: they were drawn at.
        num_malformed_samples: answers, of all queries, that name no box.
        methods: greedy, widest_gap, median_box -> metric -> interval.
        minus_greedy: widest_gap, median_box -> difference in CondRecall@1.
    """

    num_samples: int
    temperature: float
    num_malformed_samples: int
    methods: dict[str, dict[str, Interval | None]]
    minus_greedy: dict[str, Difference | None]


def probe_selection(
    test: QuerySet, greedy: Sequence[Choice], samples: Samples, scorer: Scorer, num_samples: int, bootstrap: Bootstrap
) -> SelectionFigures:
    """Measure what choosing among sampled crops brings over the greedy one."""
    boxes = {query_id: _list_boxes(answers) for query_id, answers in samples.items()}
    choices = {
        "greedy": list(greedy),
        "widest_gap": replace_boxes(test.queries, greedy, pick_widest_gaps(boxes, scorer)),
        "median_box": replace_boxes(test.queries, greedy, pick_median_boxes(boxes)),
    }
    table = rank_choices(choices, test, scorer)
    return SelectionFigures(
        num_samples=num_samples,
        temperature=SAMPLING_TEMPERATURE,
        num_malformed_samples=sum(len(samples[query_id]) - len(boxes[query_id]) for query_id in samples),
        methods={name: measure_method(table, name, bootstrap) for name in choices},
        minus_greedy={name: compare_methods(table, name, "greedy", bootstrap) for name in ("widest_gap", "median_box")},
    )


def pick_widest_gaps(boxes: Mapping[str, Sequence[Box]], scorer: Scorer) -> dict[str, Box]:
    """Return each query's box of widest gap; of equals the first. A query without boxes is left out."""
    views = [(query_id, box) for query_id, row in boxes.items() for box in row]
    best: dict[str, tuple[float, Box]] = {}
    for (query_id, box), ranking in zip(views, scorer.score_views(views), strict=True):
        gap = compute_gap(ranking)
        if query_id not in best or gap > best[query_id][0]:
            best[query_id] = (gap, box)
    return {query_id: box for query_id, (_, box) in best.items()}


def pick_median_boxes(boxes: Mapping[str, Sequence[Box]]) -> dict[str, Box]:
    """Return each query's median box. A query without boxes is left out.

    The median of the left edges lies left of that of the right edges, since each box's own does; so it is a box.
    """
    return {
        query_id: Box(*(median(sides) for sides in zip(*(box.as_tuple() for box in row), strict=True)))
        for query_id, row in boxes.items()
        if row
    }


def compute_gap(ranking: PoolRanking) -> float:
    """Return the best minus the second best candidate score; a pool has at least two candidates."""
    second, best = np.partition(ranking.scores_K, -2)[-2:]
    return float(best - second)


def replace_boxes(queries: Sequence[Query], greedy: Sequence[Choice], boxes: Mapping[str, Box]) -> list[Choice]:
    """Return the greedy choices with other boxes where there is one."""
    return [
        (Crop(boxes[query.query_id]), None) if query.query_id in boxes else choice
        for query, choice in zip(queries, greedy, strict=True)
    ]


def _list_boxes(answers: Sequence[Answer]) -> list[Box]:
    return [answer.decision.box for answer in answers if isinstance(answer.decision, Crop)]
