"""Prediction with texts: phrases, classes, questions, and what cannot be used."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import opendetr
from opendetr.cli.main import app
from opendetr.config import ConfigError, to_dict
from opendetr.data import ANSWER_WORDS
from opendetr.inference import Predictor
from opendetr.inference.texts import answers
from opendetr.nn import WordTokenizer, lost_text, new_tokenizer
from opendetr.postprocess import phrases
from opendetr.presets import build_model, get_preset, miniature
from opendetr.presets.preset import Preset
from opendetr.scoring import SoftmaxNoObject
from opendetr.structures import GroundingOutput, ImageBatch, Predictions, Tokens
from opendetr.weights import ModelCard, save_weights

TEXT = "the large red star left of a disc"


def preset_of(name: str = "mdetr-tiny", **model: object) -> Preset:
    preset = miniature(name)
    return replace(preset, model=replace(preset.model, **model))


def predictor_of(preset: Preset) -> Predictor:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build_model(preset, preset.num_classes(preset.published_categories()))
    return Predictor(model, preset, preset.published_categories(), device="cpu")


@pytest.fixture(scope="module")
def detector() -> Predictor:
    return predictor_of(preset_of())


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (60, 90, 3), dtype=np.uint8)


# --------------------------------------------------------------------------------------------------------------- words


def test_words_have_the_characters_of_their_tokens():
    tokens = new_tokenizer("words")(["A Red disc, 2 zyzzx", "disc"])
    assert tokens.ids.shape == (2, 8) and tokens.padding[1].tolist() == [False] * 3 + [True] * 5
    assert tokens.spans[0, 1:-1].tolist() == [[0, 1], [2, 5], [6, 10], [10, 11], [12, 13], [14, 19]]
    assert tokens.ids[0, [0, 6, 7]].tolist() == [0, 3, 2]  # start, unknown, end
    assert tokens.ids[1].tolist() == [0, tokens.ids[0, 3], 2, 1, 1, 1, 1, 1]
    assert new_tokenizer("words")(["a RED disc"]).ids.tolist() == new_tokenizer("words")(["A red Disc"]).ids.tolist()
    ids = list(new_tokenizer("words")._ids.values())
    assert len(ids) == len(set(ids)) and max(ids) < get_preset("mdetr-tiny").model.text.vocabulary


def test_a_boundary_without_a_token_moves_inwards():
    tokens = WordTokenizer(["red", "disc", "star"])(["red  disc   star"])
    found = {span: list(tokens.range_of(0, *span)) for span in ((0, 3), (3, 9), (3, 12), (9, 12), (0, 16))}
    assert found == {(0, 3): [1], (3, 9): [2], (3, 12): [], (9, 12): [], (0, 16): [1, 2, 3]}


def test_a_long_text_is_cut_and_says_so(detector, image, capsys):
    long = "red disc " * 60
    assert lost_text(long, new_tokenizer("words"), 96) == ("red disc " * 13).strip()
    detector.predict(image, text=long)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: the text is longer than the 96 tokens") and "'red disc red" in line
    assert lost_text("red disc", new_tokenizer("words"), 96) == ""


def test_a_missing_vocabulary_says_where_it_goes(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENDETR_CACHE", str(tmp_path))
    new_tokenizer.cache_clear()
    with pytest.raises(ConfigError) as caught:
        new_tokenizer("roberta")
    assert "https://huggingface.co/FacebookAI/roberta-base/" in str(caught.value)
    assert str(tmp_path / "roberta-base" / "tokenizer.json") in str(caught.value) and "\n" not in str(caught.value)
    (tmp_path / "roberta-base").mkdir()
    (tmp_path / "roberta-base" / "tokenizer.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"tokenizer.json: not a tokenizer.json"):
        new_tokenizer("roberta")
    new_tokenizer.cache_clear()


def test_bytes_of_roberta_have_the_characters_of_their_words(tmp_path, monkeypatch):
    """With a small vocabulary of the same kind: a token begins after the space, as in the authors' data."""
    tokenizers = pytest.importorskip("tokenizers")
    made = tokenizers.ByteLevelBPETokenizer(add_prefix_space=False, trim_offsets=True)
    made.train_from_iterator(["a brown dog sits", "a dog"] * 9, 300, special_tokens=["<s>", "<pad>", "</s>", "<unk>"])
    made.post_processor = tokenizers.processors.RobertaProcessing(("</s>", 2), ("<s>", 0), trim_offsets=True)
    monkeypatch.setenv("OPENDETR_CACHE", str(tmp_path))
    (tmp_path / "roberta-base").mkdir()
    made.save(str(tmp_path / "roberta-base" / "tokenizer.json"))
    new_tokenizer.cache_clear()
    tokens = new_tokenizer("roberta")(["a brown dog", "a"])
    new_tokenizer.cache_clear()
    assert tokens.ids[:, 0].tolist() == [0, 0] and tokens.ids[1].tolist()[2:] == [2] + [1] * (tokens.num_tokens - 3)
    assert tokens.token_at(0, 2) == 2 and tokens.token_at(0, 1) is None
    assert list(tokens.range_of(0, 2, 7)) == list(range(2, tokens.token_at(0, 8)))


