"""report.html: one page with its pictures, charts, style and scripts inside; it asks the network for nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

import vl_convert
from jinja2 import Environment, PackageLoader, StrictUndefined

from pipeline.report import table
from pipeline.report.gallery import KINDS, NUM_EACH, Kind, Panel, Tally
from pipeline.report.headline import write_headline
from pipeline.report.result_figures import Figure, draw_result_figures
from pipeline.report.search.figures import draw_search_figures
from pipeline.report.search.headline import write_search_headline
from pipeline.report.search.won_back import SearchTally
from pipeline.report.theme import CONFIG
from pipeline.report.training_figures import draw_training_figures
from pipeline.types import Box, CurvePoint, Rollout

_KIND_TITLES: Final[Mapping[Kind, tuple[str, str]]] = {
    "win": ("Wins", "the policy's view ranks the first positive higher than the full image does"),
    "loss": ("Losses", "its view ranks it lower, or its answer is malformed"),
    "kept": ("Abstentions", "it kept the full image"),
    "won_back": ("Won back", "searching again finds a relevant document that the full image's pool does not hold"),
}
_SECTION_METRICS: Final = ("cond_recall_at_1", "mrr", "rc_rate", "harm_rate", "malformed_rate")
PROVENANCE: Final = (
    "params_sha256", "data_md5", "pools_sha256", "val_pools_sha256", "policy_digest", "seed", "confidence", "pool_size",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class ReportInputs:
    """What the page shows.

    Attributes:
        report: content of report.json.
        panels: the gallery.
        tally: how all test queries came out by re-ranking.
        search_tally: how they came out by searching again; None where nothing searched again.
        crops: the policy's boxes, one per cropped query.
        targets: boxes of the things asked about in those same queries, where known.
        warmup_curve: figures of the SFT by step; empty where an evaluation borrows its policies from another run.
        train_curve: figures of r-GRPO by step; likewise.
        rollouts: completions of r-GRPO; likewise.
    """

    report: Mapping[str, Any]
    panels: Sequence[Panel]
    tally: Tally
    search_tally: SearchTally | None
    crops: Sequence[Box]
    targets: Sequence[Box]
    warmup_curve: Sequence[CurvePoint]
    train_curve: Sequence[CurvePoint]
    rollouts: Sequence[Rollout]


def render_page(inputs: ReportInputs) -> str:
    """Return the page."""
    environment = Environment(
        loader=PackageLoader("pipeline.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    report = inputs.report
    results = draw_result_figures(report, inputs.crops, inputs.targets) | {"search": draw_search_figures(report)}
    trainings = draw_training_figures(inputs.warmup_curve, inputs.train_curve, inputs.rollouts)
    return environment.get_template("report.html.j2").render(
        report=report,
        behaviour=report.get("behaviour", {}),
        headline=write_headline(report),
        search_headline=write_search_headline(report),
        provenance=PROVENANCE,
        results=results,
        trainings=trainings,
        specs={figure.key: figure.spec for figure in _walk(results, trainings)},
        config=CONFIG,
        bundle=_bundle_scripts(),
        panels=inputs.panels,
        num_each=NUM_EACH,
        tally=inputs.tally,
        search_tally=inputs.search_tally,
        kinds=[_count_panels(kind, inputs.panels) for kind in KINDS],
        won_back=_count_panels("won_back", inputs.panels),
        ranking_columns=[column for column in table.COLUMNS if column.metric not in table.DECISION_METRICS],
        decision_columns=[column for column in table.COLUMNS if column.metric in table.DECISION_METRICS],
        section_columns=[column for column in table.COLUMNS if column.metric in _SECTION_METRICS],
        searched={name: report["search"][name] for name in table.SEARCH_LABELS if name in report.get("search", {})},
        search_columns=table.SEARCH_COLUMNS,
        search_chosen=table.SEARCH_CHOSEN,
        search_labels=table.SEARCH_LABELS,
        search_notes=table.SEARCH_NOTES,
        name_search_pair=table.name_search_pair,
        describe_search_setting=table.describe_search_setting,
        labels=table.METHOD_LABELS,
        best_pair=table.BEST_PAIR,
        name_pair=table.name_pair,
        describe_setting=table.describe_setting,
        notes=table.METHOD_NOTES,
        mean=table.format_mean,
        span=table.format_range,
        difference=table.format_difference,
    )


def _count_panels(kind: Kind, panels: Sequence[Panel]) -> tuple[Kind, str, str, int]:
    return (kind, *_KIND_TITLES[kind], sum(panel.kind == kind for panel in panels))


@cache  # packing takes a second, and the result is the library's alone
def _bundle_scripts() -> str:
    return str(vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;"))


def _walk(*sections: Mapping[str, Sequence[Figure]]) -> list[Figure]:
    return [figure for section in sections for figures in section.values() for figure in figures]
