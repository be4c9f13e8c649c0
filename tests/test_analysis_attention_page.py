"""The numbers of the attention page, its size, and that it loads nothing; and the static figures."""

from __future__ import annotations

import base64
import json
import re
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from opendetr.analysis.attention import DenseAttention, ImageAttention, SampledAttention, attention_of
from opendetr.analysis.attention_figures import decoder_figure, encoder_figure, write_figures
from opendetr.analysis.attention_page import IMAGE_BYTES, attention_fragment, attention_section, pack
from opendetr.categories import Categories
from opendetr.data import DetectionData
from opendetr.data.formats import open_split
from opendetr.inference import load
from opendetr.results import Detections
from opendetr.synthetic import SceneConfig, write_scenes


def random_image(
    *, detections: int = 3, layers: int = 2, heads: int = 2, grids: tuple[tuple[int, int], ...] = ((5, 7),),
    kind: str = "dense", size: tuple[int, int] = (100, 140), tokens: tuple[str, ...] = (), sharpness: float = 1.0,
) -> ImageAttention:  # fmt: skip
    """Random attention in an image of noise, which hardly compresses."""
    rng = torch.Generator().manual_seed(0)
    cells = sum(h * w for h, w in grids)

    def dense(layers: int, heads: int, rows: int) -> DenseAttention:
        scores = sharpness * torch.randn(layers, heads, rows, grids[0][0] * grids[0][1] + len(tokens), generator=rng)
        return DenseAttention(scores.softmax(-1), grids[0], tokens)

    def sampled(layers: int, heads: int, rows: int) -> SampledAttention:
        shape = (layers, heads, rows, len(grids), 4)
        weights = (sharpness * torch.randn(*shape[:3], len(grids) * 4, generator=rng)).softmax(-1)
        return SampledAttention(torch.rand(*shape, 2, generator=rng), weights.view(shape))

    make = sampled if kind == "sampled" else dense
    corner = torch.rand(detections, 2, generator=rng) * 50
    categories = Categories.from_names(["a </script> b", "cat"])
    pixels = torch.randint(0, 256, (*size, 3), generator=rng, dtype=torch.uint8).numpy()
    return ImageAttention(
        "noise <1>.png",
        Detections(
            torch.cat((corner, corner + 30), 1), torch.linspace(1, 0.5, detections),
            torch.arange(detections) % 2, categories, size, image=pixels,
        ),
        torch.arange(detections),
        make(layers, heads, detections),
        dense(layers, heads, detections) if kind == "spatial" else None,
        sampled(1, heads, cells) if kind == "sampled" else dense(1, 1, cells),
        grids,
    )  # fmt: skip


def unpacked(text: str, dtype: str) -> np.ndarray:
    return np.frombuffer(zlib.decompress(base64.b64decode(text)), dtype=dtype)


def weights_of(packed: dict[str, Any]) -> np.ndarray:
    """(L, H, n, N), the weights that the page shows."""
    shape = (packed["layers"], packed["heads"], packed["rows"])
    shares = unpacked(packed["weights"], "u1").reshape(*shape, packed["size"])
    return shares / 255 * unpacked(packed["largest"], "<f4").reshape(*shape, 1)


@pytest.mark.parametrize("kind", ["dense", "spatial", "sampled"])
def test_the_page_has_the_weights_in_8_bits(kind):
    tokens = () if kind == "sampled" else ("a", "word")
    attention = random_image(kind=kind, grids=((5, 7), (3, 4)) if kind == "sampled" else ((5, 7),), tokens=tokens)
    packed = pack(attention)
    for part in ("decoder", "spatial", "encoder"):
        own = getattr(attention, part)
        assert (packed[part] is None) == (own is None)
        if own is not None:
            exact = own.weights.flatten(3).numpy()[:, :, : packed[part]["rows"]]  # the cells of the first level
            assert np.abs(weights_of(packed[part]) - exact).max() <= exact.max() / 255
    if kind == "sampled":
        places = unpacked(packed["decoder"]["points"], "<u2") / 65535 * 3 - 1
        assert np.abs(places - attention.decoder.points.flatten().numpy()).max() < 1e-4
    else:
        assert packed["decoder"]["tokens"] == ("a", "word")
    box = attention.detections.boxes[1] / torch.tensor([140, 100] * 2)
    assert packed["detections"][1]["name"] == "cat"
    assert np.allclose(packed["detections"][1]["box"], box, atol=1e-4)


COCO = {"detections": 20, "layers": 6, "heads": 8, "size": (800, 1333)}  # of a published model


