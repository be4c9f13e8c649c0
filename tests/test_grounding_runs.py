"""From described scenes to metrics: a run of a miniature, its evaluation, and the command."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image
from typer.testing import CliRunner

from opendetr import load, train
from opendetr.cli.main import app
from opendetr.config import ConfigError, to_dict
from opendetr.data import DataError, DetectionData, open_data, read_record
from opendetr.inference import comparisons
from opendetr.nn import new_tokenizer
from opendetr.presets import build_model, get_preset, miniature
from opendetr.synthetic import write_captioned_scenes, write_scenes
from opendetr.synthetic.config import SceneConfig
from opendetr.synthetic.described import DescribedConfig
from opendetr.visualize import draw_truth
from opendetr.weights import ModelCard, WeightsError, save_weights


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("grounding") / "scenes"
    write_captioned_scenes(folder, counts={"train": 4, "val": 4}, config=DescribedConfig(size=64))
    return folder


@pytest.fixture(scope="module")
def run(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps."""
    folder = tmp_path_factory.mktemp("grounding-run")
    preset = miniature("mdetr-tiny")
    preset = replace(preset, model=replace(preset.model, questions="scenes"))
    (folder / "config.yaml").write_text(yaml.safe_dump(to_dict(preset)))
    train(scenes, config=folder / "config.yaml", weights="none", max_steps=2, out=folder / "run", device="cpu")
    return folder / "run"


def test_a_run_from_weights_says_nothing_about_classes(run: Path, scenes: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    train(scenes, weights=run, max_steps=1, out=tmp_path / "run", device="cpu", say=lines.append)
    start = next(line for line in lines if "million parameters" in line)
    assert start.endswith(f"million parameters, from {run / 'best' / 'model.safetensors'}")


def evaluate(*options: Any) -> Any:
    return CliRunner().invoke(app, ["eval", *map(str, options), "--device", "cpu"])


def test_the_metrics_of_a_run(run: Path) -> None:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    metrics = next(row["metrics"] for row in reversed(rows) if row["kind"] == "evaluation")
    assert {"P@1", "P@10_giou", "R@all", "merged_R@1", "accuracy", "majority", "P@1/relational"} <= set(metrics)
    assert 0 <= metrics["P@1"] <= metrics["P@10"] <= 1


def test_eval_prints_the_metrics(run: Path, scenes: Path, tmp_path: Path) -> None:
    result = evaluate(scenes, "--weights", run)
    assert result.exit_code == 0, result.output
    assert "P@1            " in result.output
    assert "expressions with IoU 0.5 or more among the 1 best boxes" in result.output
    assert "seconds per image" in result.output
    result = evaluate(scenes, "--weights", run, "--json", "--predictions", tmp_path / "best.json")
    found = json.loads(result.stdout)
    assert found["images"] == 12
    assert found["metrics"]["P@1/attribute"] is not None
    assert len(json.loads((tmp_path / "best.json").read_text())) == 12


def test_blank_captions_and_options_without_effect(run: Path, scenes: Path) -> None:
    predictor = load(run, device="cpu")
    val = open_data(scenes)["val"]
    blank = replace(val, images=tuple(replace(image, extras={**image.extras, "caption": ""}) for image in val.images))
    assert set(predictor.metrics(blank)) == set(predictor.metrics(val))
    with pytest.raises(ConfigError, match="decoder layers are not evaluated separately; leave layers out"):
        predictor.evaluate(val, layers=True)


def test_a_missing_vocabulary_stops_before_a_run_begins(scenes: Path, tmp_path: Path, monkeypatch) -> None:
    preset = miniature("mdetr-r50")
    preset = replace(preset, model=replace(preset.model, text=replace(preset.model.text, tokenizer="roberta")))
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(to_dict(preset)))
    monkeypatch.setenv("OPENDETR_CACHE", str(tmp_path / "cache"))
    new_tokenizer.cache_clear()
    with pytest.raises(ConfigError, match="the vocabulary of RoBERTa is missing; download https"):
        train(scenes, config=tmp_path / "config.yaml", weights="none", max_steps=1, out=tmp_path / "run", device="cpu")
    assert not (tmp_path / "run").exists()


