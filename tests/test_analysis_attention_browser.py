"""The attention page in a real browser: mouse, keyboard, touch, sliders, a narrow window, dark mode.

Run it with: apt-get install chromium; pip install playwright; pytest -m slow tests/test_analysis_attention_browser.py
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from opendetr.analysis.attention import ImageAttention, attention_of
from opendetr.analysis.attention_page import attention_fragment
from opendetr.data.formats import open_split
from opendetr.inference import load
from opendetr.synthetic import SceneConfig, write_scenes
from test_analysis_attention_page import random_image

pytestmark = pytest.mark.slow
HOW_TO_RUN = (
    "needs Chromium and Playwright: apt-get install chromium; pip install playwright; "
    "pytest -m slow tests/test_analysis_attention_browser.py"
)
PAGE = (
    '<!doctype html><html lang="en"><meta charset="utf-8">'
    '<meta name="viewport" content="width=device-width, initial-scale=1"><title>test</title>'
    "<style>:root { color-scheme: light dark } body { margin: 1rem }</style><body>"
)
# The share of the pixels of the drawing that are not transparent, and a number that differs for different drawings.
DRAWING = """() => {
  const canvas = document.querySelector(".attention-stage canvas");
  const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
  let covered = 0, sum = 0;
  for (let k = 0; k < data.length; k += 4) { covered += data[k + 3] > 0; sum = (sum * 31 + data[k]) % 1000003; }
  return [covered / (data.length / 4), sum];
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason=HOW_TO_RUN)
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        pytest.skip(HOW_TO_RUN)
    with playwright.sync_playwright() as running:
        opened = running.chromium.launch(executable_path=program)
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> list[ImageAttention]:
    """The shipped detector in two scenes."""
    folder = tmp_path_factory.mktemp("data") / "scenes"
    write_scenes(folder, counts={"val": 2}, config=SceneConfig(size=160, min_objects=3))
    data = open_split(folder, "val")
    return list(attention_of(load("deformable-detr-tiny", device="cpu"), data, data.images))


@pytest.fixture
def opened(browser, tmp_path) -> Iterator[Any]:
    """A function that opens a page of some images; a message in the console or a request is an error."""
    contexts = []

    def open_page(attentions: list[ImageAttention], **options: Any) -> Any:
        path: Path = tmp_path / "page.html"
        path.write_text(PAGE + attention_fragment(attentions) + "</body></html>")
        options = {"viewport": {"width": 1100, "height": 900}, **options}
        contexts.append(browser.new_context(**options))
        page = contexts[-1].new_page()
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
        page.on("request", lambda request: faults.append(request.url) if request.url.startswith("http") else None)
        page.goto(path.as_uri())
        wait(page)
        return page

    faults: list[str] = []
    yield open_page
    for context in contexts:
        context.close()
    assert not faults


def wait(page: Any) -> None:
    """Until the numbers of the chosen image are unpacked and drawn."""
    page.wait_for_function("!document.querySelector('.attention-status').hasAttribute('aria-busy')")


def drawing(page: Any) -> list[float]:
    return page.evaluate(DRAWING)


def status(page: Any) -> str:
    return page.locator(".attention-status").inner_text()


def place_in(page: Any, x: float, y: float) -> tuple[float, float]:
    """A place in 0..1 of the image, in pixels of the window."""
    area = page.locator(".attention-stage").bounding_box()
    return area["x"] + x * area["width"], area["y"] + y * area["height"]


def centre_of(attention: ImageAttention, index: int) -> tuple[float, float]:
    height, width = attention.detections.size
    x0, y0, x1, y1 = attention.detections.boxes[index].tolist()
    return (x0 + x1) / 2 / width, (y0 + y1) / 2 / height