@pytest.mark.parametrize(
    "settings",
    [
        {"grids": ((25, 42),)},
        {"grids": ((25, 42),), "kind": "spatial"},
        {"grids": ((38, 38),), "sharpness": 0.1},
        {"grids": ((100, 167), (50, 84), (25, 42), (13, 21)), "kind": "sampled", "heads": 2},
        {"grids": ((50, 84),), "kind": "sampled"},
    ],
    ids=["detr", "conditional", "diffuse", "deformable", "single-scale-dc5"],
)
def test_twenty_images_take_at_most_25_megabytes(settings):
    packed = pack(random_image(**{**COCO, **settings}))
    assert len(json.dumps(packed)) <= IMAGE_BYTES + 5000 < 25e6 / 20
    assert len(packed["detections"]) == packed["decoder"]["rows"] >= 5
    height, width = packed["encoder"]["grid"]
    assert height * width == packed["encoder"]["rows"] >= 200
    sums = weights_of(packed["encoder"]).sum(-1)
    assert np.abs(sums - 1).max() < 0.05  # blocks of cells, too, have the whole weight


def test_coarser_attention_is_the_mean_of_rows_and_the_sum_of_keys():
    from opendetr.analysis.attention_page import _pooled

    attention = random_image(grids=((4, 6),), tokens=("word",)).encoder
    pooled = _pooled(attention, (4, 6), 2)
    assert pooled.shape == (2, 3)
    blocks = attention.maps[0, 0].reshape(2, 2, 3, 2, 2, 2, 3, 2)  # of the cells that attend, then of the keys
    expected = blocks.mean((1, 3)).sum((3, 5)).reshape(6, 6)
    torch.testing.assert_close(pooled.maps[0, 0].flatten(1), expected)
    words = attention.token_weights[0, 0].reshape(2, 2, 3, 2).mean((1, 3)).reshape(6, 1)
    torch.testing.assert_close(pooled.token_weights[0, 0], words)


def test_the_fragment_loads_nothing_and_escapes_names():
    page = attention_fragment([random_image(), random_image(kind="sampled")])
    assert not re.search(r"https?:|//[a-z]+\.|url\(|@import|fetch\(|import\(", page)
    assert set(re.findall(r'\bsrc="?(\w+)', page)) <= {"data"}
    scripts = re.findall(r'<script type="application/json" class="attention-data">(.*?)</script>', page)
    assert [json.loads(each)["name"] for each in scripts] == ["noise <1>.png"] * 2
    assert json.loads(scripts[0])["detections"][0]["name"] == "a </script> b"
    assert page.count("</script>") == 4  # the settings, two images, and the program
    assert page == attention_fragment([random_image(), random_image(kind="sampled")])


def test_images_without_detections_and_models_without_encoder():
    nothing = random_image(detections=0)
    assert pack(nothing)["detections"] == []
    assert decoder_figure(nothing) is None
    no_encoder = replace(random_image(), encoder=None)
    assert pack(no_encoder)["encoder"] is None
    assert encoder_figure(no_encoder) is None
    assert "No image" in attention_fragment([])


# --------------------------------------------------------------------------------------------------- of a real detector


@pytest.fixture(scope="module")
def scenes(tmp_path_factory) -> DetectionData:
    folder = tmp_path_factory.mktemp("data") / "scenes"
    write_scenes(folder, counts={"val": 2}, config=SceneConfig(size=96))
    return open_split(folder, "val")


def test_the_section_of_a_detector(scenes):
    page = attention_section(load("deformable-detr-tiny", device="cpu"), scenes, scenes.images)
    for record in scenes.images:
        assert f'"name":"{scenes.file_name(record)}"' in page


def test_figures_are_written(scenes, tmp_path: Path):
    detector = load("deformable-detr-tiny", device="cpu")
    found = [*attention_of(detector, scenes, scenes.images[:1]), random_image(kind="spatial")]
    files = write_figures(tmp_path / "figures", found)
    assert [path.name for path in files] == ["encoder-000.png", "decoder-000.png", "encoder-001.png", "decoder-001.png"]
    assert files == sorted(tmp_path.glob("figures/*.png"), key=files.index)


def test_a_figure_shows_where_the_weight_is():
    """All weight in the first cell: the upper left is bright, the rest is dark."""
    attention = random_image(grids=((4, 4),), size=(80, 80))
    grey = np.full((80, 80, 3), 90, dtype=np.uint8)
    weights = torch.zeros(1, 1, 16, 16)
    weights[..., 0] = 1
    one = replace(
        attention,
        detections=replace(attention.detections, image=grey),
        encoder=DenseAttention(weights, (4, 4)),
    )
    figure = np.asarray(encoder_figure(one, points=[(0.9, 0.9)])).astype(float)
    half = figure[:, figure.shape[1] // 2 :]  # beside it, the image with its points
    height, width = half.shape[:2]
    assert half[height // 8 : height // 5, width // 20 : width // 6].mean() > 130
    assert half[height // 2 : height * 2 // 3, width // 3 : width * 2 // 3].mean() < 90
