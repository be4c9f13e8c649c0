"""The analyses of detectors of the catalogue, their cost, and the commands `analyse` and `compare`."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from miniature_runs import write_blocks
from opendetr.analysis import (
    PUBLISHED,
    analyse,
    analyse_cost,
    collect,
    count_operations,
    count_parameters,
    draw_charts,
    require_detector,
)
from opendetr.analysis.cost import PARTS, PUBLISHED_SIZE
from opendetr.config import ConfigError
from opendetr.data import DataError
from opendetr.inference import Predictor, load
from opendetr.presets import DEFAULT_MODEL, build_model, create, get_preset, list_models, miniature
from opendetr.structures import ImageBatch
from opendetr.synthetic import SceneConfig, write_scenes
from test_cli import failure, opendetr
from test_report import Page

IMAGES = 5


def is_detector(name: str) -> bool:
    """Whether a model takes images only."""
    preset = get_preset(name)
    return preset.uses_annotations and not preset.follows_objects and "mdetr" not in name


DETECTORS = [name for name in list_models() if is_detector(name)]
OTHERS = ("mdetr-tiny", "up-detr-tiny", "transtrack-tiny", "motr-tiny")


@pytest.fixture(scope="module")
def blocks(tmp_path_factory) -> Path:
    return write_blocks(tmp_path_factory.mktemp("data") / "blocks", train=2, val=3, most=2)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "scenes"
    write_scenes(folder, counts={"train": 1, "val": IMAGES}, config=SceneConfig(size=192))
    return folder


def small_detector(name: str, folder: Path) -> Predictor:
    """The miniature of a model with random weights, for the classes of a dataset."""
    torch.manual_seed(0)
    preset = miniature(name)
    categories = preset.data.open_split(folder, "val", "none").categories
    return Predictor(build_model(preset, preset.num_classes(categories)), preset, categories, device="cpu")


# --------------------------------------------------------------------------------------------------------- catalogue


@pytest.mark.parametrize("name", DETECTORS)
def test_every_detector_is_collected_and_counted(name, blocks):
    detector = small_detector(name, blocks)
    data = detector.open_split(blocks, "val", masks="none")
    collected = collect(detector, data)
    layers, queries = detector.preset.model.transformer.decoder_layers, detector.preset.model.num_queries
    assert len(collected.layers) == layers
    assert collected.query_boxes.shape == (len(data), queries, 4)
    assert collected.query_images.tolist() == list(range(len(data)))
    # Every detection has the box of its query.
    sizes = np.array([(image.width, image.height) for image in data.images])
    found = collected.found
    assert len(found)
    boxes = collected.query_boxes[found.image, found.query].astype(np.float64)
    np.testing.assert_allclose(found.box[:, 2:], boxes[:, 2:] * sizes[found.image], atol=1e-3)
    assert (collected.strict is None) == (not detector.model.scoring.num_logits(1) - 1)
    check_cost(detector)


def check_cost(detector: Predictor) -> None:
    """All parameters and operations belong to one part."""
    cost = analyse_cost(detector, (64, 96))
    assert cost.total.parameters == sum(parameter.numel() for parameter in detector.model.parameters())
    model = detector.model.requires_grad_(False)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        output = model(ImageBatch.from_images([torch.zeros(3, 64, 96)]))
        if output.masks is not None:  # of one query
            output.masks(torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64))
    assert cost.total.operations == pytest.approx(counter.get_total_flops() / 2, abs=len(PARTS) * 500)
    for part in ("backbone", "encoder", "decoder", "heads"):
        assert cost.parts[part].parameters > 0
        assert cost.parts[part].operations > 0


@pytest.mark.parametrize("name", OTHERS)
def test_other_models_say_that_they_cannot_be_analysed(name, blocks):
    preset = miniature(name)
    categories = preset.published_categories()
    model = build_model(preset, preset.num_classes(categories))
    with pytest.raises(ConfigError, match=f"{name}: works on .* cannot be analysed so far"):
        require_detector(Predictor(model, preset, categories, device="cpu"))


def test_an_image_that_cannot_be_read_has_no_detections(tmp_path):
    folder = write_blocks(tmp_path / "blocks", train=2, val=3)
    (folder / "val" / "2.png").write_bytes(b"nothing")
    detector = small_detector("detr-tiny", folder)
    collected = collect(detector, detector.open_split(folder, "val", masks="none"))
    assert len(collected.unreadable) == 1
    assert collected.query_images.tolist() == [0, 2]
    assert set(collected.found.image.tolist()) == {0, 2}
    assert set(collected.objects.image.tolist()) == {0, 1, 2}


# -------------------------------------------------------------------------------------------------------------- cost


def test_parameters_of_detr_r50():
    """41.3 million are trained; without the feed-forward blocks, 28.7 million (Carion et al., 2020, section 4.2)."""
    with torch.device("meta"):
        model = create("detr-r50")
    total, trained = count_parameters(model)
    assert trained == pytest.approx(41.3e6, abs=0.1e6)
    blocks = [name for name, _ in model.named_modules() if name.endswith("feed_forward")]
    assert len(blocks) == 12
    without = trained - sum(count_parameters(model.get_submodule(name))[0] for name in blocks)
    assert without == pytest.approx(28.7e6, abs=0.1e6)
    backbone = count_parameters(model, "backbone")[0]
    assert backbone == pytest.approx(23.5e6, abs=0.1e6)
    assert total - backbone == pytest.approx(18.1e6, abs=0.1e6)


@pytest.mark.parametrize("published", [PUBLISHED[0], pytest.param(PUBLISHED[3], marks=pytest.mark.slow)])
def test_operations_of_published_models(published):
    model = create(published.name).eval()
    operations = count_operations(model, PUBLISHED_SIZE, around=FakeTensorMode(allow_non_fake_inputs=True))
    billions = sum(operations.values()) / 1e9
    assert billions == pytest.approx(published.counted, abs=0.1)
    assert count_parameters(model)[0] / 1e6 == pytest.approx(published.millions, abs=1)


@pytest.mark.parametrize("published", PUBLISHED, ids=lambda published: published.name)
def test_the_counts_are_those_of_the_paper(published):
    """The paper's are means over 100 images of COCO, of which many are a little larger."""
    assert published.counted == pytest.approx(published.billions, rel=0.08)