def smallest_at(attention: ImageAttention, x: float, y: float) -> int:
    """The smallest box at a place in 0..1."""
    height, width = attention.detections.size
    boxes = attention.detections.boxes.numpy() / np.array([width, height] * 2)
    inside = (boxes[:, :2] <= (x, y)).all(1) & (boxes[:, 2:] >= (x, y)).all(1)
    return int(np.where(inside, (boxes[:, 2:] - boxes[:, :2]).prod(1), np.inf).argmin())


def pressed(page: Any, part: str) -> list[str]:
    return [button.get_attribute("aria-pressed") for button in page.locator(f".attention-{part} button").all()]


def test_hovering_over_a_detection_shows_its_attention(opened, found):
    page = opened(found)
    names = [each.inner_text() for each in page.locator(".attention-detections button").all()]
    assert len(names) == len(found[0].detections) > 1
    assert pressed(page, "detections")[0] == "true"  # the best one is shown at once
    before = drawing(page)
    place = centre_of(found[0], len(names) - 1)
    hit = smallest_at(found[0], *place)
    page.mouse.move(*place_in(page, *place))
    assert pressed(page, "detections").index("true") == hit
    assert found[0].detections.names[hit] in status(page) and "Decoder layer 3 of 3" in status(page)
    assert page.locator(".attention-box.chosen").count() == 1
    assert hit == 0 or drawing(page) != before


def test_a_click_shows_the_encoder_from_that_point(opened, found):
    page = opened(found)
    before = drawing(page)
    page.mouse.click(*place_in(page, 0.3, 0.6))
    assert "Encoder self-attention" in status(page)
    assert "true" not in pressed(page, "detections")
    first = drawing(page)
    assert first != before
    marker = page.locator(".attention-point").bounding_box()
    assert np.allclose((marker["x"] + 9, marker["y"] + 9), place_in(page, 0.3, 0.6), atol=1.5)
    page.mouse.click(*place_in(page, 0.8, 0.2))
    assert drawing(page) != first
    assert page.locator(".attention-layer input").is_disabled()


def test_a_clicked_point_stays_while_the_mouse_moves_inside_a_box(opened, found):
    page = opened(found)
    x, y = centre_of(found[0], 0)
    page.mouse.move(*place_in(page, x, y))
    page.mouse.down()
    page.mouse.up()
    page.mouse.move(*(value + 1 for value in place_in(page, x, y)))
    assert "Encoder" in status(page)


def test_the_sliders_step_through_layers_and_heads(opened, found):
    page = opened(found)
    layer, head = (page.locator(f".attention-{name} input") for name in ("layer", "head"))
    assert (layer.get_attribute("aria-valuetext"), head.get_attribute("aria-valuetext")) == ("3 of 3", "mean")
    seen = [drawing(page)]
    layer.fill("1")
    assert "Decoder layer 1 of 3, all 4 heads" in status(page)
    seen.append(drawing(page))
    for number in range(1, 5):
        head.press("ArrowRight")
        assert f"head {number}." in status(page)
        seen.append(drawing(page))
    assert head.get_attribute("aria-valuetext") == "4 of 4"
    assert len({sum_ for _, sum_ in seen}) == len(seen)


def test_everything_works_with_the_keyboard(opened, found):
    page = opened(found)
    page.locator(".attention-strip button").last.focus()
    page.keyboard.press("Enter")
    wait(page)
    assert pressed(page, "strip") == ["false", "true"]
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "attention-stage"
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"  # the focus is seen
    page.keyboard.press("ArrowRight")
    assert "Encoder self-attention" in status(page)
    left = page.locator(".attention-point").bounding_box()["x"]
    page.keyboard.press("ArrowRight")
    assert page.locator(".attention-point").bounding_box()["x"] > left
    page.keyboard.press("Escape")
    assert "Decoder" in status(page)
    for index, name in enumerate(found[1].detections.names):
        page.keyboard.press("Tab")
        assert name in status(page)
        assert pressed(page, "detections").index("true") == index
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowLeft")
    assert "layer 2 of 3" in status(page)