# ------------------------------------------------------------------------------------------------------------- phrases


def output_of(caption: str, named: Sequence[Sequence[int]]) -> GroundingOutput:
    """An output whose queries name tokens, equally."""
    tokens: Tokens = new_tokenizer("words")([caption])
    logits = torch.full((1, len(named), 20), -9.0)
    for query, own in enumerate(named):
        logits[0, query, list(own)] = 5.0
    layer = Predictions(logits, torch.zeros(1, len(named), 4), SoftmaxNoObject())
    return GroundingOutput((layer,), torch.zeros(1, 1, len(named), 4), (), (), tokens=tokens)


def test_the_phrase_of_a_query_is_what_its_tokens_cover():
    caption = "the red  star, a disc"
    output = output_of(caption, [[1, 2, 3], [2, 6], [19], [5, 6], [0, 7]])
    (found,) = phrases(output, [caption], [torch.arange(5)])
    whole = "the red star, a disc"  # of queries that name no token
    assert found == ["the red  star", "red ... disc", whole, "a disc", whole]


# ---------------------------------------------------------------------------------------------------------- prediction


def test_detections_have_phrases_and_keep_them(detector, image):
    found = detector.predict(image, text=TEXT, min_score=0)
    assert len(found) == 12 and found.categories.names == (TEXT,)
    assert found.names == list(found.phrases) and all(phrase and phrase in TEXT for phrase in found.phrases)
    assert found.scores.tolist() == sorted(found.scores.tolist(), reverse=True)
    assert found[[3, 1]].phrases == (found.phrases[3], found.phrases[1])
    assert found.to_coco()[2]["phrase"] == found.phrases[2]
    assert found.plot().size == (90, 60)
    assert len(detector.predict(image, text=TEXT, min_score=1.0)) == 0


def test_the_text_decides(detector, image):
    one, other = (detector.predict(image, text=text, min_score=0) for text in (TEXT, "a blue heart"))
    assert (one.boxes - other.boxes).abs().max() > 1e-3


def test_texts_and_classes_are_detected_one_by_one(detector, image):
    alone = [detector.predict(image, text=text, min_score=0) for text in ("a disc", "a star")]
    both = detector.predict(image, text=["a disc", "a star", "a disc"], min_score=0)
    assert sorted(both.scores.tolist()) == sorted(torch.cat([each.scores for each in alone]).tolist())
    assert both.categories.names == ("a disc", "a star") and set(both.labels.tolist()) == {0, 1}
    classes = detector.predict(image, classes=["disc", "red_star"], min_score=0)
    assert classes.phrases is None and classes.categories.names == ("disc", "red_star")
    expected = detector.predict(image, text="red star", min_score=0)
    torch.testing.assert_close(classes[classes.labels == 1].scores, expected.scores)


def test_several_images_are_those_alone_and_a_text_is_encoded_once(detector, image, monkeypatch):
    calls, encode = [], detector.model.text.forward
    monkeypatch.setattr(detector.model.text, "forward", lambda tokens: calls.append(len(tokens)) or encode(tokens))
    images = [image, image[:40], image[::-1].copy()]
    text = "four gears and a drop"
    found = list(detector.predict(images, text=text, min_score=0, batch_size=2))
    assert calls == [1]
    for one, each in zip(found, images, strict=True):
        alone = detector.predict(each, text=text, min_score=0)
        torch.testing.assert_close(one.boxes, alone.boxes, rtol=0, atol=1e-3)
    features, backbone = [], detector.model.backbone.forward
    monkeypatch.setattr(detector.model.backbone, "forward", lambda images: features.append(1) or backbone(images))
    detector.predict(image, classes=["disc", "star", "heart"])
    assert features == [1]  # once for all classes


