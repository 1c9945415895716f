"""The report in a real browser: headless Chromium opens the file, uses it, prints it, and may ask for nothing."""

import itertools
import json
import re
import runpy
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from conftest import REPOSITORY
from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

from ohl_accel.operations.space import PAPER
from ohl_accel.policy import Policy
from ohl_accel.policy.evidence import Evidence
from ohl_accel.report.write import write_beside, write_gallery, write_report
from ohl_accel.run_folder.metrics import read_metrics

ARGUMENTS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]
Open = Callable[..., Page]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Headless Chromium; the test is skipped where there is none."""
    names = ("chromium", "chromium-browser", "google-chrome")
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None:
        pytest.skip("no Chromium found; on Debian: apt-get install chromium")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=found, args=ARGUMENTS)
        yield chromium
        chromium.close()


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Open]:
    """Opens a file in a window; at the end, the console was silent and nothing but files was asked for."""
    complaints: list[str] = []
    asked_for: list[str] = []
    contexts = []

    def open_file(file: Path, width: int = 1280, theme: Literal["light", "dark"] = "light") -> Page:
        contexts.append(
            browser.new_context(
                viewport={"width": width, "height": 800}, color_scheme=theme, has_touch=width < 500
            )
        )
        page = contexts[-1].new_page()
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("dialog", lambda dialog: complaints.append(dialog.message))
        page.on("request", lambda request: asked_for.append(request.url))
        page.goto(file.as_uri())
        return page

    yield open_file
    for context in contexts:
        context.close()
    assert complaints == []
    assert [url for url in asked_for if not url.startswith(("file:", "data:"))] == []


@pytest.fixture(scope="module")
def report(small_run: Path) -> Path:
    return small_run / "report.html"


@pytest.fixture(scope="module")
def gallery(small_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gallery")
    Image.effect_noise((300, 200), 80).save(folder / "photo.jpg")
    write_gallery(str(small_run), folder / "photo.jpg", folder / "gallery.html", draws=4, seed=0)
    return folder / "gallery.html"


@pytest.fixture(scope="module")
def beside(small_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("beside")
    other = Path(shutil.copytree(small_run, folder / "other"))
    (other / "recipe.yaml").write_text((other / "recipe.yaml").read_text().replace("seed: 0", "seed: 5"))
    write_beside(small_run, other, folder / "page.html")
    return folder / "page.html"


@pytest.fixture(scope="module")
def decided(small_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a policy as a screening learns it: many elements far outside a wide band."""
    run = Path(shutil.copytree(small_run, tmp_path_factory.mktemp("decided") / "run"))
    (run / "digests.json").unlink()
    theta_E = torch.where(torch.arange(36) < 15, -7.0, 0.0)
    policy = Policy((theta_E[:, None] + theta_E).flatten())
    uniform = 1 / 36
    evidence = Evidence(
        p_value=1e-30,
        outer_steps=4,
        low_AE=((0.38 * uniform,) * 36,) * 2,
        high_AE=((2.6 * uniform,) * 36,) * 2,
        operation_band=(0.15, 6.9),
    )
    provenance = {**Policy.load(small_run).provenance, "evidence": evidence.document()}
    Policy(policy.theta, provenance=provenance).save(run / "policy.json")
    return write_report(run, lambda text: None)


def widest(page: Page) -> int:
    return int(page.evaluate("document.documentElement.scrollWidth"))