def test_a_narrow_window_and_touch(opened, found):
    page = opened(found, viewport={"width": 400, "height": 800}, has_touch=True, is_mobile=True)
    width = page.evaluate("[document.documentElement.scrollWidth, window.innerWidth]")
    assert width == [400, 400]  # nothing scrolls sideways
    stage = page.locator(".attention-stage").bounding_box()
    assert 300 < stage["width"] < 400
    page.touchscreen.tap(*place_in(page, 0.5, 0.5))
    assert "Encoder self-attention" in status(page)
    page.locator(".attention-detections button").nth(1).tap()
    assert found[0].detections.names[1] in status(page)
    assert page.evaluate("document.documentElement.scrollWidth") == 400


def test_light_and_dark(opened, found):
    """Text and ground differ enough in both (WCAG: 4.5), and the two are not the same."""

    def colours(page: Any) -> list[list[float]]:
        return page.evaluate(
            """() => {
              const read = (element, name) => getComputedStyle(element)[name].match(/[\\d.]+/g).slice(0, 3).map(Number);
              const status = document.querySelector(".attention-status");
              const chosen = document.querySelector('.attention-detections [aria-pressed="true"]');
              return [read(status, "color"), read(status, "backgroundColor"),
                      read(chosen, "color"), read(chosen, "backgroundColor")];
            }"""
        )

    def luminance(colour: list[float]) -> float:
        part = np.array(colour) / 255
        linear = np.where(part <= 0.03928, part / 12.92, ((part + 0.055) / 1.055) ** 2.4)
        return float(linear @ (0.2126, 0.7152, 0.0722))

    grounds = []
    for scheme in ("light", "dark"):
        ink, ground, chosen_ink, chosen_ground = map(luminance, colours(opened(found, color_scheme=scheme)))
        for pair in ((ink, ground), (chosen_ink, chosen_ground)):
            assert (max(pair) + 0.05) / (min(pair) + 0.05) >= 4.5
        grounds.append(ground)
    assert grounds[0] > 0.8 and grounds[1] < 0.05


def test_a_heat_map_is_the_attention(opened):
    """Dense attention covers the whole image, brightest at its highest weight."""
    attention = random_image(grids=((4, 6),), tokens=("a", "word"), sharpness=3)
    page = opened([attention])
    assert drawing(page)[0] == 1
    assert "mean of 2 heads" in status(page)
    assert page.locator(".attention-words span").all_inner_texts() == ["a", "word"]
    page.locator(".attention-head input").fill("2")
    highest = attention.decoder.maps[-1, 1, 0].flatten().argmax()
    brightest = page.evaluate(
        """() => {
          const canvas = document.querySelector(".attention-stage canvas"), context = canvas.getContext("2d");
          const sums = [];
          for (let row = 0; row < 4; row++) for (let column = 0; column < 6; column++) {
            const x = (column + 0.5) * canvas.width / 6, y = (row + 0.5) * canvas.height / 4;
            sums.push(context.getImageData(x, y, 1, 1).data[1]);
          }
          return sums.indexOf(Math.max(...sums));
        }"""
    )
    assert brightest == int(highest)
    page.mouse.click(*place_in(page, 1.5 / 6, 2.5 / 4))  # cell 13
    largest = 100 * float(attention.encoder.maps[0, 0, 13].max())
    assert f"{largest:.0f} %" in status(page) or f"{largest:.1f} %" in status(page)


def test_the_spatial_part_is_chosen(opened):
    page = opened([random_image(kind="spatial")])
    assert "from position only" in status(page)
    before = drawing(page)
    page.get_by_label("content and position").check()
    assert "from position only" not in status(page)
    assert drawing(page) != before
    assert page.locator("fieldset").is_visible()


def test_what_is_missing_is_said(opened):
    page = opened([replace(random_image(detections=0), encoder=None)])
    assert page.locator(".attention-none").is_visible()
    page.mouse.click(*place_in(page, 0.5, 0.5))
    assert "no encoder layers" in status(page)
    assert page.locator("fieldset").is_hidden()