def test_masks_of_phrases(image):
    detector = predictor_of(preset_of("mdetr-r101-phrasecut"))
    found = detector.predict(image, text=["a disc", "a star"], min_score=0)
    assert found.masks.shape == (24, 60, 90) and found[2:4].masks.shape == (2, 60, 90)
    with pytest.raises(ConfigError, match="panoptic, merge and class_min_scores do not apply to a text"):
        detector.predict(image, text="a disc", panoptic=True)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "mdetr-tiny needs a text: say what to detect with --text or --classes \\(in Python text="),
        ({"text": " "}, "the text is empty; name what to find"),
        ({"text": ["a disc", ""]}, "the text is empty; name what to find"),
        ({"text": "zyzzx qrrt"}, "'zyzzx qrrt': the model knows none of its words"),
        ({"text": 3}, "text=3: give a text or a list of texts"),
        ({"text": []}, "text: the list is empty"),
        ({"classes": "cat"}, "classes='cat': give a list of class names"),
        ({"text": "a", "classes": ["a"]}, "mdetr-tiny takes a text or classes, not both"),
        ({"text": "a disc", "class_min_scores": {"disc": 0.5}}, "class_min_scores do not apply to a text"),
        (
            {"text": "a disc", "patches": [np.zeros((9, 9, 3), np.uint8)]},
            "patches: mdetr-tiny takes a text; leave them",
        ),
        ({"text": "a disc", "min_score": 2}, "min_score: expected a number from 0 to 1"),
    ],
)
def test_a_prompt_that_cannot_be_used_is_one_line(detector, image, given, message):
    with pytest.raises(ConfigError, match=message) as caught:
        detector.predict(image, **given)
    assert "\n" not in str(caught.value)


def test_a_model_without_text_takes_none(image):
    detector = predictor_of(miniature("detr-tiny"))
    with pytest.raises(ConfigError, match="detr-tiny takes no text: leave it out"):
        detector.predict(image, text="a disc")
    with pytest.raises(ConfigError, match="detr-tiny detects the classes of its weights: give none"):
        detector.predict(image, classes=["disc"])
    with pytest.raises(ConfigError, match="detr-tiny answers no questions; use a model that does"):
        detector.ask(image, "how many?")


def test_the_model_takes_strings_tokens_and_counts_them(detector):
    images = ImageBatch.from_images([torch.randn(3, 64, 64)] * 2)
    captions = ["a disc", "the red star"]
    model = detector.model
    with torch.no_grad():
        one, other = model(images, captions=captions), model(images, captions=model.tokenizer(captions))
    assert torch.equal(one.final.boxes, other.final.boxes)
    with pytest.raises(ValueError, match="expected a caption for each of 2 images, got 1"):
        model(images, captions=captions[:1])
    with pytest.raises(ValueError, match="needs a text for each image"):
        model(images)


# ----------------------------------------------------------------------------------------------------------- questions


def test_questions_have_answers(image, tmp_path, monkeypatch):
    detector = predictor_of(preset_of(questions="scenes"))
    answer = detector.ask(image, "how many red discs are there?")
    assert str(answer) == answer.text and 0 <= answer.score <= 1
    assert [str(each) for each in detector.ask([image, image], answer.question)] == [answer.text] * 2
    with pytest.raises(ConfigError, match="the text is empty"):
        detector.ask(image, "")
    with pytest.raises(ConfigError, match=r"question=\['how many\?'\]: give one question as text"):
        detector.ask(image, ["how many?"])
    monkeypatch.setenv("OPENDETR_CACHE", str(tmp_path))
    gqa = predictor_of(preset_of("mdetr-r101-gqa"))
    with pytest.raises(ConfigError, match=r"GQA's lists of answers are missing; .*gqa_answer2id_by_type.json"):
        gqa.ask(image, "is there a disc?")
    names = ("obj", "attr", "rel", "global", "cat")
    by_type = {f"answer_{name}": {f"{name} {index}": index for index in range(2000)} for name in names}
    (tmp_path / "gqa_answer2id_by_type.json").write_text(json.dumps(by_type))
    (tmp_path / "gqa_answer2id.json").write_text("{}")
    assert gqa.ask(image, "is there a disc?").text.split()[0] in names