def test_data_without_captions_in_one_line(run: Path, tmp_path: Path) -> None:
    write_scenes(tmp_path / "plain", counts={"train": 1, "val": 1}, config=SceneConfig(size=64, max_objects=3))
    with pytest.raises(DataError, match="the split 'val' has no captions; this model needs them"):
        load(run, device="cpu").evaluate(tmp_path / "plain")
    assert evaluate(tmp_path / "plain", "--weights", run).exit_code == 1
    with pytest.raises(DataError, match="the split 'train' has no captions"):
        train(tmp_path / "plain", config=run / "config.yaml", weights="none", max_steps=1, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_training_says_what_the_text_encoder_cannot_take(scenes: Path) -> None:
    preset = get_preset("mdetr-tiny")
    data = open_data(scenes)["train"]
    assert preset.advice(data) is None

    def captioned(*captions: str) -> DetectionData:
        images = zip(data.images, captions, strict=False)
        return replace(data, images=tuple(replace(image, extras={"caption": caption}) for image, caption in images))

    assert preset.advice(captioned("the Zyzzx left of the zyzzx", "a qrrt of the")) == (
        "30% of the words in the captions are not in its vocabulary, such as 'zyzzx', 'qrrt', and it cannot tell them "
        "apart; use a model with RoBERTa, such as mdetr-r50"
    )
    assert preset.advice(captioned("red disc " * 60, "a disc")) == (
        "50.0% of the captions are longer than the 96 tokens that it takes, and are cut"
    )


def test_a_model_that_answers_starts_from_one_that_does_not(scenes: Path, tmp_path: Path) -> None:
    """As the authors fine-tune the pre-trained model on questions. Further layers of the other model are left out."""
    preset = miniature("mdetr-tiny")
    plain = build_model(preset, 255)
    path = tmp_path / "model.safetensors"
    save_weights(path, plain, ModelCard(to_dict(preset), preset.published_categories(), {}))
    lines: list[str] = []
    changed = {"model": {"questions": "scenes", "align_width": 0}}
    train(scenes, weights=path, changes=changed, max_steps=1, out=tmp_path / "run", device="cpu", say=lines.append)
    start = next(line for line in lines if "million parameters" in line)
    assert "new and random: " in start
    assert {"answer_heads", "answer_queries"} <= set(re.split(r"[ ,;]+", start.split("new and random: ")[1]))
    assert start.endswith("skipped: align_queries, align_tokens")
    gqa, clevr, r101 = (get_preset(f"mdetr-{name}") for name in ("r101-gqa", "r18-clevr", "r101"))
    assert gqa.can_start_from(r101)
    assert not clevr.can_start_from(r101)  # another text encoder
    assert not r101.can_start_from(gqa)
    started = gqa.like_trained(replace(r101, model=replace(r101.model, num_queries=7)))
    assert (started.model.questions, started.model.align_width, started.model.num_queries) == ("gqa", 0, 7)


def test_a_setting_that_the_weights_do_not_fit_is_named(scenes: Path, tmp_path: Path) -> None:
    preset = miniature("mdetr-tiny")
    preset = replace(preset, model=replace(preset.model, questions="scenes"))
    path = tmp_path / "model.safetensors"
    save_weights(path, build_model(preset, 255), ModelCard(to_dict(preset), preset.published_categories(), {}))
    changed = {"model": {"questions": "none"}}
    with pytest.raises(WeightsError, match=r"were trained with model\.questions=scenes; keep these settings"):
        train(scenes, weights=path, changes=changed, max_steps=1, out=tmp_path / "run", device="cpu")


@pytest.mark.parametrize(
    "changes", [{"grounding": {"align_weight": 0}}, {"model": {"pair_width": 16}}], ids=["no alignment", "pairs"]
)
def test_losses_can_be_switched(changes: dict[str, Any], scenes: Path, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(to_dict(miniature("mdetr-tiny"))))
    options = {"config": tmp_path / "config.yaml", "weights": "none", "device": "cpu", "max_steps": 1}
    done = train(scenes, changes=changes, out=tmp_path / "run", **options)
    assert done.result.step == 1


def test_objects_that_do_not_say_whether_they_are_meant_stop_before_a_run_begins(
    run: Path, scenes: Path, tmp_path: Path
) -> None:
    changed = {"model": {"predict_final": True}}
    with pytest.raises(DataError, match="its objects have no 'isfinal', which the model predicts"):
        train(scenes, config=run / "config.yaml", weights="none", changes=changed, max_steps=1, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_answers_that_the_model_cannot_give_stop_before_a_run_begins(run: Path, scenes: Path, tmp_path: Path) -> None:
    for questions, message in (("clevr", "is not one of the questions 'clevr'"), ("gqa", "is none of GQA's: obj")):
        changed = {"model": {"questions": questions}}
        with pytest.raises(DataError, match=message):
            train(
                scenes, config=run / "config.yaml", weights="none", changes=changed, max_steps=1, out=tmp_path / "run"
            )
    assert not (tmp_path / "run").exists()


def test_images_show_the_caption_and_the_words_of_the_objects(run: Path, scenes: Path) -> None:
    assert len(list((run / "images").glob("step-*.jpg"))) > 0, "a run draws its predictions"
    predictor, val = load(run, device="cpu"), open_data(scenes)["val"]
    expression, caption, question = val.images[:3]
    shown = {record.extras["dataset_name"]: images for record, images in comparisons(predictor, val, val.images[:3])}
    assert [title for title, _ in shown["scenes_refexp"]] == [expression.extras["caption"], "prediction"]
    (title, _), (predicted, _) = shown["scenes_qa"]
    assert title == f"{question.extras['caption']} {question.extras['answer']}"
    answer = predictor.ask(question.path, str(question.extras["caption"])).text
    assert predicted == f"prediction: {answer}"
    words = [" ... ".join(str(caption.extras["caption"])[a:b] for a, b in obj.extras["tokens_positive"])
             for obj in caption.objects]  # fmt: skip
    drawn = draw_truth(read_record(caption), caption.objects, val.categories, names=words)
    assert list(shown["scenes_captions"][0][1].getdata()) == list(drawn.getdata())


def test_an_image_whose_caption_has_no_known_word_shows_no_prediction(run: Path, scenes: Path) -> None:
    predictor, val = load(run, device="cpu"), open_data(scenes)["val"]
    foreign = replace(val.images[0], extras={**val.images[0].extras, "caption": "zyzzx"}, objects=())
    ((_, images),) = comparisons(predictor, val, [foreign])
    assert [title for title, _ in images] == ["zyzzx", "prediction"]
    assert list(images[1][1].getdata()) == list(Image.fromarray(read_record(foreign)).getdata())


def test_the_demo_of_text_makes_one_page(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = load(run, device="cpu")
    monkeypatch.setattr("opendetr.inference.load", lambda *_given, **_options: small)
    result = CliRunner().invoke(app, ["demo", "--text", "--images", "2", "--out", str(tmp_path), "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    page = Path(found["page"]).read_text(encoding="utf-8")
    assert page.count("<figure>") == 2 * 3  # an expression, a caption and a question of each scene
    assert "expressions found" in page and "questions answered right" in page and "AP by class" not in page
    assert {"P@1", "R@1", "accuracy", "majority"} <= set(found["metrics"])
    assert "P@1" in found["blank"] and "accuracy" not in found["blank"]


def test_a_detector_trained_on_captions_is_advised(scenes: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    changes = {"data.image_size": 64, "data.max_size": 64}
    train(scenes, model="detr-tiny", weights="none", changes=changes, max_steps=1, out=tmp_path / "run", device="cpu",
          say=lines.append)  # fmt: skip
    assert any("the images have captions" in line and "mdetr-tiny" in line for line in lines)
