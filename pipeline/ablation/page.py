"""The summary of the ablations as files: summary.json, summary.md and a chart."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import altair as alt

from pipeline.files.store import replace_file, write_json, write_text
from pipeline.workspace import Workspace

COLUMNS = (("cond_recall_at_1", "CondR@1"), ("mrr", "MRR"), ("rc_rate", "cropped"), ("harm_rate", "harm"))


def write_summary(summary: Mapping[str, Any], workspace: Workspace) -> str:
    """Write summary.json, summary.md and ablation.svg to `ablation_dir` and return the markdown."""
    folder = workspace.ablation_dir
    write_json(folder / "summary.json", summary)
    markdown = build_markdown(summary)
    write_text(folder / "summary.md", markdown)
    save_chart(summary, folder / "ablation.svg")
    return markdown


def build_markdown(summary: Mapping[str, Any]) -> str:
    """Return all tables as markdown."""
    lines = ["# Ablations", "", f"{describe_scope(summary)}. {count_comparisons(summary)}.", ""]
    lines += [f"- {note}" for note in list_gaps(summary)]
    for table in summary["tables"]:
        lines += ["", f"## {table['title']}", "", f"Paper: {table['paper']}.", "", *_build_rows(table), ""]
        lines += [f"- {verdict}" for verdict in list_verdicts(table)]
    if summary["collapsed"]:
        lines += ["", *(f"- {sentence}" for sentence in describe_collapsed(summary["collapsed"]))]
    return "\n".join([*lines, ""])


def describe_scope(summary: Mapping[str, Any]) -> str:
    """Return in a sentence what the figures are means of."""
    return (
        f"{summary['num_queries']} test queries, {summary['num_with_positive']} with a positive in the pool; means of "
        f"{len(summary['seeds'])} seeds of {summary['max_steps']} steps; in brackets {100 * summary['confidence']:g} % "
        "bootstrap intervals over seeds and pictures"
    )


def count_comparisons(summary: Mapping[str, Any]) -> str:
    """Return in a sentence how many differences were looked at, and how many of them are left when that is counted."""
    counts = summary["comparisons"]
    return (
        f"{counts['num_measured']} of the {counts['num']} comparisons made here have an interval without 0; "
        f"{counts['num_after_holm']} survive Holm's correction over all {counts['num']}"
    )


def list_gaps(summary: Mapping[str, Any]) -> list[str]:
    """Return what the tables leave out."""
    texts = {"missing": "not run yet", "stale": "of other parameters or data, left out"}
    return [f"{', '.join(summary[name])}: {text}" for name, text in texts.items() if summary[name]]


def list_verdicts(table: Mapping[str, Any]) -> list[str]:
    """Return what each claim of the table came to, with its difference, its interval, and what Holm leaves of it."""
    return [
        f"{claim['said']} ({claim['metric']} {format_difference(claim['difference'])}){_weigh(claim)}"
        for claim in (row["claim"] for row in table["rows"])
        if claim
    ]


def _weigh(claim: Mapping[str, Any]) -> str:
    """Return what becomes of a measured difference among all that were looked at; of none there is nothing to say."""
    if claim["agrees"] is None:
        return ""
    status = "survives" if claim["survives_holm"] else "does not survive"
    return f"; {status} Holm's correction, p {claim['difference']['p_holm']:.2g}"


def describe_collapsed(collapsed: Mapping[str, Any]) -> list[str]:
    """Return one sentence for each arm that began collapsed."""
    sentences = []
    for name, found in collapsed["arms"].items():
        status = "recovered" if found["recovered"] else "stayed collapsed: no measured gain over the full image"
        if found["recovered"] and not found["survives_holm"]:
            status = "recovered, which does not survive Holm's correction"
        silent = "n/a" if found["zero_signal_share"] is None else f"{found['zero_signal_share']:.3f}"
        sentences.append(
            f"{name}: {status}; p(REGION) at the start {found['start_p_region']:.1g}, groups without signal {silent}, "
            f"cropped at the end {found['rc_rate']['mean']:.3f}, CondR@1 against the full image "
            f"{format_difference(found['minus_full_image'])}"
        )
    return sentences if collapsed["same_start"] else [*sentences, "the two arms did not start from the same policy"]


def format_interval(figure: Mapping[str, float]) -> str:
    """Return a figure with its interval, such as `0.812 [0.776, 0.846]`."""
    return f"{figure['mean']:.3f} [{figure['low']:.3f}, {figure['high']:.3f}]"


def format_difference(figure: Mapping[str, float]) -> str:
    """Return a difference with its interval and signs."""
    return f"{figure['mean']:+.3f} [{figure['low']:+.3f}, {figure['high']:+.3f}]"


def format_paper(row: Mapping[str, Any]) -> str:
    """Return the paper's MRR on InfoSeek and E-VQA, or nothing where it has none."""
    paper = row["paper_mrr"]
    return "" if paper is None else f"{paper['infoseek']:.3f} / {paper['evqa']:.3f}"


def _build_rows(table: Mapping[str, Any]) -> list[str]:
    heads = ["arm", *(label for _, label in COLUMNS), f"{table['metric']} minus {table['reference']}", "paper's MRR"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for row in table["rows"]:
        minus = row["minus_reference"]
        cells = [
            row["title"],
            *(format_interval(row["figures"][metric]) for metric, _ in COLUMNS),
            format_difference(minus[table["metric"]]) if minus else "",
            format_paper(row),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def save_chart(summary: Mapping[str, Any], path: Path) -> None:
    """Draw each table's metric with its intervals and, where measured, the way out of the collapse."""
    panels: list[alt.Chart | alt.LayerChart] = [_draw_table(table) for table in summary["tables"]]
    if summary["collapsed"]:
        panels.append(_draw_collapsed(summary["collapsed"]["arms"]))
    with replace_file(path) as partial:
        alt.vconcat(*panels).configure_view(stroke=None).save(partial, format="svg")


def _draw_table(table: Mapping[str, Any]) -> alt.LayerChart:
    metric = table["metric"]
    values = [{"arm": row["title"], **row["figures"][metric]} for row in table["rows"]]
    label = dict(COLUMNS)[metric]
    base = alt.Chart(alt.Data(values=values), title=table["title"], width=420, height=22 * len(values))
    arms = alt.Y("arm:N", sort=None, title=None)
    scale = alt.Scale(zero=False)
    intervals = base.mark_rule(strokeWidth=2).encode(y=arms, x=alt.X("low:Q", title=label, scale=scale), x2="high:Q")
    panel: alt.LayerChart = intervals + base.mark_point(filled=True, size=60).encode(y=arms, x="mean:Q")
    return panel


def _draw_collapsed(arms: Mapping[str, Any]) -> alt.Chart:
    values = [{"arm": name, **point} for name, found in arms.items() for point in found["region_rate_by_step"]]
    base = alt.Chart(alt.Data(values=values), title="Crops on the way out of the collapse", width=420, height=160)
    chart: alt.Chart = base.mark_line().encode(
        x=alt.X("step:Q", title="r-GRPO step", axis=alt.Axis(tickMinStep=1)),
        y=alt.Y("value:Q", title="free samples that crop", scale=alt.Scale(domain=[0, 1])),
        color=alt.Color("arm:N", title=None, legend=alt.Legend(orient="bottom")),
    )
    return chart