def test_the_score_of_an_answer_is_that_of_all_heads_it_comes_from():
    """The type of a question alone says little: a count may still be unsure."""

    class Fixed:
        def step(self, images, prompt):
            logits = {"type": [[0.1, 0.2, 0.7], [0.9, 0.05, 0.05]], "reg": [[0.1, 0.3, 0.6], [0.2, 0.5, 0.3]]}
            heads = {name: torch.tensor(rows).log() for name, rows in logits.items()}
            return replace(output_of("a disc", [[1]]), answers=heads | {"binary": torch.tensor([5.0, -1.0])})

        def reset(self):
            pass

    images = ImageBatch.from_images([torch.zeros(3, 8, 8)] * 2)
    found = answers(Fixed(), images, "how many?", ANSWER_WORDS["scenes"].decode)
    assert [answer.text for answer in found] == ["2", "no"]
    assert [answer.score for answer in found] == pytest.approx([0.7 * 0.6, 0.9 / (1 + math.exp(-1))])


# ------------------------------------------------------------------------------------------------------------- command


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    preset = preset_of(questions="scenes")
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    detector = predictor_of(preset)
    save_weights(path, detector.model, ModelCard(to_dict(preset), preset.published_categories(), {}))
    return path


def run(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(app, ["predict", *map(str, arguments)])
    assert result.exit_code == code, result.output
    return result.stdout if code == 0 else result.stderr


def test_the_command_writes_phrases(weights, image, tmp_path):
    from PIL import Image

    Image.fromarray(image).save(tmp_path / "photo.png")
    given = (tmp_path / "photo.png", "--weights", weights, "--min-score", 0)
    run(*given, "--text", TEXT, "--text", "a heart", "--csv", "--out", tmp_path / "out")
    record = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert [row["name"] for row in record["categories"]] == [TEXT, "a heart"]
    assert len(record["annotations"]) == 24
    assert all(row["phrase"] in (TEXT if row["category_id"] == 1 else "a heart") for row in record["annotations"])
    assert (tmp_path / "out" / "photo.png").is_file()
    run(*given, "--classes", "disc, red star", "--classes", "disc", "--out", tmp_path / "classes")
    record = json.loads((tmp_path / "classes" / "predictions.json").read_text())
    assert [row["name"] for row in record["categories"]] == ["disc", "red star"]
    given = given[:3]
    said = run(*given, "--ask", "how many red discs are there?", "--out", tmp_path / "nothing")
    assert said.startswith(f"{tmp_path / 'photo.png'}: ") and not (tmp_path / "nothing").exists()
    questions = ("how many red discs are there?", "is there a star?")
    both = ("--ask", questions[0], "--ask", questions[1])
    first, second = run(*given, *both).splitlines()
    assert f"photo.png: {questions[0]} " in first and f"photo.png: {questions[1]} " in second
    answered = json.loads(run(*given, *both, "--json"))["answers"]
    assert [row["file_name"] for row in answered] == [str(tmp_path / "photo.png")] * 2
    assert [row["question"] for row in answered] == list(questions)
    assert "a camera or stream never ends: give one --ask" in run("0", *given[1:], *both, code=2)
    assert "--ask (detector.ask)" in run(*given, "--out", tmp_path / "a", code=2)
    given_class = (*given, "--classes", "disc", "--min-score", "disc=0.5")
    assert "scores of single classes do not apply" in " ".join(run(*given_class, code=2).split())
    assert "exclude each other" in run(*given, "--text", "a", "--ask", "b", code=2)
    assert "takes no text" in run(tmp_path / "photo.png", "--text", "a disc", "--out", tmp_path / "b", code=2)
    assert not (tmp_path / "a").exists()


def test_the_public_names():
    model = opendetr.create("mdetr-tiny")
    output = model(ImageBatch.from_images([torch.randn(3, 64, 64)]), captions=["a disc"])
    assert output.final.logits.shape == (1, 50, 256)


def test_words_outside_the_vocabulary_are_named(detector, image, capsys):
    detector.predict(image, text="a red xqzv left of a Zorp, a xqzv")
    (line,) = capsys.readouterr().err.splitlines()
    assert line == "warning: the model does not know these words of the text: 'xqzv', 'Zorp'"
    detector.predict(image, text="a red disc")
    assert not capsys.readouterr().err


def test_a_detection_without_a_word_has_the_beginning_of_the_text(detector, image):
    long = "the large red star left of a disc and " * 9
    found = detector.predict(image, text=long, min_score=0)
    assert max(map(len, found.phrases)) <= 100