WIDTHS = (390, 768, 1440)
PLACES = """() => {
  const seen = (one) => one.checkVisibility() && one.getClientRects().length > 0;
  const texts = [...document.querySelectorAll("main *, main svg text")].filter((one) =>
    seen(one) && !one.closest("option, select, .repeated") &&
    [...one.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim()));
  const size = (one) => {
    const font = parseFloat(getComputedStyle(one).fontSize);
    if (!(one instanceof SVGElement)) return font;
    const matrix = one.getScreenCTM();
    return font * Math.hypot(matrix.a, matrix.b);
  };
  const box = (one) => {
    const { left, top, right, bottom } = one.getBoundingClientRect();
    return { text: one.textContent.trim(), left, top, right, bottom };
  };
  const charts = [...document.querySelectorAll(".chart, .matrix")].filter(seen);
  return {
    sizes: texts.map((one) => [size(one), one.textContent.trim()]),
    charts: charts.map((one) => ({ ...box(one), texts: texts.filter((text) => one.contains(text) &&
      text instanceof SVGElement).map(box) })),
    sections: [...document.querySelectorAll("main section")].filter(seen).map((one) => ({ ...box(one), text: one.id })),
    cells: [...document.querySelectorAll(".cards li, .numbers td, .numbers th, .legend > span, .pick > *")]
      .filter(seen).map((one) => ({ ...box(one), inner: one.scrollWidth, outer: one.clientWidth })),
  };
}"""
"""Where everything visible is: sizes of all text, charts with their text, sections, and cells."""


def overlaps(boxes: list[dict[str, Any]], slack: float = 1.0) -> list[tuple[str, str]]:
    """Pairs of boxes that have more in common than `slack` pixels in both directions."""
    return [
        (one["text"], other["text"])
        for number, one in enumerate(boxes)
        for other in boxes[:number]
        if min(one["right"], other["right"]) - max(one["left"], other["left"]) > slack
        and min(one["bottom"], other["bottom"]) - max(one["top"], other["top"]) > slack
    ]


@pytest.mark.parametrize(
    ("name", "width"), [*itertools.product(("report", "gallery", "beside"), WIDTHS), ("decided", 390)]
)
def test_nothing_overlaps_or_is_cut_off(
    name: str, width: int, open_page: Open, request: pytest.FixtureRequest
) -> None:
    page = open_page(request.getfixturevalue(name), width)
    themes: tuple[Literal["light", "dark"], ...] = ("light", "dark")
    for theme in themes:
        page.emulate_media(color_scheme=theme)
        assert widest(page) == width
        places = page.evaluate(PLACES)
        assert places["sizes"]
        assert [text for size, text in places["sizes"] if size < 10.99] == []
        assert overlaps(places["sections"]) == []
        for chart in places["charts"]:
            assert overlaps(chart["texts"], slack=2.0) == []
            for text in chart["texts"]:
                assert chart["left"] - 1 <= text["left"], text
                assert text["right"] <= chart["right"] + 1, text
                assert text["bottom"] <= chart["bottom"] + 2, text
        assert [cell["text"] for cell in places["cells"] if cell["inner"] > cell["outer"] + 1 > 1] == []
    page.locator("details").evaluate_all("all => all.forEach(one => one.open = true)")
    assert widest(page) == width


def test_a_policy_far_from_uniform(decided: Path, open_page: Open) -> None:
    """Ratios near 0 keep their digits, and elements outside the band are counted by transform."""
    page = open_page(decided)
    said = page.locator("#evidence").inner_text()
    assert "distinguishable from uniform (p < 0.0001)" in said
    assert re.search("Rotate: 6 elements below the noise band, 0.00[1-9]+ x uniform", said)
    assert page.locator("#evidence li").count() == 5
    assert "0.00 ×" not in page.locator("#operations").inner_text()
    assert re.fullmatch(
        r"\S+ %, 0\.0+[1-9]+ × uniform, below the noise", page.locator("#matrix-picked").inner_text()
    )


def test_overview_in_light_and_dark(open_page: Open) -> None:
    """Every text of the documentation's drawing is in its frame, and on no other text."""
    page = open_page(REPOSITORY / "docs" / "overview.svg", width=1000)
    texts = page.evaluate(
        """() => [...document.querySelectorAll("text")].map((one) => {
          const { left, top, right, bottom } = one.getBoundingClientRect();
          return { text: one.textContent, left, top, right, bottom };
        })"""
    )
    assert len(texts) > 15
    assert overlaps(texts) == []
    assert all(text["left"] >= 0 and text["right"] <= 1000 for text in texts)
    light = page.screenshot()
    page.emulate_media(color_scheme="dark")
    assert page.screenshot() != light


