"""The page in a real browser: the system's Chromium, headless."""

from __future__ import annotations

import shutil

import pytest

from ppa_fast.reporting.page import report
from tests.reporting.conftest import write_run

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the PATH")


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as p:
        chromium = p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def file(trained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    other = write_run(folder / ("a-long-name-" * 12), [{"step": 1, "loss": 2.0}, {"step": 4, "loss": 1.0}])
    return report([trained.folder, other], folder / "page.html")


def visit(browser, file, width=1280, scheme="light"):
    """Returns the open page, its console errors, and its network requests."""
    page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
    said, asked = [], []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(file.as_uri())
    return page, said, asked


@pytest.mark.parametrize("width", [360, 1280])
def test_the_page_loads_without_errors_or_requests_and_fits_the_screen(browser, file, width):
    page, said, asked = visit(browser, file, width)
    page.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
    assert said == []
    assert [url for url in asked if not url.startswith("data:")] == [file.as_uri()]
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate("window.hacked") is None
    page.close()


@pytest.mark.parametrize("width", [360, 1280])
def test_figures_are_drawn_with_readable_text(browser, file, width):
    page, _, _ = visit(browser, file, width)
    figures = page.query_selector_all("figure")
    assert len(figures) > 10
    for figure in figures:
        box = figure.query_selector("svg").bounding_box()
        assert box["width"] > 250
        assert box["height"] > 100
        assert figure.query_selector_all("svg path")
    heights = page.evaluate("[...document.querySelectorAll('svg text')].map(t => t.getBoundingClientRect().height)")
    assert min(heights) > 8  # in pixels
    # Nothing is drawn outside its figure.
    outside = """[...document.querySelectorAll('svg text')].filter(t => {
        const own = t.getBoundingClientRect(), svg = t.closest('svg').getBoundingClientRect();
        return own.left < svg.left - 1 || own.right > svg.right + 1;
    }).map(t => t.textContent)"""
    assert page.evaluate(outside) == []
    page.close()


def luminance(color: str) -> float:
    """Relative luminance of ``rgb(r, g, b)`` after WCAG."""
    parts = [int(part) / 255 for part in color[color.index("(") + 1 : -1].split(",")[:3]]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return sum(weight * p for weight, p in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one: str, other: str) -> float:
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_light_and_dark_differ_and_both_have_contrast(browser, file):
    """WCAG AA: 4.5 for text, 3 for graphics."""
    backgrounds = []
    for scheme in ("light", "dark"):
        page, _, _ = visit(browser, file, scheme=scheme)

        def color(selector, name, page=page):
            found = f"getComputedStyle(document.querySelector({selector!r}))[{name!r}]"
            return page.evaluate(found)

        paper = color("body", "backgroundColor")
        backgrounds.append(paper)
        for selector in ("body", "figcaption", "a"):
            assert contrast(color(selector, "color"), paper) >= 4.5, (scheme, selector)
        assert contrast(color("svg text", "fill"), paper) >= 4.5
        for number in range(10):
            assert contrast(color(f".s{number}", "color"), paper) >= 3 if page.query_selector(f".s{number}") else True
        assert contrast(color(".matrix td.pair", "color"), color(".confusions li", "backgroundColor")) >= 4.5
        page.close()
    light, dark = map(luminance, backgrounds)
    assert light > 0.8 > 0.2 > dark


def test_arabic_is_right_to_left_and_chinese_left_to_right(browser, file):
    page, _, _ = visit(browser, file)
    page.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
    for tag, direction in (("ar", "rtl"), ("zh-Hant", "ltr"), ("en", "ltr")):
        found = page.evaluate(f"getComputedStyle(document.querySelector('[lang={tag}]')).direction")
        assert found == direction, tag
    page.close()


def test_wide_tables_scroll_in_their_box(browser, file):
    page, _, _ = visit(browser, file, 360)
    inner, outer = page.evaluate(
        "(b => [b.scrollWidth, b.clientWidth])(document.querySelector('.matrix').parentElement)"
    )
    assert inner > outer
    page.close()
