"""A forward pass of mdetr-r50, compared with the same model made of the modules of torch, torchvision and transformers.

One image of 800x1066 pixels and one caption of 12 tokens. The other model is what one would put together: torchvision's
ResNet-50, transformers' RoBERTa, and `torch.nn.TransformerEncoderLayer` and `TransformerDecoderLayer`, which add the
positions to queries and keys in every layer. It has the same weights, and its outputs are compared first. Both compute
the features of the caption in every pass.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torchvision.models import resnet50
from torchvision.ops import FrozenBatchNorm2d

from opendetr.bench.figure import Figure
from opendetr.bench.measuring import interleaved
from opendetr.nn import MLP, SinePosition
from opendetr.presets import create
from opendetr.structures import FeatureMap, ImageBatch, Tokens

SIZE = (800, 1066)
NUM_TOKENS = 12
WIDTH, HEADS, FFN_WIDTH, LAYERS, QUERIES, LOGITS = 256, 8, 2048, 6, 100, 256


class _EncoderLayer(nn.TransformerEncoderLayer):
    """torch's layer with positions in queries and keys."""

    def encode(self, src: Tensor, position: Tensor) -> Tensor:
        query = src + position
        src = self.norm1(src + self.self_attn(query, query, src, need_weights=False)[0])
        return self.norm2(src + self.linear2(self.activation(self.linear1(src))))


class _DecoderLayer(nn.TransformerDecoderLayer):
    """torch's layer with positions in queries and keys."""

    def decode(self, tgt: Tensor, memory: Tensor, keys: Tensor, position: Tensor) -> Tensor:
        query = tgt + position
        tgt = self.norm1(tgt + self.self_attn(query, query, tgt, need_weights=False)[0])
        tgt = self.norm2(tgt + self.multihead_attn(tgt + position, keys, memory, need_weights=False)[0])
        return self.norm3(tgt + self.linear2(self.activation(self.linear1(tgt))))


class _Assembled(nn.Module):
    """The model put together from modules of other libraries."""

    def __init__(self) -> None:
        super().__init__()
        from transformers import RobertaConfig, RobertaModel

        self.body = resnet50(weights=None, norm_layer=FrozenBatchNorm2d)
        del self.body.fc
        self.text = RobertaModel(RobertaConfig(vocab_size=50265, max_position_embeddings=514, type_vocab_size=1,
                                               layer_norm_eps=1e-5, pad_token_id=1))  # fmt: skip
        self.text_project, self.text_norm = nn.Linear(768, WIDTH), nn.LayerNorm(WIDTH, eps=1e-12)
        self.project = nn.Conv2d(2048, WIDTH, 1)
        self.position = SinePosition(WIDTH)
        self.encoder = nn.ModuleList(_EncoderLayer(WIDTH, HEADS, FFN_WIDTH, batch_first=True) for _ in range(LAYERS))
        self.decoder = nn.ModuleList(_DecoderLayer(WIDTH, HEADS, FFN_WIDTH, batch_first=True) for _ in range(LAYERS))
        self.norm = nn.LayerNorm(WIDTH)
        self.queries = nn.Embedding(QUERIES, WIDTH)
        self.class_head, self.box_head = nn.Linear(WIDTH, LOGITS), MLP(WIDTH, WIDTH, 4, num_layers=3)
        self.align_queries, self.align_tokens = nn.Linear(WIDTH, 64), nn.Linear(WIDTH, 64)

    def forward(self, pixels: Tensor, ids: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Pixels (B, 3, H, W) and ids (B, T) -> logits and boxes of the last layer, features of queries and tokens."""
        body: Any = self.body
        x = body.maxpool(body.relu(body.bn1(body.conv1(pixels))))
        features = self.project(body.layer4(body.layer3(body.layer2(body.layer1(x)))))
        text = self.text(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
        text = self.text_norm(self.text_project(text))
        memory = torch.cat((features.flatten(2).mT, text), 1)
        image_position = self.position(FeatureMap(features)).flatten(2).mT
        position = torch.cat((image_position, torch.zeros_like(text)), 1)
        for layer in cast("list[_EncoderLayer]", self.encoder):
            memory = layer.encode(memory, position)
        keys, query_position = memory + position, self.queries.weight[None]
        content, outputs = torch.zeros_like(query_position), []
        for each in cast("list[_DecoderLayer]", self.decoder):
            content = each.decode(content, memory, keys, query_position)
            outputs.append(self.norm(content))
        queries = torch.stack(outputs)
        tokens = nn.functional.normalize(self.align_tokens(memory[:, -ids.shape[1] :]), dim=-1)
        compared = nn.functional.normalize(self.align_queries(queries), dim=-1)
        return self.class_head(queries)[-1], self.box_head(queries).sigmoid()[-1], compared, tokens


# Parts of our names and of the names in `_Assembled`.
_NAMES = (
    ("backbone.body.", "body."),
    ("text.body.", "text."),
    ("encoder.layers.", "encoder."),
    ("decoder.layers.", "decoder."),
    ("decoder.norm.", "norm."),
    (".self_attention_residual.norm.", ".norm1."),
    (".cross_attention_residual.norm.", ".norm2."),
    (".attention_residual.norm.", ".norm1."),
    (".self_attention.", ".self_attn."),
    (".cross_attention.", ".multihead_attn."),
    (".feed_forward.", "."),
)


def _their_name(name: str) -> str:
    if name.startswith("text.body."):
        return name.replace("text.body.", "text.", 1)
    for ours, theirs in _NAMES:
        name = name.replace(ours, theirs)
    if name.startswith("encoder."):
        name = name.replace(".attention.", ".self_attn.").replace(".feed_forward_residual.norm.", ".norm2.")
    return name.replace(".feed_forward_residual.norm.", ".norm3.")


def _assembled(model: nn.Module) -> _Assembled:
    """The other model with the weights of ours."""
    other = _Assembled().eval()
    other.load_state_dict({_their_name(name): value for name, value in model.state_dict().items()})
    return other


def measure(repeats: int) -> Iterator[Figure]:
    """Yield the seconds of a forward pass."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = create("mdetr-r50").eval()
        other = _assembled(model)
        pixels = torch.randn(1, 3, *SIZE)
    ids = torch.randint(4, 50265, (1, NUM_TOKENS), generator=torch.Generator().manual_seed(0))
    images = ImageBatch(pixels, None, torch.tensor([SIZE]))
    tokens = Tokens(ids, torch.zeros_like(ids, dtype=torch.bool), torch.zeros(1, NUM_TOKENS, 2, dtype=torch.int64))
    with torch.inference_mode():
        ours, theirs = model(images, tokens), other(pixels, ids)
        torch.testing.assert_close(ours.final.logits, theirs[0], atol=1e-3, rtol=0)
        torch.testing.assert_close(ours.final.boxes, theirs[1], atol=1e-4, rtol=0)
        contestants = {"opendetr": partial(model, images, tokens), "modules of torch": partial(other, pixels, ids)}
        yield Figure.of_seconds("forward", interleaved(contestants, repeats), expected=1 / 0.75)