def test_pictures_of_the_documentation(report: Path, browser: Browser, tmp_path: Path) -> None:
    """The program that takes them does, from any run; the left half is light, the right one dark."""
    pictures = runpy.run_path(str(REPOSITORY / "docs" / "pictures.py"))
    both, phone = pictures["take"](browser, report.parent, tmp_path)
    with Image.open(both) as image:
        grey = np.asarray(image.convert("L"))
        assert grey[-3, 2] > 250
        assert grey[2, -3] < 40
    with Image.open(phone) as image:
        assert image.size == (3 * 390 + 2 * 16, 780)


def test_slider_shows_the_step_that_it_stands_at(report: Path, open_page: Open) -> None:
    lines = read_metrics(report.parent / "metrics.jsonl")
    page = open_page(report)
    slider = page.get_by_role("slider", name="Outer step")
    swatches = page.locator(".swatch")

    def colours() -> list[str]:
        return list(swatches.evaluate_all("all => all.map(one => getComputedStyle(one).backgroundColor)"))

    slider.focus()
    seen = []
    for key, outer_step in (("Home", 0), ("ArrowRight", 1), ("End", len(lines) - 1)):
        slider.press(key)
        line = lines[outer_step]
        assert page.locator("#step-now").inner_text() == str(outer_step + 1)
        wanted = [p * PAPER.num_elements for marginal in line["element_probabilities"] for p in marginal]
        shown = [float(text) for text in page.locator(".now").all_inner_texts()]
        assert shown == pytest.approx(wanted, abs=0.0051)
        reward = f"{100 * line['reward'][line['winner']]:.2f} %"
        assert f"Trajectory {line['winner']} won with {reward}" in page.locator("#step-says").inner_text()
        seen.append(colours())
    assert seen[0] != seen[1] != seen[2]


def test_heatmap_moves_the_slider(report: Path, open_page: Open) -> None:
    page = open_page(report)
    page.locator(".strip").first.click(position={"x": 3, "y": 100})
    assert page.locator("#step-now").inner_text() == "1"


def test_matrix_tells_what_is_pointed_at(report: Path, open_page: Open) -> None:
    policy = Policy.load(report.parent)
    page = open_page(report)
    page.locator("#matrix-map").scroll_into_view_if_needed()
    box = page.locator("#matrix-map .cells").bounding_box()
    assert box is not None
    side = box["width"] / PAPER.num_elements

    tip = page.locator("#matrix-says")
    assert not tip.is_visible()
    for first, second in ((0, 0), (7, 30)):
        page.mouse.move(box["x"] + (second + 0.5) * side, box["y"] + (first + 0.5) * side)
        check_tip(tip.inner_text(), policy, first, second)
    page.locator("#matrix-map").focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowLeft")
    check_tip(tip.inner_text(), policy, 8, 29)


def check_tip(text: str, policy: Policy, first: int, second: int) -> None:
    """`Rotate 10, then Invert: 0.07716 %, 1.00 × uniform` with the policy's numbers."""
    names, numbers = text.split(": ")
    percent, ratio = (float(number.split()[0]) for number in numbers.split(", ")[:2])
    probability = float(policy.probabilities[PAPER.operation_of(first, second)])
    assert names == f"{PAPER.elements[first].name}, then {PAPER.elements[second].name}"
    assert percent == pytest.approx(100 * probability, rel=1e-3)
    assert ratio == pytest.approx(probability * PAPER.num_operations, abs=0.0051)
    assert policy.evidence is not None
    assert numbers.endswith(" the noise")