# ---------------------------------------------------------------------------------------------------------- commands


@pytest.fixture(scope="module")
def analysed(scenes, tmp_path_factory) -> tuple[Path, dict]:
    out = tmp_path_factory.mktemp("out") / "analysis"
    options = ["--images", 4, "--figures", "--exact", "--out", out, "--json"]
    result = opendetr("analyse", DEFAULT_MODEL, "--data", scenes, *options)
    return out, json.loads(result.stdout)


def test_analyse_writes_the_page_charts_and_numbers(analysed):
    out, record = analysed
    assert record["page"] == str(out / "index.html")
    written = json.loads((out / "analysis.json").read_text())
    assert written == {name: value for name, value in record.items() if name != "page"}
    charts = sorted(path.stem for path in (out / "charts").iterdir())
    assert charts == sorted(
        ["ap", "calibration", "confusion", "cost", "errors", "layers", "many", "many-image", "objects",
         "precision-recall", "queries"]
    )  # fmt: skip
    for path in (out / "charts").iterdir():
        assert Image.open(path).width >= 192


def test_analyse_writes_figures_and_exact_attention(analysed):
    out, _ = analysed
    assert {path.name for path in (out / "figures").iterdir()} >= {"encoder-000.png", "decoder-003.png"}
    exact = json.loads((out / "attention" / "attention-000.json").read_text())
    assert exact["detections"] and exact["decoder"]


