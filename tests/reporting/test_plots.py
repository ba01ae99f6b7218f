import math
import re
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

from ppa_fast.reporting import plots
from ppa_fast.reporting.vectors import Projection

SVG = "{http://www.w3.org/2000/svg}"
STEPS = list(range(10, 110, 10))


def curve(name="c", run="runs/a", values=None):
    values = values or [5.0 - n / 10 for n in range(10)]
    return plots.curves(name, "TLM loss", "nats", [(0, run, (STEPS, values))], False)


def texts(svg):
    return [element.text for element in ElementTree.fromstring(svg).iter(f"{SVG}text")]


@pytest.fixture
def pictures():
    points = [(torch.randn(6, 2).double(), torch.randn(6, 2).double()) for _ in range(2)]
    return [
        curve(),
        plots.retrieval_curves("r", {"en-de": ([0, 50], [0.1, 0.5])}, {"en-de": 0}),
        plots.retrieval_bars("b", {"en-de": 0.1, "mean": 0.1}, {"en-de": 0.5, "mean": 0.5}, 50),
        plots.vector_map(
            "m", "before", Projection(points, 0.3), [("en", "de"), ("fr", "en")], {"en": None, "de": 0, "fr": 1}
        ),
    ]


def test_every_figure_has_a_text_description(pictures):
    for picture in pictures:
        root = ElementTree.fromstring(picture.svg)
        assert root.attrib["role"] == "img"
        title, description = root[0], root[1]
        assert (title.tag, description.tag) == (f"{SVG}title", f"{SVG}desc")
        assert root.attrib["aria-labelledby"] == f"{title.attrib['id']} {description.attrib['id']}"
        assert len(title.text) > 5
        assert len(description.text) > 20


def test_colours_come_from_the_style_sheet(pictures):
    """A literal colour would be the same in light and dark mode."""
    for picture in pictures:
        assert not re.findall(r"#[0-9a-fA-F]{6}\b", picture.svg)
        assert set(re.findall(r"var\((--\w+)\)", picture.svg)) <= {
            *("--ink", "--muted", "--line", "--before"),
            *(f"--s{n}" for n in range(plots.COLORS)),
        }


def test_figures_of_one_page_share_no_ids_and_load_nothing(pictures):
    ids = [found for picture in pictures for found in re.findall(r'\bid="([^"]+)"', picture.svg)]
    assert len(ids) == len(set(ids))
    for picture in pictures:
        for target in re.findall(r'(?:href="|url\()#([^")]+)', picture.svg):
            assert target in ids
        assert "<style" not in picture.svg
        assert "metadata" not in picture.svg
        assert not [url for url in re.findall(r"https?://[^\"' >]+", picture.svg) if "www.w3.org" not in url]


def test_equal_figures_give_equal_text():
    assert curve().svg == curve().svg


def test_text_in_figures_stays_text():
    assert "step" in texts(curve().svg)
    bars = plots.retrieval_bars("b", {"$x$ <b>": 0.1}, {"$x$ <b>": 0.512}, 50)
    assert {"$x$ <b>", "51.2", "10.0"} <= set(texts(bars.svg))


def test_the_description_states_the_first_and_last_value():
    picture = curve(values=[math.nan, 4.0, *[3.0] * 7, 2.5])
    description = ElementTree.fromstring(picture.svg)[1].text
    assert description == "runs/a: 4 at step 20, 2.5 at step 100."


@pytest.mark.parametrize(("least", "step"), [(14.16, 0.02), (0.0, 1e-5), (150_000, 100)])
def test_tick_labels_are_distinct(least, step):
    found = texts(curve(values=[least + n * step for n in range(10)]).svg)
    assert len(found) >= 8
    assert len(found) == len(set(found))


def test_an_empty_log_gives_no_figure():
    assert plots.curves("c", "MFU", "%", [(0, "a", ([], []))], True) is None


def test_each_line_has_a_label():
    root = ElementTree.fromstring(curve(run="runs/<b>").svg)
    assert "runs/<b>" in [element.text for element in root.iter(f"{SVG}title")]


def test_long_curves_are_downsampled_to_means_and_keep_gaps():
    x, y = np.arange(10_000), np.where(np.arange(10_000) < 5000, np.nan, 2.0)
    xs, ys = plots._downsampled(x, y)
    assert len(xs) == plots.POINTS
    assert np.isnan(ys[: plots.POINTS // 2]).all()
    assert (ys[plots.POINTS // 2 :] == 2).all()
    assert xs.mean() == pytest.approx(x.mean())