def test_matrix_on_a_phone(report: Path, open_page: Open) -> None:
    """The whole map is in view; a cell is tapped, or chosen by the names of its elements."""
    policy = Policy.load(report.parent)
    page = open_page(report, width=390)
    page.locator("#matrix-map").scroll_into_view_if_needed()
    box = page.locator("#matrix-map .cells").bounding_box()
    assert box is not None
    assert box["x"] >= 0
    assert 340 <= box["width"] <= 390 - box["x"]
    for side in (0.02, 0.35, 0.99):
        page.touchscreen.tap(box["x"] + side * box["width"], box["y"] + 2)
        column = int(side * PAPER.num_elements)
        tip = page.locator("#matrix-says")
        check_tip(tip.inner_text(), policy, 0, column)
        tip_box = tip.bounding_box()
        assert tip_box is not None
        assert tip_box["x"] >= 0
        assert tip_box["x"] + tip_box["width"] <= 390
        assert page.locator("#matrix-second").input_value() == PAPER.elements[column].name
    page.locator("#matrix-first").select_option(PAPER.elements[13].name)
    page.locator("#matrix-second").select_option(PAPER.elements[35].name)
    names = f"{PAPER.elements[13].name}, then {PAPER.elements[35].name}: "
    check_tip(names + page.locator("#matrix-picked").inner_text(), policy, 13, 35)
    for pick in page.locator(".pick select").all():
        pick_box = pick.bounding_box()
        assert pick_box is not None
        assert pick_box["height"] >= 44
    assert widest(page) == 390


def test_light_and_dark(report: Path, open_page: Open) -> None:
    def background(page: Page) -> Any:
        return page.evaluate("getComputedStyle(document.body).backgroundColor")

    light, dark = open_page(report, theme="light"), open_page(report, theme="dark")
    assert background(light) == "rgb(255, 255, 255)"
    assert background(dark) == "rgb(20, 23, 27)"
    assert light.screenshot() != dark.screenshot()
    dark.get_by_role("button", name="Light theme").click()
    assert background(dark) == background(light)
    dark.reload()
    assert background(dark) == background(light)
    assert dark.get_by_role("button", name="Dark theme").is_visible()


def test_paper(report: Path, open_page: Open) -> None:
    page = open_page(report, width=718, theme="dark")  # an A4 page between its margins
    document = page.pdf(format="A4")
    assert document.startswith(b"%PDF")
    assert 3 <= document.count(b"/Type /Page\n") <= 12
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.documentElement).colorScheme") == "light"
    assert page.locator("#recipe pre").is_visible()
    assert not page.locator("#step").is_visible()
    clipped = page.locator(".scroll, figure, table, pre").evaluate_all(
        "all => all.filter(one => one.scrollWidth > one.clientWidth + 1 && one.clientWidth).map(one => one.className)"
    )
    assert clipped == []
    assert widest(page) == 718


def test_foreign_text_runs_nothing(report: Path, open_page: Open, tmp_path: Path) -> None:
    run = Path(shutil.copytree(report.parent, tmp_path / "<img src=x onerror=alert(2)>"))
    attack = "</script><script>alert(1)</script><img src=x onerror=alert(1)>"
    (run / "comparison.json").write_text(json.dumps({"rows": [{"policy": attack}]}))
    (run / "recipe.yaml").write_text(attack)
    page = open_page(write_report(run, lambda text: None))
    assert page.locator("img[src='x']").count() == 0
    assert page.get_by_text(attack).count() == 2  # the recipe and the comparison


def test_reload_of_a_run_in_progress_keeps_the_slider(report: Path, open_page: Open, tmp_path: Path) -> None:
    run = Path(shutil.copytree(report.parent, tmp_path / "run"))
    (run / "result.json").unlink()
    page = open_page(write_report(run, lambda text: None, watch=None))
    assert page.locator("meta[http-equiv=refresh]").count() == 1
    page.get_by_role("slider", name="Outer step").press("Home")
    page.reload()
    assert page.locator("#step-now").inner_text() == "1"
