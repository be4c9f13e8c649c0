"""The page is whole, self-contained and says what it was given."""

import base64
import io
import re
from html.parser import HTMLParser

import pytest
from PIL import Image

from opendetr.evaluation.report import write_report

METRICS = {"AP": 0.4321, "AP50": 0.7, "AP_S": None, "AR100": 0.55}
PER_CLASS = {"cat": 0.25, "<script>": 0.75, "unseen": None}
UNPAIRED = {"meta", "img", "br", "input", "!doctype"}


class Page(HTMLParser):
    """Collects a page's text, attributes and open elements."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.words: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.tags: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes += attrs
        if tag not in UNPAIRED:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style" and data.strip():
            self.words.append(data.strip())


def written(folder, **changes) -> str:
    arguments = {"title": "Scenes & more", "metrics": METRICS, "per_class": PER_CLASS}
    return write_report(folder / "report.html", **(arguments | changes)).read_text(encoding="utf-8")


def test_the_page_says_what_it_was_given(tmp_path):
    page = Page(written(tmp_path, facts={"Images": 300, "Model": "detr-tiny"}))
    assert page.open == []
    for word in ("Scenes & more", "AP", "0.432", "0.700", "average precision at IoU 0.50", "cat", "300", "detr-tiny"):
        assert word in page.words
    assert "-" in page.words  # AP_S and the class that is not there


def test_classes_stand_best_first_with_bars(tmp_path):
    text = written(tmp_path)
    order = [Page(text).words.index(name) for name in ("<script>", "cat", "unseen")]
    assert order == sorted(order)
    assert re.findall(r"width: ([\d.]+)%", text.split("</style>")[1]) == ["75.0", "25.0", "0.0"]


def test_scores_of_masks_and_maps_are_explained(tmp_path):
    metrics = METRICS | {"mask_AP": 0.321, "PQ": 0.456, "PQ_stuff": 0.5}
    words = Page(written(tmp_path, metrics=metrics, panoptic_per_class={"sky": 0.8, "cat": None})).words
    for word in ("masks, IoU 0.50 to 0.95", "panoptic quality of stuff", "PQ by class", "sky", "0.800", "0.456"):
        assert word in words
    assert "PQ by class" not in Page(written(tmp_path)).words


def test_everything_is_escaped(tmp_path):
    hostile = '<script>alert("x")</script>'
    image = Image.new("RGB", (4, 4))
    text = written(
        tmp_path,
        title=hostile,
        metrics={hostile: 0.5},
        per_class={hostile: 0.5},
        images=[(hostile, [(hostile, image)])],
        facts={hostile: hostile},
    )
    page = Page(text)
    assert "script" not in page.tags
    assert page.words.count(hostile) == 8  # title, heading, twice a fact, score, class, caption, title of the image
    assert ("alt", f"{hostile}: {hostile}") in page.attributes


def test_images_are_inside_the_page(tmp_path):
    image = Image.new("RGBA", (60, 40), (200, 30, 30, 255))
    page = Page(written(tmp_path, images=[("Scene 3", [("ground truth", image)])]))
    sources = [value for name, value in page.attributes if name == "src"]
    assert len(sources) == 1 and sources[0].startswith("data:image/jpeg;base64,")
    shown = Image.open(io.BytesIO(base64.b64decode(sources[0].split(",")[1])))
    assert shown.size == (60, 40)
    assert shown.getpixel((30, 20)) == pytest.approx((200, 30, 30), abs=4)
    assert page.words.index("ground truth") < page.words.index("Scene 3")


def test_images_come_before_the_scores(tmp_path):
    """With links to all sections, since there may be many images."""
    image = Image.new("RGB", (4, 4))
    page = Page(written(tmp_path, images=[("Scene 3", [("ground truth", image), ("prediction", image)])]))
    order = [page.words.index(word) for word in ("Images", "prediction", "Scene 3", "0.432", "cat")]
    assert order == sorted(order)
    links = [value for name, value in page.attributes if name == "href"]
    assert links == ["#images", "#scores", "#metrics", "#ap-by-class"]
    assert links == [f"#{value}" for name, value in page.attributes if name == "id"]
    assert all(value for name, value in page.attributes if name == "class")


def test_a_page_with_one_section_has_no_links(tmp_path):
    assert "nav" not in Page(written(tmp_path, metrics={})).tags


def test_nothing_is_loaded_from_elsewhere(tmp_path):
    text = written(tmp_path, images=[("", [("", Image.new("L", (4, 4)))])])
    assert not re.search(r"https?:|url\(|@import|<script|<link", text)


def test_an_empty_report_is_a_page(tmp_path):
    page = Page(written(tmp_path, metrics={}, per_class={}))
    assert page.words == ["Scenes & more", "Scenes & more"]


def test_folders_are_made_and_nothing_else_is_left(tmp_path):
    write_report(tmp_path / "new" / "deep" / "page.html", "title", METRICS, PER_CLASS)
    assert [path.name for path in (tmp_path / "new" / "deep").iterdir()] == ["page.html"]


def test_a_failed_write_leaves_the_page_that_was_there(tmp_path, monkeypatch):
    before = written(tmp_path)

    def full(_descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("opendetr.files.os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        written(tmp_path, title="other")
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == before
    assert len(list(tmp_path.iterdir())) == 1
