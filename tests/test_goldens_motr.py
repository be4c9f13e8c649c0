"""MOTR against the numbers of the original implementation."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from golden import Golden, rule
from golden_scaled import close
from golden_tracking import TrackingGolden, gradient_faults, published_names
from opendetr.boxes import cxcywh_to_xyxy
from opendetr.losses import Normaliser, TrackCriterion
from opendetr.models import (
    MOTR,
    DeformableTransformerConfig,
    MOTROutput,
    QueryInteraction,
    QueryLifetime,
    TrackerConfig,
    TrackingSession,
    TrackQueries,
)
from opendetr.models.motr import rows_of
from opendetr.presets import build_model, build_task, create, get_preset
from opendetr.presets.preset import FOCAL_CRITERION
from opendetr.scoring import Sigmoid
from opendetr.structures import Batch, ClipBatch, Matches, Predictions, Target
from opendetr.tasks.tracking import ClipConfig, MOTRTask, closest
from opendetr.weights import load_weights
from opendetr.weights.motr import FAMILY
from opendetr.weights.name_maps import our_name

NAME = "motr-r50"
_LOSSES = {"class": "loss_ce", "l1": "loss_bbox", "giou": "loss_giou"}


def loaded(golden: TrackingGolden) -> MOTR:
    model = build_model(golden.preset(NAME), golden["config"]["num_classes"])
    load_weights(model, golden.state())
    return model


def query_position(position: Tensor, content: Tensor) -> Tensor:
    """Both parts of the queries in one tensor, as the original stores them."""
    return torch.cat((position, content), -1)


def test_the_preset_holds_the_published_configuration():
    golden, preset = TrackingGolden("motr/infer_full"), get_preset(NAME)
    ours = published_names(preset) | {
        "dropout": preset.model.transformer.dropout,
        "update_query_pos": preset.model.update_position,
        "random_drop": preset.tracking.random_drop,
        "fp_ratio": preset.tracking.false_positives,
    }
    assert {name: golden["config"][name] for name in ours} == ours
    recipe = preset.recipe
    assert (recipe.learning_rate, recipe.backbone_learning_rate, recipe.sampling_rate_factor) == (2e-4, 2e-5, 0.1)
    assert (recipe.batch_size, recipe.epochs, recipe.step_at * recipe.epochs, recipe.clip_norm) == (8, 200, 100, 0.1)
    assert preset.tracker == TrackerConfig(birth=0.7, keep=0.6, patience=5, min_area=100)
    with torch.device("meta"):
        model = create(NAME)
    assert sum(value.numel() for value in model.state_dict().values()) == 44_241_632


@pytest.mark.parametrize("variant", ["infer_small", "infer_full"])
@torch.no_grad()
def test_inference(variant):
    golden = TrackingGolden(f"motr/{variant}")
    model, settings = loaded(golden).eval(), golden["runtime_tracker"]
    rules = QueryLifetime(
        TrackerConfig(
            birth=settings["score_thresh"], keep=settings["filter_score_thresh"], patience=settings["miss_tolerance"]
        )
    )
    session = TrackingSession(model, rules)
    height, width = golden["inputs"]["orig_size_hw"]
    scale = torch.tensor([width, height, width, height])
    for number, frame in enumerate(golden.frames("frames")):
        output = session.step(frame)
        state, (memory,) = output.state, session.memories
        assert state.ids[0].tolist() == golden["ids_per_frame"][number]
        expected = {
            name.removeprefix(f"frame{number}/"): value
            for name, value in golden.arrays.items()
            if name.startswith(f"frame{number}/")
        }
        found = arrays_of(model, output, scale) | {
            "tracks/disappear_time": torch.tensor([memory.missed.get(track, 0) for track in state.ids[0].tolist()])
        }
        found["returned_ref_pts_pixels"] = found["ref_pts"] * scale[:2]
        assert expected.keys() <= found.keys()
        for name, value in expected.items():
            if value.is_floating_point():
                close(found[name], value, 1e-2 if value.abs().max() > 100 else 1e-4)
            else:
                assert torch.equal(found[name], value), name


def arrays_of(model: MOTR, output: MOTROutput, scale: Tensor) -> dict[str, Tensor]:
    """What the golden has of one frame. Its tracks have the queries of the next frame already."""
    state, final = output.state, output.final
    first = [row for row in range(len(final.boxes[0])) if row < 10 or row >= model.num_queries]
    found = {
        "pred_logits": final.logits[0], "pred_boxes": final.boxes[0],
        "ref_pts": output.layers[4].boxes[0, :, :2],  # always those of the fifth layer
        "hs_first10_and_tracks": output.queries[-1][0, first],
    }  # fmt: skip
    for index, layer in enumerate(output.layers[:-1]):
        found |= {f"aux{index}/pred_logits": layer.logits[0], f"aux{index}/pred_boxes": layer.boxes[0]}
    rows = [row for row, centre in enumerate(final.boxes[0, :, :2].tolist()) if centre in state.points[0].tolist()]
    rows = [next(row for row in rows if torch.equal(output.queries[-1][0, row], each)) for each in state.embedding[0]]
    return found | {
        "tracks/obj_idxes": state.ids[0],
        "tracks/scores": final.logits[0, rows, 0].sigmoid(),
        "tracks/boxes": cxcywh_to_xyxy(final.boxes[0, rows]) * scale,
        "tracks/labels": torch.zeros(len(rows), dtype=torch.int64),
        "tracks/query_pos": query_position(*model.interaction(state))[0],
        "tracks/ref_pts_field": state.points[0].logit(1e-5),
        "tracks/output_embedding": state.embedding[0],
    }


@pytest.mark.parametrize("run", ["default", "tolerance2", "equal_thresholds"])
def test_lifetime(run):
    settings = Golden("motr/runtime_tracker")["runs"][run]
    rules = QueryLifetime(
        TrackerConfig(
            birth=settings["score_thresh"], keep=settings["filter_score_thresh"], patience=settings["miss_tolerance"]
        )
    )
    memory, ids, fresh = rules.start(), torch.empty(0, dtype=torch.int64), torch.full((4,), -1)
    for frame in settings["frames"]:
        before = torch.cat((fresh, ids))
        memory, alive = rules.follow(memory, torch.tensor(frame["scores"], dtype=torch.float64), before)
        assert alive.tolist() == frame["obj_idxes"]
        missed = [memory.missed.get(track, 0) if track >= 0 else 0 for track in alive.tolist()]
        ended = (before >= 0) & (alive < 0)  # the original keeps the count of a track that ends
        assert [settings["miss_tolerance"] if end else count for end, count in zip(ended, missed, strict=True)] == (
            frame["disappear_time"]
        )
        ids = alive[alive >= 0]
    assert memory.next_id == settings["max_obj_id"]


# ------------------------------------------------------------------------------------------------- query interaction


@pytest.mark.parametrize("run", ["eval", "eval_no_pos_update", "train_no_fp", "train_fp1"])
@torch.no_grad()
def test_query_interaction(run):
    golden = Golden("motr/qim")
    arrays, settings = golden.arrays, golden["runs"][run]
    module = QueryInteraction(DeformableTransformerConfig(dropout=0.0), update_position=run != "eval_no_pos_update")
    own = {f"interaction.{name}" for name in module.state_dict()}
    state = {our_name(name, FAMILY.official, own): rule(name, shape) for name, shape in settings["keys"].items()}
    assert state.keys() == own
    module.load_state_dict({name.removeprefix("interaction."): value for name, value in state.items()})
    ids, overlap = (arrays.get(f"input_{run}/{name}", arrays[f"input/{name}"]) for name in ("obj_idxes", "iou"))
    output = output_of(arrays["input/query_pos"], arrays["input/output_embedding"], arrays["input/pred_boxes"], ids)
    rows, model = rows_of(ids[None] >= 0), build_model(get_preset(NAME).miniature(), 1)
    if settings["train"]:
        config = ClipConfig(random_drop=0.0, false_positives=float(run == "train_fp1"))
        task = MOTRTask(model, TrackCriterion(FOCAL_CRITERION), config)
        rows = task.kept_queries(ids[None], overlap[None], output, [np.random.default_rng(0)])
    assert rows[0].tolist() == settings["rows"] == arrays[f"{run}/rows"].tolist()
    queries = model.update(output, ids[None], rows)
    close(query_position(*module(queries))[0], arrays[f"{run}/query_pos"])
    close(queries.points[0].logit(1e-5), arrays[f"{run}/ref_pts"])
    assert torch.equal(queries.ids[0], arrays[f"{run}/obj_idxes"])


def output_of(query_pos: Tensor, embedding: Tensor, boxes: Tensor, ids: Tensor) -> MOTROutput:
    """The output of one layer for one image, of these queries."""
    position, content = query_pos[None].chunk(2, -1)
    predictions = Predictions(torch.zeros(1, len(ids), 1), boxes[None], Sigmoid())
    nothing = TrackQueries(position[:, :0], content[:, :0], content[:, :0], boxes[None, :0, :2], ids[None, :0])
    return MOTROutput(
        (predictions,), embedding[None, None], (), (), state=nothing, track_ids=ids[None], position=position,
        content=content,
    )  # fmt: skip


# ------------------------------------------------------------------------------------------------------------- training


def clip_of(golden: TrackingGolden) -> ClipBatch:
    """The clip of the golden. What is drawn with its seeds does not matter: the probabilities are 0 and 1."""
    frames = []
    for number, images in enumerate(golden.frames("imgs")):
        boxes, ids = (golden.arrays[f"frame{number}/gt/{name}"] for name in ("boxes", "obj_ids"))
        size = tuple(images.sizes[0].tolist())
        frames.append(Batch(images, (Target(torch.zeros_like(ids), boxes, size, size, number, track_ids=ids),)))
    return ClipBatch.of(frames, seeds=(0,))


class Recorder(MOTRTask):
    """Keeps what each frame hands to the next."""

    def __init__(self, *arguments, **settings) -> None:
        super().__init__(*arguments, **settings)
        self.after: list[tuple[Tensor, Tensor]] = []
        self.rows: list[Tensor] = []

    def assigned(self, *arguments):
        self.after.append(super().assigned(*arguments))
        return self.after[-1]

    def kept_queries(self, *arguments):
        self.rows.append(super().kept_queries(*arguments))
        return self.rows[-1]


@pytest.mark.parametrize("variant", ["clip_small", "clip_small_fp", pytest.param("clip_full", marks=pytest.mark.slow)])
def test_training(variant):
    golden = TrackingGolden(f"motr/{variant}")
    preset, model, clip = golden.preset(NAME), loaded(golden).train(), clip_of(golden)
    ratio = {"random_drop": golden["config"]["random_drop"], "false_positives": golden["config"]["fp_ratio"]}
    task = Recorder(model, TrackCriterion(preset.criterion), ClipConfig(**ratio))
    losses, total, count = {}, torch.zeros(()), torch.zeros(1)
    for number, (output, targets, matches) in enumerate(task.frames(clip)):
        check_frame(golden, number, task, output, matches)
        own = task.losses(output, targets, Normaliser(1.0, 1.0), matches)
        losses |= official(own, number)
        total, count = total + task.total(own), count + task.count(output, targets, matches)
    last_overlap = task.after[-1][1].gather(1, task.rows[-1])
    ids, overlap = task.assigned(output, clip.frames[-1], matches, last_overlap)
    check_after(golden, len(clip.frames) - 1, ids, overlap)
    assert count.item() == golden["num_samples"]
    assert {name: value / count.item() for name, value in losses.items()} == pytest.approx(
        golden["losses_after_normalisation"], rel=1e-4
    )
    total = total / count.squeeze()
    assert total.item() == pytest.approx(golden["total_weighted"], rel=1e-4)
    total.backward()
    assert gradient_faults(model, golden["grad_norms"], FAMILY.official) == []
    # The same through the interface of the trainer.
    whole = build_task(replace(preset, tracking=ClipConfig(**ratio)), model, 1)(clip)
    assert whole.pop("count").item() == count.item()
    assert task.total(whole).item() / count.item() == pytest.approx(golden["total_weighted"], rel=1e-4)


def official(losses: dict[str, Tensor], number: int) -> dict[str, float]:
    values = {}
    for name, theirs in _LOSSES.items():
        *aux, final = losses[name].tolist()
        values |= {f"frame_{number}_aux{layer}_{theirs}": value for layer, value in enumerate(aux)}
        values[f"frame_{number}_{theirs}"] = final
    return values


def check_frame(golden: TrackingGolden, number: int, task: Recorder, output: MOTROutput, matches: Matches) -> None:
    """The predictions and the matching of a frame, and what the frame before handed over."""
    arrays = golden.arrays
    close(output.final.logits[0], arrays[f"frame{number}/pred_logits"])
    close(output.final.boxes[0], arrays[f"frame{number}/pred_boxes"])
    assert torch.equal(output.track_ids[0], arrays[f"frame{number}/obj_idxes_before"])
    last = matches.of_layer(len(output.layers) - 1)
    matched = torch.full_like(output.track_ids[0], -1)
    matched[last.query] = last.target
    assert torch.equal(matched, arrays[f"frame{number}/matched_gt_idxes"])
    if number:
        before, count = f"frame{number - 1}", task.model.num_queries
        check_after(golden, number - 1, *task.after[-1])
        ids = output.track_ids[0, count:]
        assert ids.tolist() == golden["track_queries_passed_on"][number - 1]
        assert torch.equal(ids, arrays[f"{before}/next/obj_idxes"])
        queries = query_position(output.position, output.content)[0, count:]
        close(queries, arrays[f"{before}/next/query_pos"])


def check_after(golden: TrackingGolden, number: int, ids: Tensor, overlap: Tensor) -> None:
    assert torch.equal(ids[0], golden.arrays[f"frame{number}/obj_idxes_after"])
    close(overlap[0], golden.arrays[f"frame{number}/iou"])


def test_false_positives_are_the_closest_free_queries():
    boxes = torch.tensor([[0, 0, 2, 2], [0, 0, 2, 1], [5, 5, 6, 6], [0, 0, 1, 1.5], [5, 5, 6, 7.0]])
    every, none = torch.tensor([1, 2, 3]), torch.empty(0, dtype=torch.int64)
    assert closest(every, torch.tensor([0, 4]), boxes).tolist() == [1, 2]
    assert closest(every, torch.tensor([0]), boxes).tolist() == [1]
    assert closest(torch.tensor([1, 3]), torch.tensor([0, 4]), boxes).tolist() == [1, 3]
    assert closest(every, none, boxes).tolist() == closest(none, torch.tensor([0]), boxes).tolist() == []
