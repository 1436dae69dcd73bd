"""What searching again leaves open, chosen on val alone: the rules' boxes, how pools are merged, the best rule.

Without a val query that some document answers there is nothing to choose by: methods that leave nothing open are left.

Chosen by R@1 over all queries, of equals by least harm, then by the order in which settings are tried.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from pipeline.errors import StageError
from pipeline.evaluation.figures import ResultTable
from pipeline.evaluation.methods import Choice, QuerySet, choose_full
from pipeline.evaluation.rules import MARGINS, WEIGHTS
from pipeline.evaluation.search.rankings import RRF, Fusion, Searcher, SearchSetting
from pipeline.files.store import read_json
from pipeline.process.progress import track
from pipeline.types import QueryResult

_FUSIONS: Final[tuple[Fusion, ...]] = (*WEIGHTS, RRF)


@dataclass(frozen=True, slots=True)
class SearchMethod:
    """Whose choices a method searches with, and the settings that it may have; one leaves nothing open."""

    source: str
    settings: tuple[SearchSetting, ...] = (SearchSetting(),)


SEARCH_METHODS: Final[Mapping[str, SearchMethod]] = {
    "full": SearchMethod("full"),
    "base": SearchMethod("base"),
    "base_grown": SearchMethod("base", tuple(SearchSetting(margin=margin) for margin in MARGINS)),
    "base_squared": SearchMethod("base", tuple(SearchSetting(margin=margin, is_square=True) for margin in MARGINS)),
    "base_union": SearchMethod("base", tuple(
        SearchSetting(margin=margin, fusion=fusion) for margin in MARGINS for fusion in _FUSIONS
    )),
    "sft": SearchMethod("sft"),
    "rgrpo": SearchMethod("rgrpo"),
    "rgrpo_union": SearchMethod("rgrpo", tuple(SearchSetting(fusion=fusion) for fusion in _FUSIONS)),
    "perfect": SearchMethod("perfect"),
}  # fmt: skip
"""In the order of the table; `rgrpo` takes the view's documents, `rgrpo_union` merges them with the full image's."""
RULES: Final = ("base_grown", "base_squared", "base_union", "base", "full")
"""Untrained: what the trained policy must beat."""
HEADLINE: Final = {"union": "rgrpo_union", "replace": "rgrpo"}
"""`retrieve.search_again` -> the method that it makes the product's own."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchChoices:
    """What was chosen on val.

    Attributes:
        settings: method -> its numbers.
        best_rule: of `RULES`, highest R@1 on val; None where there was nothing to choose by.
        val: method -> R@1 and harm on val.
    """

    settings: Mapping[str, SearchSetting]
    best_rule: str | None
    val: Mapping[str, Mapping[str, float]]

    def find_setting(self, name: str) -> SearchSetting | None:
        """Return a method's numbers; None where it leaves some open and nothing could be chosen."""
        if name == "perfect":  # a ceiling is not chosen on val: its box takes the shape of the rule that was
            return self.settings.get("base_squared", SearchSetting())
        return self.settings.get(name)

    def as_json(self) -> dict[str, Any]:
        """Return the report's plain values."""
        return {
            "settings": {name: asdict(setting) for name, setting in self.settings.items()},
            "best_rule": self.best_rule,
            "val": {name: dict(values) for name, values in self.val.items()},
        }


def choose_search(choices: Mapping[str, Sequence[Choice]], val: QuerySet, searcher: Searcher) -> SearchChoices:
    """Choose every method's setting, and the best rule.

    Args:
        choices: base, sft, rgrpo -> greedy answers on val.
        val: what the choices may see.
        searcher: finds what the views find.
    """
    if not any(pool.num_relevant for pool in val.pools):
        plain = {name: method.settings[0] for name, method in SEARCH_METHODS.items() if len(method.settings) == 1}
        return SearchChoices(settings=plain, best_rule=None, val={})
    every = {"full": choose_full(val.queries)} | dict(choices)
    full = searcher.rank("full", every["full"], val, SearchSetting())
    settings: dict[str, SearchSetting] = {}
    figures: dict[str, dict[str, float]] = {}
    methods = {name: method for name, method in SEARCH_METHODS.items() if method.source in every}
    with track("evaluate: search settings tried on val", sum(len(m.settings) for m in methods.values())) as advance:
        for name, method in methods.items():
            tried = []
            for setting in method.settings:
                tried.append(_measure(full, searcher.rank(name, every[method.source], val, setting), val))
                advance(1)
            best = max(range(len(tried)), key=lambda row: (tried[row]["recall_at_1"], -tried[row]["harm_at_1"]))
            settings[name], figures[name] = method.settings[best], tried[best]
    best_rule = max(RULES, key=lambda name: (figures[name]["recall_at_1"], -figures[name]["harm_at_1"]))
    return SearchChoices(settings=settings, best_rule=best_rule, val=figures)


def carry_search(report_path: Path) -> SearchChoices:
    """Return what another run has chosen on its val.

    Raises:
        StageError: that run was not evaluated, or did not search again.
    """
    chosen = read_json(report_path, stage="evaluate").get("search_choices")
    if chosen is None:
        raise StageError(f"{report_path} is of a run that did not search again; set retrieve.search_again there")
    return SearchChoices(
        settings={name: SearchSetting(**numbers) for name, numbers in chosen["settings"].items()},
        best_rule=chosen["best_rule"],
        val=chosen["val"],
    )


def _measure(full: Sequence[QueryResult], rows: Sequence[QueryResult], val: QuerySet) -> dict[str, float]:
    table = ResultTable([*full, *([] if rows[0].method == "full" else rows)], val.pools)
    return {
        metric: float(table.compute_terms(rows[0].method, metric)[0].mean()) for metric in ("recall_at_1", "harm_at_1")
    }
