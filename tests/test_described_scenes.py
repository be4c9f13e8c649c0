"""Described scenes: every text is true, every target is unique, and the shares are as promised."""

import colorsys
import hashlib
import json
import re
from collections import Counter
from pathlib import Path

import pytest
from typer.testing import CliRunner

from opendetr.cli.main import app
from opendetr.data import DataError
from opendetr.synthetic import (
    ANSWERS,
    CATEGORIES,
    QUESTION_TYPES,
    DescribedConfig,
    DescribedScene,
    draw_described_scene,
    draw_scene,
    vocabulary,
)

SMALL = DescribedConfig(size=96)
FROZEN_TEXTS = "b0dd9c9e46f27b3856d79a4e03fbc7f83f9737a87973476dfd6183fd89e56d2f"
RELATIONS = {"left of": (0, -1), "right of": (0, 1), "above": (1, -1), "below": (1, 1)}
NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight")


@pytest.fixture(scope="module")
def scenes() -> list[DescribedScene]:
    return [draw_described_scene(index, config=SMALL) for index in range(200)]


def is_meant(drawn: DescribedScene, index: int, words: str) -> bool:
    """Whether each word is true of an object, by the segment of the scene and its attributes; plurals are allowed."""
    thing = drawn.things[index]
    true = {thing.shape, thing.colour, thing.texture, thing.size, "object"}
    true |= {f"{thing.shape}s", f"{thing.shape}es", "objects"}
    return set(words.split()) <= true


def meant(drawn: DescribedScene, words: str) -> list[int]:
    return [index for index in range(len(drawn.things)) if is_meant(drawn, index, words)]


def referents(drawn: DescribedScene, text: str) -> list[int]:
    """All objects that an expression is true of, found by trying every object and every landmark."""
    relation = next((name for name in RELATIONS if f" {name} the " in text), None)
    if relation is None:
        return meant(drawn, text.removeprefix("the "))
    words, landmark_words = text.removeprefix("the ").split(f" {relation} the ")
    axis, sign = RELATIONS[relation]
    boxes = [label.box for label in drawn.scene.objects]
    centres = [box[axis] + box[axis + 2] for box in boxes]
    landmarks = meant(drawn, landmark_words)
    assert len(landmarks) == 1, "'the' landmark is one object"
    return [
        index for index in meant(drawn, words) if any(sign * (centres[index] - centres[mark]) > 0 for mark in landmarks)
    ]


def test_the_target_of_every_expression_is_unique(scenes: list[DescribedScene]) -> None:
    for drawn in scenes:
        assert referents(drawn, drawn.expression.text) == [drawn.expression.target], drawn.expression.text


def test_a_relation_is_needed_and_clear(scenes: list[DescribedScene]) -> None:
    for drawn in scenes:
        expression = drawn.expression
        begin, end = expression.span
        words = expression.text[begin:end]
        assert expression.text[:begin] == "the "
        assert (len(meant(drawn, words)) > 1) == (expression.kind == "relational")
        assert is_meant(drawn, expression.target, words)


def test_two_in_five_expressions_are_relational(scenes: list[DescribedScene]) -> None:
    kinds = Counter(drawn.expression.kind for drawn in scenes)
    assert kinds == {"relational": 80, "attribute": 120}


def test_every_target_has_a_distractor_of_its_shape_and_one_of_its_colour(scenes: list[DescribedScene]) -> None:
    for drawn in scenes:
        assert 3 <= len(drawn.things) <= 8
        target = drawn.things[drawn.expression.target]
        others = [thing for thing in drawn.things if thing is not target]
        assert any(thing.shape == target.shape and thing.colour != target.colour for thing in others)
        assert any(thing.colour == target.colour and thing.shape != target.shape for thing in others)
    assert set(Counter(len(drawn.things) for drawn in scenes)) == set(range(3, 9))


def test_the_words_are_those_of_the_labels(scenes: list[DescribedScene]) -> None:
    names = {category["id"]: category["name"] for category in CATEGORIES}
    for drawn in scenes:
        for thing, label in zip(drawn.things, drawn.scene.objects, strict=True):
            x0, y0, x1, y1 = label.box
            assert names[label.category_id] == thing.shape
            assert thing.centre == ((x0 + x1) / 192, (y0 + y1) / 192)
            side = max(x1 - x0, y1 - y0) / 96
            assert side < 0.22 if thing.size == "small" else side > 0.2
            assert label.occlusion <= 0.2
            assert not label.iscrowd


def test_the_colours_are_those_of_the_pixels() -> None:
    """The mean hue of plain objects in the image; white ones are bright and grey."""
    hues = {"red": 0.0, "orange": 0.08, "yellow": 0.155, "green": 0.35, "blue": 0.63, "purple": 0.775}
    checked = Counter[str]()
    for index in range(40):
        drawn = draw_described_scene(index, config=SMALL)
        for thing, label in zip(drawn.things, drawn.scene.objects, strict=True):
            if thing.texture != "plain":
                continue
            mean = drawn.scene.image[drawn.scene.segments == label.id].mean(0) / 255
            hue, saturation, value = colorsys.rgb_to_hsv(*mean)
            if thing.colour == "white":
                assert saturation < 0.2
                assert value > 0.7
            else:
                nearest = min(hues, key=lambda name: abs((hue - hues[name] + 0.5) % 1 - 0.5))
                assert nearest == thing.colour
            checked[thing.colour] += 1
    assert len(checked) == 7


