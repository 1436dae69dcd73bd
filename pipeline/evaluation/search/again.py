"""Every method searches again: settings by val or by another run's val, rows and figures on test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pipeline.config import Params
from pipeline.evaluation.methods import Choice, QuerySet
from pipeline.evaluation.search.choices import HEADLINE, SEARCH_METHODS, carry_search, choose_search
from pipeline.evaluation.search.figures import RERANKED, describe_search
from pipeline.evaluation.search.rankings import Searcher
from pipeline.reranking.scorer import FrozenScorer
from pipeline.types import QueryResult
from pipeline.workspace import Workspace


@dataclass(frozen=True, slots=True)
class SearchedAgain:
    """What searching again brought; empty where `retrieve.search_again` is off.

    Attributes:
        rows: method -> one row a test query.
        sections: of the report, as plain values.
    """

    rows: Mapping[str, Sequence[QueryResult]] = field(default_factory=dict)
    sections: Mapping[str, Any] = field(default_factory=dict)


def search_again(
    params: Params,
    workspace: Workspace,
    scorer: FrozenScorer,
    val_choices: Mapping[str, Sequence[Choice]],
    test_choices: Mapping[str, Sequence[Choice]],
    reranked: Sequence[QueryResult],
    val: QuerySet,
    test: QuerySet,
) -> SearchedAgain:
    """Let every method search the index with its views.

    Args:
        params: whether, and how many documents a search brings.
        workspace: where index and pools lie, and whose val choices are taken over.
        scorer: has embedded most of the crops already.
        val_choices: base, sft, rgrpo -> greedy answers on val.
        test_choices: method -> answers or views on test.
        reranked: rows of the policy re-ranking alone, which searching again is compared with.
        val: what choices may see.
        test: what is measured.
    """
    mode = params.retrieve.search_again
    if mode == "off":
        return SearchedAgain()
    searcher = Searcher.load(params, workspace, scorer)
    lender = workspace.lender_report_path
    chosen = choose_search(val_choices, val, searcher) if lender is None else carry_search(lender)
    rows: dict[str, Sequence[QueryResult]] = {}
    for name, method in SEARCH_METHODS.items():
        setting = chosen.find_setting(name)
        if method.source in test_choices and setting is not None:
            rows[name] = searcher.rank(name, test_choices[method.source], test, setting)
    rows[RERANKED] = [replace(row, method=RERANKED) for row in reranked]
    headline = HEADLINE[mode] if HEADLINE[mode] in rows else "rgrpo"
    sections = describe_search(rows, headline, chosen.best_rule, test, params.evaluate, seed=params.seed)
    facts = {"mode": mode, "num_candidates": params.retrieve.num_candidates, "headline": headline}
    return SearchedAgain(rows, sections | {"search_choices": facts | chosen.as_json()})
