"""The page is whole, self-contained and says what it was given."""

import base64
import io
import re

import pytest
from PIL import Image

from html_pages import Page
from opendetr.evaluation import GroundingEvaluation, images_section, note, score_sections, value_table, write_page
from opendetr.evaluation.detection import Evaluation
from opendetr.evaluation.page import chart_figure
from opendetr.evaluation.thresholds import OperatingPoints
from opendetr.evaluation.videos import TrackingEvaluation

METRICS = {"AP": 0.4321, "AP50": 0.7, "AP_S": None, "AR100": 0.55}
PER_CLASS = {"cat": 0.25, "<script>": 0.75, "unseen": None}


def evaluation(metrics=METRICS, per_class=PER_CLASS, masks=None, panoptic=None, kind=Evaluation, **more):
    qualities = {name: {"PQ": value, "SQ": None, "RQ": None} for name, value in (panoptic or {}).items()}
    return kind(metrics, per_class, masks or {}, qualities, (), OperatingPoints(), {}, 0.1, [], (), **more)


def written(folder, *, title="Scenes & more", images=(), facts=None, scores=None, **changes) -> str:
    sections = [("Images", images_section(images)), *score_sections(scores or evaluation(**changes))]
    return write_page(folder / "report.html", title, sections, facts=facts).read_text(encoding="utf-8")


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
    words = Page(written(tmp_path, metrics=metrics, panoptic={"sky": 0.8, "cat": None})).words
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
    written(tmp_path / "new" / "deep")
    assert [path.name for path in (tmp_path / "new" / "deep").iterdir()] == ["report.html"]


def test_a_failed_write_leaves_the_page_that_was_there(tmp_path, monkeypatch):
    before = written(tmp_path)

    def full(_descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("opendetr.files.os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        written(tmp_path, title="other")
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == before
    assert len(list(tmp_path.iterdir())) == 1


def test_counts_of_a_tracker_are_whole_and_its_videos_have_a_table(tmp_path):
    metrics = {"HOTA": 0.4321, "switches": 1234.0}
    sequences = {"street <1>": {"HOTA": 0.25, "switches": 7.0}}
    words = Page(written(tmp_path, scores=evaluation(metrics, kind=TrackingEvaluation, sequences=sequences))).words
    for word in ("0.432", "1,234", "Videos", "street <1>", "0.250", "7"):
        assert word in words


def test_a_model_that_takes_text_has_metrics_and_nothing_else(tmp_path):
    words = Page(written(tmp_path, scores=GroundingEvaluation({"P@1": 0.625}, 0.1, [], ()))).words
    assert "0.625" in words and "AP by class" not in words


def test_columns_of_words_begin_at_the_left_and_those_of_numbers_end_at_the_right():
    page = Page(value_table(("kind", "meaning", "share"), [("a", "no object there", "12 %"), ("b", None, 0.5)]))
    classes = [value for name, value in page.attributes if name == "class"]
    assert classes == ["scroll", "values", "text", "text", "number", "text", "number"]


def test_what_is_wider_than_a_phone_scrolls_with_the_keyboard():
    chart = chart_figure(Image.new("RGB", (960, 540), "white"), "AP & more")
    for content in (chart, value_table(("class", "AP"), [("cat", 0.5)])):
        attributes = Page(content).attributes
        assert ("tabindex", "0") in attributes and ("role", "region") in attributes
    assert ("aria-label", "AP & more") in Page(chart).attributes


def test_a_chart_file_is_taken_as_it_is_and_a_missing_one_is_left_out(tmp_path):
    path = tmp_path / "curves.png"
    assert chart_figure(path, "curves") == ""
    Image.new("RGB", (30, 20), "red").save(path)
    page = Page(chart_figure(path, "curves"))
    (source,) = (value for name, value in page.attributes if name == "src")
    assert base64.b64decode(source.split(",")[1]) == path.read_bytes()
    assert ("width", "30") in page.attributes and ("height", "20") in page.attributes


def test_a_note_is_escaped():
    assert Page(note("<b> & more")).words == ["<b> & more"]
