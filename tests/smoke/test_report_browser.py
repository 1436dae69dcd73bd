"""The report in a real browser, from the file system: it draws, filters, turns dark and fits a phone."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from pipeline.files.store import load_qrels, save_curves, save_rollouts
from pipeline.report.page import ReportInputs, render_page
from pipeline.runs.tracking import null_run
from pipeline.stages import report as report_stage
from tests.fakes import report_fakes as fakes
from tests.fakes.evaluation_fakes import PARAMS, ask_and_evaluate, build_fake_world

pytestmark = pytest.mark.smoke

_BROWSERS = ("chromium", "chromium-browser", "google-chrome")
_DESK = {"width": 1400, "height": 900}
_PHONE = {"width": 390, "height": 844}


@pytest.fixture(scope="module")
def report_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the page that the stage writes, with every section filled."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        world = build_fake_world(tmp_path_factory.mktemp("report"), monkeypatch)
        workspace = world.workspace
        save_curves(workspace.curve_path("warmup"), fakes.build_warmup_curve())
        save_curves(workspace.curve_path("train"), fakes.build_train_curve())
        save_rollouts(workspace.rollouts_dir / "rollouts.parquet", fakes.build_rollouts())

        def render_with_behaviour(inputs: ReportInputs) -> str:
            return render_page(replace(inputs, report={**inputs.report, "behaviour": fakes.build_behaviour()}))

        monkeypatch.setattr(report_stage, "render_page", render_with_behaviour)
        ask_and_evaluate(fakes.NOT_SEARCHED, workspace)
        lacking = {pool.query_id for pool in world.pools if not pool.has_positive}
        qrels = load_qrels(workspace.tables_dir / "qrels.parquet")
        fakes.plant_search(workspace, {qrel.query_id: qrel.doc_id for qrel in qrels if qrel.query_id in lacking})
        report_stage.run(PARAMS, workspace, null_run())
    return workspace.report_dir / "report.html"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = next((found for name in _BROWSERS if (found := shutil.which(name))), None)
    if path is None:
        pytest.skip(f"no browser on PATH: none of {', '.join(_BROWSERS)}")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, headless=True, args=["--no-sandbox"])
        yield browser
        browser.close()


class _Watched:
    """A page that keeps what it complained about and what it asked for."""

    def __init__(self, browser: Browser, path: Path, size: dict[str, int]) -> None:
        context = browser.new_context(viewport=size, color_scheme="light")  # type: ignore[arg-type]
        self.page: Page = context.new_page()
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.complaints.append(f"{message.type}: {message.text}"))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(path.as_uri())
        self.page.wait_for_selector("html[data-charts=ready]", state="attached")


@pytest.fixture
def desk(browser: Browser, report_path: Path) -> Iterator[_Watched]:
    watched = _Watched(browser, report_path, _DESK)
    yield watched
    watched.page.context.close()


@pytest.fixture
def phone(browser: Browser, report_path: Path) -> Iterator[_Watched]:
    watched = _Watched(browser, report_path, _PHONE)
    yield watched
    watched.page.context.close()


def test_page_opens_without_complaint_or_network(desk: _Watched) -> None:
    desk.page.evaluate("document.querySelectorAll('img').forEach((img) => img.scrollIntoView())")
    desk.page.wait_for_load_state("networkidle")
    assert desk.complaints == []
    assert [url for url in desk.requests if not url.startswith(("file:", "data:"))] == []


def test_every_picture_is_shown(desk: _Watched) -> None:
    widths = desk.page.evaluate(
        """async () => {
          const images = [...document.querySelectorAll("img")];
          for (const image of images) image.loading = "eager";
          await Promise.all(images.map((image) => image.decode()));
          return images.map((image) => image.naturalWidth);
        }"""
    )
    assert len(widths) > 24
    assert min(widths) > 0


def test_every_chart_is_drawn(desk: _Watched) -> None:
    drawn = desk.page.evaluate(
        """() => Object.fromEntries([...document.querySelectorAll("[data-chart]")].map((holder) => {
          const marks = [...holder.querySelectorAll("svg .role-mark path, svg .role-mark line, svg .role-mark text")];
          const boxes = marks.map((mark) => mark.getBoundingClientRect());
          return [holder.dataset.chart, boxes.filter((box) => box.width + box.height > 0).length];
        }))"""
    )
    assert len(drawn) == 21
    assert [key for key, num_marks in drawn.items() if num_marks == 0] == []


@pytest.mark.parametrize("kind", ["win", "loss", "kept", "won_back"])
def test_filter_shows_exactly_the_cards_of_one_outcome(desk: _Watched, kind: str) -> None:
    page = desk.page
    button = page.locator(f"[data-filter={kind}]")
    button.focus()
    page.keyboard.press("Enter")
    of_kind = page.locator(f"#gallery article[data-kind={kind}]").count()
    assert of_kind > 0
    assert page.locator("#gallery article:visible").count() == of_kind
    assert page.locator(f"#gallery article[data-kind={kind}]:visible").count() == of_kind
    assert button.get_attribute("aria-pressed") == "true"
    assert button.locator("b").inner_text() == str(of_kind)
    page.locator("[data-filter=all]").click()
    assert page.locator("#gallery article:visible").count() == page.locator("#gallery article").count() > of_kind


def test_link_beside_the_figures_shows_what_was_won_back(desk: _Watched) -> None:
    desk.page.locator("[data-show=won_back]").click()
    assert desk.page.locator("#gallery article:visible:not([data-kind=won_back])").count() == 0
    assert desk.page.locator("[data-filter=won_back]").get_attribute("aria-pressed") == "true"


def test_button_switches_to_dark_and_back(desk: _Watched) -> None:
    page = desk.page

    def read_colours() -> tuple[str, str]:
        label = "document.querySelector('.chart svg .role-axis-label text')"
        return (
            page.evaluate("getComputedStyle(document.body).backgroundColor"),
            page.evaluate(f"getComputedStyle({label}).fill"),
        )

    light = read_colours()
    page.locator("#theme").click()
    dark = read_colours()
    assert dark[0] != light[0]
    assert dark[1] != light[1]  # the charts follow
    page.locator("#theme").click()
    assert read_colours() == light


def test_page_follows_the_systems_dark_mode(desk: _Watched) -> None:
    read = "getComputedStyle(document.body).backgroundColor"
    light = desk.page.evaluate(read)
    desk.page.emulate_media(color_scheme="dark")
    assert desk.page.evaluate(read) != light


def test_nothing_sticks_out_of_a_phone(phone: _Watched) -> None:
    assert phone.page.evaluate("document.documentElement.scrollWidth") <= _PHONE["width"]
    widest = phone.page.evaluate(
        "Math.max(...[...document.querySelectorAll('.chart svg')].map((svg) => svg.getBoundingClientRect().right))"
    )
    assert widest <= _PHONE["width"]
    assert phone.complaints == []


def test_charts_take_the_width_there_is(desk: _Watched) -> None:
    read = "document.querySelector('[data-chart=methods] svg').getBoundingClientRect().width"
    wide = desk.page.evaluate(read)
    desk.page.set_viewport_size(_PHONE)  # type: ignore[arg-type]
    desk.page.wait_for_function(f"{read} < {wide}")
    assert desk.page.evaluate(read) <= _PHONE["width"]