def test_captions_name_all_and_only_the_objects_they_describe(scenes: list[DescribedScene]) -> None:
    for drawn in scenes:
        text, named = drawn.caption.text, []
        for (begin, end), things in drawn.caption.mentions:
            assert meant(drawn, text[begin:end]) == sorted(things)
            before = re.findall(r"\w+", text[:begin])[-1]
            article = "an" if text[begin] in "aeiou" else "a"
            assert before == (article if len(things) == 1 else NUMBERS[len(things) - 1])
            named += things
        assert len(named) == len(set(named))
        assert 1 <= len(drawn.caption.mentions) <= 4
    assert sum(len(drawn.caption.mentions) > 1 for drawn in scenes) > 180


def answer_of(drawn: DescribedScene) -> str:
    """The answer to a question, from its text alone."""
    question = drawn.question
    words = re.sub(r"[?]", "", question.text)
    if question.type == "count":
        return str(len(meant(drawn, words.removeprefix("how many ").removesuffix(" are there"))))
    if question.type == "existence":
        return "yes" if meant(drawn, words.split(" ", 3)[3]) else "no"
    if question.type == "comparison":
        more, less = words.removeprefix("are there more ").split(" than ")
        return "yes" if len(meant(drawn, more)) > len(meant(drawn, less)) else "no"
    found = meant(drawn, words.split(" is the ")[1])
    assert len(found) == 1
    return str(getattr(drawn.things[found[0]], question.type))


def test_answers_are_right(scenes: list[DescribedScene]) -> None:
    for drawn in scenes:
        assert drawn.question.answer == answer_of(drawn), drawn.question.text
        for (begin, end), things in drawn.question.mentions:
            assert meant(drawn, drawn.question.text[begin:end]) == list(things)
    types = Counter(drawn.question.type for drawn in scenes)
    assert set(types) == set(QUESTION_TYPES)
    assert min(types.values()) > 20
    assert {drawn.question.answer for drawn in scenes} <= set(ANSWERS)
    for name in ("existence", "comparison"):
        answers = Counter(drawn.question.answer for drawn in scenes if drawn.question.type == name)
        assert 0.3 < answers["yes"] / answers.total() < 0.7


def test_all_words_are_in_the_vocabulary(scenes: list[DescribedScene]) -> None:
    texts = [text for drawn in scenes for text in (drawn.expression.text, drawn.caption.text, drawn.question.text)]
    used = set(re.findall(r"[a-z]+", " ".join(texts)))
    assert used <= set(vocabulary())


def test_described_scenes_never_change() -> None:
    """Published numbers refer to these texts and labels."""
    content = [
        [drawn.expression.text, drawn.caption.text, drawn.question.text, drawn.question.answer,
         [[label.category_id, label.box, label.area] for label in drawn.scene.objects]]
        for drawn in map(draw_described_scene, range(8))
    ]  # fmt: skip
    assert hashlib.sha256(json.dumps(content, separators=(",", ":")).encode()).hexdigest() == FROZEN_TEXTS


def test_same_key_same_bytes_and_no_other() -> None:
    first, again = (draw_described_scene(5, seed=3, config=SMALL) for _ in range(2))
    assert first.scene.image.tobytes() == again.scene.image.tobytes()
    assert (first.things, first.expression, first.caption, first.question) == (
        again.things, again.expression, again.caption, again.question
    )  # fmt: skip
    others = [draw_described_scene(5, seed=3, split="val", config=SMALL), draw_described_scene(6, seed=3, config=SMALL)]
    assert len({drawn.scene.image.tobytes() for drawn in [first, *others]}) == 3
    assert draw_scene(5).image.tobytes() != draw_described_scene(5).scene.image.tobytes()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"min_objects": 2}, "need 3 <= min"),
        ({"max_objects": 9}, "max <= 8"),
        ({"size": 8}, "size=8"),
        ({"relational": 1.5}, "relational=1.5"),
    ],
)
def test_wrong_settings(settings: dict[str, float], message: str) -> None:
    with pytest.raises(DataError, match=message):
        DescribedConfig(**settings)


def test_make_writes_captions_and_replaces_other_scenes(tmp_path: Path) -> None:
    folder = tmp_path / "scenes"
    make = ["data", "make", str(folder), "--train", "3", "--val", "0", "--size", "64"]
    assert CliRunner().invoke(app, make).exit_code == 0
    result = CliRunner().invoke(app, [*make, "--captions", "--json"])
    assert json.loads(result.stdout)["captions"] is True
    assert [path.name for path in (folder / "annotations").iterdir()] == ["captions_train.json"]
    content = json.loads((folder / "annotations" / "captions_train.json").read_text())
    assert len(content["images"]) == 9
    captions = {row["id"]: row["caption"] for row in content["images"]}
    for row in content["annotations"]:
        for begin, end in row["tokens_positive"]:
            assert re.fullmatch(r"\w+( \w+)*", captions[row["image_id"]][begin:end])
    assert CliRunner().invoke(app, make).exit_code == 0
    assert not (folder / "annotations" / "captions_train.json").exists()


def test_hard_scenes_have_no_captions(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["data", "make", str(tmp_path / "scenes"), "--captions", "--hard"])
    assert result.exit_code == 2
    assert "choose one" in result.output
