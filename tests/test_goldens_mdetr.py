"""MDETR against the numbers that the original implementation gave for the same weights and inputs."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import cached_property, lru_cache
from typing import Any

import pytest
import torch
from torch import Tensor

from golden import Golden, image, objects, rule
from golden_scaled import close, pairs
from opendetr.losses import (
    CriterionConfig,
    GroundingLossConfig,
    MaskCriterionConfig,
    MaskLoss,
    SetCriterion,
    SoftTokenClassification,
)
from opendetr.models import MaskedDetector, MaskHeadConfig, MDETRConfig
from opendetr.nn import BackboneConfig, EfficientNetConfig, RobertaTextConfig, TransformerConfig
from opendetr.postprocess import (
    boxes_in_pixels,
    image_masks,
    object_scores,
    phrase_scores,
    published_masks,
    referred_scores,
)
from opendetr.scoring import SoftmaxNoObject
from opendetr.structures import GroundingOutput, ImageBatch, Target, Tokens
from opendetr.tasks import GroundingTask
from opendetr.weights import load_weights
from opendetr.weights.mdetr import FAMILY, MASKS
from opendetr.weights.name_maps import our_name

VARIANTS = (
    "grounding_r50",
    "grounding_r50_align_fallback_quirk",
    "grounding_enb3",
    "phrasecut_masks_r50",
    "clevrref_isfinal_r18",
    "contrastive_cls_r18",
    "gqa_split_r18",
    "gqa_unified_r18",
    "clevr_qa_r18",
)
_LOSSES = {"class": "loss_ce", "l1": "loss_bbox", "giou": "loss_giou", "align": "loss_contrastive_align",
           "final": "loss_isfinal", "pair": "contrastive_loss", "mask": "loss_mask", "dice": "loss_dice"}  # fmt: skip
_TEXT = {"vocab_size": "vocabulary", "hidden_size": "width", "num_hidden_layers": "layers",
         "num_attention_heads": "num_heads", "intermediate_size": "ffn_width",
         "max_position_embeddings": "max_positions", "hidden_dropout_prob": "dropout"}  # fmt: skip
_LOGITS = 5e-4  # they are of the order of 10, because the weights of the goldens make attention sharp
_PER_LAYER = ("loss_ce", "loss_bbox", "loss_giou", "loss_contrastive_align", "loss_isfinal")


class Run:
    """A golden with the model, the task and the inputs that it describes."""

    def __init__(self, variant: str) -> None:
        self.golden = Golden(f"mdetr/{variant}")
        self.config: dict[str, Any] = self.golden["config"]
        config = self.model_config()
        if self.config["masks"]:
            self.model = MaskHeadConfig(enabled=True, softmax_per_head=True).build(config, 256, SoftmaxNoObject())
        else:
            self.model = config.build(256, SoftmaxNoObject())
        report = load_weights(self.model.eval(), self.state())
        assert report.layout == "official"
        self.rows = MASKS.official if self.config["masks"] else FAMILY.official
        self.images = ImageBatch.from_images([self.image(b, *size) for b, size in enumerate(self.sizes)])
        self.output: GroundingOutput = self.model(self.images, self.tokens)
        coefficients = GroundingLossConfig(
            align_weight=self.config["contrastive_align_loss_coef"],
            temperature=self.config["temperature_NCE"],
            published_fallback="quirk" in variant,
            pair_weight=self.config["contrastive_loss_coef"],
            answer_weight=self.config["qa_loss_coef"],
        )
        criterion = SetCriterion(CriterionConfig(classification=SoftTokenClassification()))
        masks = MaskLoss(MaskCriterionConfig()) if self.config["masks"] else None
        self.task = GroundingTask(self.model, criterion, coefficients, None, masks)

    def model_config(self) -> MDETRConfig:
        given = self.config
        backbone = given["backbone"]
        return MDETRConfig(
            backbone=EfficientNetConfig(variant="b3") if "b3" in backbone else BackboneConfig(depth=int(backbone[6:])),
            transformer=TransformerConfig(encoder_layers=given["enc_layers"], decoder_layers=given["dec_layers"]),
            num_queries=given["num_queries"],
            text=RobertaTextConfig(**{ours: self.golden["roberta_config"][name] for name, ours in _TEXT.items()}),
            align_width=given["contrastive_loss_hdim"] if given["contrastive_align_loss"] else 0,
            pair_width=given["contrastive_loss_hdim"] if given["contrastive_loss"] else 0,
            predict_final=given["predict_final"],
            questions=self.questions,
        )

    @property
    def questions(self) -> str:
        if not self.config["do_qa"]:
            return "none"
        kind = self.config["combine_datasets"][0]
        return kind if self.config["split_qa_heads"] else f"{kind}-unified"

    def state(self) -> dict[str, Tensor]:
        """The state dict under the official names, with a constant that published files have and the model has not."""
        state = {}
        for name, shape in self.golden["state_dict"].items():
            value = _rule(name, tuple(shape)).clone()
            for pattern, factor in self.golden["fill_scale"]:
                if re.search(pattern, name):
                    value = value * factor
            for pattern, index, added in self.golden["fill_add"]:
                if re.search(pattern, name):
                    value[index] += added
            state[name] = value
        prefix = "detr." if self.config["masks"] else ""
        return state | {f"{prefix}transformer.text_encoder.embeddings.position_ids": torch.arange(66)[None]}

    @property
    def sizes(self) -> list[tuple[int, int]]:
        calls = [re.findall(r"\d+", each["call"]) for each in self.golden["inputs"]["images"]]
        return [(int(height), int(width)) for _, height, width in calls]

    def image(self, index: int, height: int, width: int) -> Tensor:
        name = f"image_{index}"
        rows, columns = (4 * torch.arange(height)) // height, (4 * torch.arange(width)) // width
        coarse = image(f"{name}/coarse", 4, 4)[:, rows][:, :, columns]
        return 0.5 * image(name, height, width) + 1.5 * coarse

    @cached_property
    def tokens(self) -> Tokens:
        inputs = self.golden["inputs"]
        spans = [[span or [0, 0] for span in row] for row in inputs["token_char_spans"]]
        padding = torch.tensor(inputs["attention_mask"]) == 0
        return Tokens(torch.tensor(inputs["input_ids"]), padding, torch.tensor(spans))

    @cached_property
    def targets(self) -> list[Target]:
        inputs = self.golden["inputs"]
        made = []
        for index, own in enumerate(inputs["tokens_positive"]):
            labels, boxes = objects(f"targets_{index}", len(own), 90)
            spans = tuple(tuple((begin, end) for begin, end in spans) for spans in own)
            size = self.sizes[index]
            token_map = self.tokens.map_of(index, spans)
            target = Target(labels, boxes, size, size, index, token_map=token_map, spans=spans)
            if "isfinal" in inputs:
                target = replace(target, is_final=torch.tensor(inputs["isfinal"][index]) > 0)
            if "answers" in inputs:
                target = replace(target, answers=self.answers(inputs["answers"][index]))
            if "masks" in inputs:
                target = replace(target, masks=torch.stack([_filled(box, *size) for box in boxes]))
            made.append(target)
        return made

    def answers(self, given: dict[str, float]) -> dict[str, int]:
        """The answers by the names of the heads. The original marks others by -100 or the type."""
        if "answer_type" not in given:
            return {"total": int(given["answer"])}
        answers = {
            name.removeprefix("answer_"): int(value)
            for name, value in given.items()
            if name.startswith("answer_") and value != -100
        }
        if answers["type"] and self.questions == "clevr":
            answers.pop("binary")
        return answers

    @cached_property
    def sizes_in_pixels(self) -> Tensor:
        return torch.tensor(self.golden["postprocess"]["orig_sizes_hw"])


@lru_cache(maxsize=400)  # the models have most of their parameters in common
def _rule(name: str, shape: tuple[int, ...]) -> Tensor:
    if name.endswith("num_batches_tracked"):
        return torch.zeros(shape, dtype=torch.int64)
    return rule(name, list(shape))


def _filled(box: Tensor, height: int, width: int) -> Tensor:
    cx, cy, w, h = box.numpy()
    mask = torch.zeros(height, width, dtype=torch.bool)
    rows, columns = ((int((c - s / 2) * n), int((c + s / 2) * n)) for c, s, n in ((cy, h, height), (cx, w, width)))
    mask[rows[0] : rows[1] + 1, columns[0] : columns[1] + 1] = True
    return mask


@pytest.fixture(scope="module", params=VARIANTS)
def run(request: pytest.FixtureRequest) -> Run:
    return Run(request.param)


def test_outputs(run):
    arrays, output = run.golden.arrays, run.output
    close(output.final.logits[:, ::2], arrays["pred_logits_q0::2"], _LOGITS)
    close(output.final.boxes, arrays["pred_boxes"])
    close(output.final.logits.softmax(-1)[..., -1], arrays["pred_p_noobject"])
    if "aux_pred_boxes_q0::2" in arrays:
        close(torch.stack([layer.boxes[:, ::2] for layer in output.layers[:-1]]), arrays["aux_pred_boxes_q0::2"])
        logits = torch.stack([layer.logits[:, ::20] for layer in output.layers[:-1]])
        close(logits, arrays["aux_pred_logits_q0::20"], _LOGITS)
    if "proj_queries" in arrays:
        close(output.query_features[-1], arrays["proj_queries"])
        close(output.token_features, arrays["proj_tokens"])
    if "pred_isfinal" in arrays:
        close(output.is_final[-1][..., None], arrays["pred_isfinal"])
    if "text_pooled_op" in arrays:
        close(output.caption_feature, arrays["text_pooled_op"])
        close(output.image_feature, arrays["img_pooled_op"])
    expected = {name.removeprefix("pred_answer"): value for name, value in arrays.items() if "pred_answer" in name}
    assert {f"_{name}" if name != "total" else "" for name in output.answers} == expected.keys()
    for name, logits in output.answers.items():
        close(logits, expected["" if name == "total" else f"_{name}"])
    if "pred_masks_q0::4" in arrays:
        every = torch.cartesian_prod(torch.arange(2), torch.arange(0, run.config["num_queries"], 4))
        masks = output.masks(every[:, 0], every[:, 1]).unflatten(0, (2, -1))
        close(masks, arrays["pred_masks_q0::4"], 1e-3)


def test_text_and_memory(run):
    arrays = run.golden.arrays
    model = run.model.detector if isinstance(run.model, MaskedDetector) else run.model
    with torch.no_grad():
        features = model.text(run.tokens)
        close(features, arrays["roberta_last_hidden_state"])
        close(model.text.pool(features), arrays["roberta_pooler_output"])
    top = run.output.features[-1]
    close(top.values[:, ::16], arrays["backbone_last_every16ch"])
    assert torch.equal(top.padding, arrays["backbone_last_mask"])
    if "memory_every16ch" not in arrays:
        return
    encoded = model.encode_text(run.tokens)
    close(encoded.features.transpose(0, 1), arrays["text_memory_resized"])
    close(run.output.memory[1].values[:, ::4, 0].permute(2, 0, 1), arrays["text_memory_every4ch"])
    image, text, *first = run.output.memory  # the original has its first token before the image
    order = [*first, image, text]
    joined = torch.cat([level.values.flatten(2) for level in order], 2).permute(2, 0, 1)
    close(joined[..., ::16], arrays["memory_every16ch"])
    position = torch.cat([level.position.flatten(2) for level in order], 2).permute(2, 0, 1)
    close(position[..., ::16], arrays["pos_every16ch"])
    padding = [torch.zeros(2, 1, dtype=torch.bool) if level.padding is None else level.padding.flatten(1)
               for level in order]  # fmt: skip
    assert torch.equal(torch.cat(padding, 1), arrays["memory_key_padding_mask"])


def test_token_maps(run):
    joined = torch.cat([target.token_map for target in run.targets])
    expected = run.golden.arrays["positive_map_collated"]
    assert torch.equal(joined.float(), expected)
    shares = run.golden.arrays["positive_map_normalised"]
    close(joined / (joined.sum(1, keepdim=True) + 1e-6), shares, 1e-6)


def test_matching_and_losses(run):
    golden, task = run.golden, run.task
    matches = task.match(run.output, run.targets)
    for name, expected in golden["matching"].items():
        layer = len(run.output.layers) - 1 if name == "final" else int(name)
        assert pairs(matches, layer, 2) == expected, name
    losses = task.losses(run.output, run.targets, matches=matches)
    used = golden["criterion"]["weight_dict"]
    found = _official(losses, task)
    expected = {name: value for name, value in golden["losses"].items() if name in used}
    layers = {name for name in expected if re.search(r"_\d+$", name)}
    shared = {name for name in layers if name.rpartition("_")[0] not in _PER_LAYER}  # not computed by layer
    assert {name: value for name, value in found.items() if name in expected} == pytest.approx(
        {name: value for name, value in expected.items() if name not in shared}, rel=1e-4, abs=1e-6
    )
    assert task.total(_counted(losses, run)).item() == pytest.approx(golden["total_loss"], rel=1e-4)


def _official(losses: dict[str, Tensor], task: GroundingTask) -> dict[str, float]:
    """Our losses under the official names."""
    values = {}
    for name, layers in losses.items():
        official = _LOSSES.get(name, f"loss_{name}")
        *before, final = layers.tolist()
        values |= {f"{official}_{layer}": value for layer, value in enumerate(before)} | {official: final}
    return values


def _counted(losses: dict[str, Tensor], run: Run) -> dict[str, Tensor]:
    """The losses that the original counts: without those of earlier layers if it has none."""
    if run.config["aux_loss"]:
        return losses
    return {name: layers[-1:] for name, layers in losses.items()}


def test_gradients(run):
    golden, task = run.golden, run.task
    task.total(_counted(task.losses(run.output, run.targets), run)).backward(retain_graph=True)
    gradients = {name: p.grad for name, p in task.model.named_parameters() if p.grad is not None}
    assert len(gradients) == golden["num_params_with_grad"]
    own = task.model.state_dict()
    norms = {name: gradients[our_name(name, run.rows, own)].norm().item() for name in golden["grad_norms"]}
    assert norms == pytest.approx(golden["grad_norms"], rel=2e-3)
    total = torch.stack([gradient.norm() for gradient in gradients.values()]).norm().item()
    assert total == pytest.approx(golden["grad_norm_total"], rel=1e-3)


def test_post_processing(run):
    golden, arrays = run.golden, run.golden.arrays
    scores, boxes = object_scores(run.output.final), boxes_in_pixels(run.output.final, run.sizes_in_pixels)
    close(scores, arrays["post_scores"], 5e-5)
    close(boxes, arrays["post_boxes"], 0.05)  # pixels
    if "post_scores_refexp" in arrays:
        close(referred_scores(run.output), arrays["post_scores_refexp"], 1e-5)
    for index, expected in enumerate(golden["postprocess"]["refexp_top1"]):
        best = int(scores[index].argmax())
        assert best == expected["query"]
        assert scores[index, best].item() == pytest.approx(expected["score"], abs=1e-5)
        assert boxes[index, best].tolist() == pytest.approx(expected["box"], abs=0.05)
    if "flickr_top5_boxes" in arrays:
        found = []
        for index, target in enumerate(run.targets):
            ranked = phrase_scores(run.output.final.logits[index], target.token_map).argsort(1, descending=True)
            found += [boxes[index, order[:5]] for order in ranked]
        close(torch.stack(found), arrays["flickr_top5_boxes"], 0.05)
    if run.config["masks"]:
        _check_masks(run, scores, boxes)


def _check_masks(run: Run, scores: Tensor, boxes: Tensor) -> None:
    """The masks of all queries, and PhraseCut's: the union of those above a score."""
    expected = run.golden["postprocess"]
    queries = [torch.arange(run.config["num_queries"])] * 2
    with torch.no_grad():
        requested = image_masks(run.output, run.images, run.sizes_in_pixels, queries=queries)
        masks = [published_masks(each) for each in requested]
    for index, own in enumerate(masks):
        counts = own.flatten(1).sum(1).tolist()
        assert counts == pytest.approx(expected["segm_mask_pixel_counts"][index], abs=3)
        for threshold, record in expected["phrasecut"].items():
            kept = scores[index] > float(threshold)
            assert int(kept.sum()) == record["kept"][index]
            assert int(own[kept].any(0).sum()) == pytest.approx(record["union_pixels"][index], abs=3)
            if kept.any():
                x0, y0, x1, y1 = boxes[index, kept][0].tolist()
                assert [x0, y0, x1 - x0, y1 - y0] == pytest.approx(record["first_box_xywh"][index][0], abs=0.05)