def test_the_page_needs_no_other_file(analysed):
    text = (analysed[0] / "index.html").read_text(encoding="utf-8")
    page = Page(text)
    assert page.open == []
    assert not re.search(r"https?:|url\(|@import|<script[^>]* src|<link", text)
    for words in (
        "Attention",
        "Certainty",
        "Errors",
        "Decoder layers",
        "Queries",
        "Dataset",
        "Many of one class",
        "Cost",
    ):
        assert words in page.words
    links = [value for name, value in page.attributes if name == "href"]
    assert [f"#{value}" for name, value in page.attributes if name == "id"] == links
    assert len(set(links)) == len(links)


def test_the_numbers_are_those_of_the_evaluation(analysed, scenes):
    _, record = analysed
    detector = load(DEFAULT_MODEL, device="cpu")
    data = detector.open_split(scenes, "val", masks="none")
    scores = detector.evaluate(data.subset([data.images[index * IMAGES // 4] for index in range(4)], "val"),
                               layers=True)  # fmt: skip
    for name, estimate in record["intervals"]["metrics"].items():
        assert estimate["value"] == (None if scores.metrics[name] is None else pytest.approx(scores.metrics[name]))
    assert record["layers"]["ap"] == pytest.approx(list(scores.per_layer))
    overall = scores.operating_points.overall
    assert record["operation"]["points"]["overall"]["threshold"] == pytest.approx(overall.threshold)
    assert record["operation"]["points"]["overall"]["f1"] == pytest.approx(overall.f1)
    assert record["no_object"] is None  # sigmoid scores
    assert record["many"]["present"][0] == 1.0
    assert record["errors"]["fixed"]["missed"] == pytest.approx(1.0)


def test_analyse_refuses_what_it_cannot_do(analysed, scenes, tmp_path):
    out, _ = analysed
    assert "--overwrite" in failure("analyse", DEFAULT_MODEL, "--data", scenes, "--out", out)
    assert "no such" in failure("analyse", DEFAULT_MODEL, "--data", tmp_path / "none", "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_compare_refuses_a_chart_of_an_unknown_format(scenes, tmp_path):
    arguments = ("compare", DEFAULT_MODEL, DEFAULT_MODEL, "--data", scenes)
    error = opendetr(*arguments, "--chart", tmp_path / "chart.foo", code=2).stderr
    assert "'--chart'" in error and "no image format has the suffix '.foo'" in error


def test_a_split_without_images_cannot_be_analysed(blocks):
    detector = small_detector("detr-tiny", blocks)
    data = detector.open_split(blocks, "val", masks="none")
    with pytest.raises(DataError, match="the split val has no images; choose another split"):
        collect(detector, data.subset((), "val"))


def test_a_softmax_detector_has_a_rule_for_no_object(blocks):
    detector = small_detector("detr-tiny", blocks)
    analysed = analyse(detector, detector.open_split(blocks, "val", masks="none"))
    assert analysed.analysis.no_object is not None
    assert analysed.analysis.many is None  # it knows no class that is drawn
    charts = draw_charts(analysed, num_queries=None)
    assert "many" not in charts
    assert charts["queries"].height > draw_charts(analysed, num_queries=3)["queries"].height


def test_compare_finds_no_difference_of_a_detector_to_itself(scenes, tmp_path):
    arguments = ("compare", DEFAULT_MODEL, DEFAULT_MODEL, "--data", scenes, "--images", 2)
    result = opendetr(*arguments, "--chart", tmp_path / "chart.png")
    assert "no image changed" in result.stdout
    assert "significant" not in result.stdout
    assert Image.open(tmp_path / "chart.png").width > 500


def test_compare_refuses_detectors_without_common_classes(blocks, scenes, tmp_path):
    from opendetr.config import to_dict
    from opendetr.weights import ModelCard, save_weights

    other = small_detector("detr-tiny", blocks)
    path = tmp_path / "blocks.safetensors"
    save_weights(path, other.model, ModelCard(to_dict(other.preset), other.categories, {}))
    line = failure("compare", DEFAULT_MODEL, path, "--data", scenes)
    assert "no class in common" in line and "red" in line
