"""Images say what they should, where they should, for every kind of image."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from PIL import Image, ImageChops

from opendetr.categories import Categories
from opendetr.results import Detections, Panoptic, Segment, draw_detections, draw_panoptic
from opendetr.visualize import contact_sheet, draw_boxes, draw_curves, draw_segments, draw_truth, phrase_colour
from opendetr.visualize.style import PALETTE

RED, BLUE = (230, 40, 40), (30, 60, 230)
PETS = Categories(("cat", "dog"), (3, 7), colours=(RED, BLUE))


@dataclass(frozen=True)
class Record:
    """As much of a dataset's record of an object as is drawn."""

    category_id: int
    box: tuple[float, float, float, float]
    crowd: bool = False


def grey(height: int = 480, width: int = 640) -> np.ndarray:
    return np.full((height, width, 3), 128, dtype=np.uint8)


def found(boxes, scores, labels, size=(480, 640), image=None) -> Detections:
    return Detections(
        torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4), torch.tensor(scores), torch.tensor(labels).long(),
        PETS, size, image=image,
    )  # fmt: skip


def where(image: Image.Image, colour: tuple[int, int, int]) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of the pixels of exactly this colour, right and bottom included."""
    rows, columns = np.nonzero((np.asarray(image) == colour).all(-1))
    return int(columns.min()), int(rows.min()), int(columns.max()), int(rows.max())


def has(image: Image.Image, colour: tuple[int, int, int]) -> bool:
    return bool((np.asarray(image) == colour).all(-1).any())


def same(a: Image.Image, b: Image.Image) -> bool:
    return a.size == b.size and ImageChops.difference(a, b).getbbox() is None


def test_a_box_lies_where_it_should():
    left, top, right, bottom = where(draw_boxes(grey(), np.array([[100, 200, 300, 400]]), [""], [RED]), RED)
    assert (left, top, right, bottom) == pytest.approx((100, 200, 300, 400), abs=2)


def test_the_detections_own_image_is_the_default():
    detections = found([[100, 100, 200, 200]], [0.9], [0], image=grey())
    assert same(draw_detections(detections), draw_detections(detections, Image.fromarray(grey())))
    assert same(detections.plot(), draw_detections(detections))


def test_min_score_leaves_out():
    detections = found([[50, 50, 150, 150], [300, 50, 400, 150]], [0.9, 0.3], [0, 1], image=grey())
    assert has(draw_detections(detections), BLUE)
    image = draw_detections(detections, min_score=0.5)
    assert has(image, RED) and not has(image, BLUE)
    with pytest.raises(ValueError, match=r"min_score=50: give a number in 0\.\.1"):
        draw_detections(detections, min_score=50)


def test_nothing_found_draws_the_image():
    image = np.random.default_rng(0).integers(0, 255, (480, 640, 3), dtype=np.uint8)
    assert same(draw_detections(found([], [], []), image), Image.fromarray(image))


def test_small_images_are_enlarged_and_large_ones_are_not():
    assert draw_boxes(grey(256, 256), np.zeros((0, 4)), [], []).size == (768, 768)
    assert draw_boxes(grey(900, 1200), np.zeros((0, 4)), [], []).size == (1200, 900)
    assert draw_boxes(grey(256, 256), np.zeros((0, 4)), [], [], scale=1).size == (256, 256)
    enlarged = draw_boxes(grey(256, 256), np.array([[10, 20, 100, 200]]), [""], [RED])
    assert where(enlarged, RED) == pytest.approx((30, 60, 300, 600), abs=3)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK"])
def test_every_mode_becomes_rgb(mode):
    image = Image.new("L", (64, 48), 100).convert(mode)
    assert draw_boxes(image, np.zeros((0, 4)), [], []).mode == "RGB"


def test_a_grey_array_is_drawn():
    assert draw_boxes(grey()[..., 0], np.array([[10, 10, 50, 50]]), ["x"], [RED]).size == (640, 480)


@pytest.mark.parametrize("corner", [(0, 0, 40, 40), (600, 0, 640, 40), (0, 440, 40, 480), (600, 440, 640, 480)])
def test_labels_keep_inside_the_image(corner):
    """The whole label is there at every corner: as much of its plate as in the middle, letters included."""
    middle = (300, 220, 340, 260)
    images = [draw_boxes(grey(), np.array([box]), ["a long name 0.50"], [RED]) for box in (corner, middle)]
    plates = [(np.asarray(image) == RED).all(-1).sum(1).max() for image in images]  # pixels of the widest row
    assert plates[0] >= 0.9 * plates[1]


def test_labels_of_boxes_in_one_place_do_not_hide_each_other():
    boxes = np.array([[200, 200, 320, 320]] * 4)
    colours = [(200, 0, 0), (0, 200, 0), (0, 0, 200), (200, 200, 0)]
    together = np.asarray(draw_boxes(grey(), boxes, ["same name"] * 4, colours))
    alone = np.asarray(draw_boxes(grey(), boxes[:1], ["same name"], colours[:1]))
    plate = (alone[:197] == colours[0]).all(-1).sum()  # above the box
    for colour in colours:
        assert (together == colour).all(-1).sum() >= 0.95 * plate


@pytest.mark.parametrize(("colour", "ink"), [((250, 240, 60), 0), ((20, 20, 120), 255)])
def test_letters_contrast_with_their_plate(colour, ink):
    image = np.asarray(draw_boxes(grey(), np.array([[200, 200, 320, 320]]), ["name"], [colour]))
    plate = image[184:196, 200:240].astype(int)
    assert np.abs(plate.mean(-1) - ink).min() < 30


def test_boxes_beyond_the_image_are_cut_off():
    image = draw_boxes(grey(), np.array([[-50, -50, 700, 700], [800, 800, 900, 900]]), ["all", "none"], [RED, BLUE])
    assert where(image, RED) == (0, 0, 639, 479)


def test_letters_grow_with_the_image():
    heights = []
    for side in (700, 2800):
        box = np.array([[side / 2, side / 2, side / 2 + 100, side / 2 + 100]])
        heights.append(side / 2 - where(draw_boxes(grey(side, side), box, ["name"], [RED]), RED)[1])
    assert heights[1] > 3 * heights[0]


def test_labels_can_be_larger_than_usual():
    box = np.array([[300, 200, 400, 300]])
    heights = [200 - where(draw_boxes(grey(), box, ["name"], [RED], text=text), RED)[1] for text in (1, 2)]
    assert heights[1] > 1.8 * heights[0]


def test_truth_is_drawn_with_names_and_crowds():
    single, crowd = Record(3, (100, 100, 50, 50)), Record(3, (100, 100, 50, 50), crowd=True)
    assert where(draw_truth(grey(), [single], PETS, scale=1), RED)[2:] == pytest.approx((150, 150), abs=3)
    assert not same(draw_truth(grey(), [single], PETS), draw_truth(grey(), [crowd], PETS))
    assert same(draw_truth(grey(), [], PETS), Image.fromarray(grey()))


def disc(x: int, y: int, radius: int, size: tuple[int, int] = (480, 640)) -> np.ndarray:
    """An (H, W) mask."""
    rows, columns = np.mgrid[: size[0], : size[1]]
    return (rows - y) ** 2 + (columns - x) ** 2 <= radius**2


def drawn_masks(masks: list[np.ndarray], colours=(RED, RED), scale: float = 1) -> np.ndarray:
    boxes = np.array([[100, 100, 300, 300]] * len(masks))
    return np.asarray(draw_boxes(grey(), boxes, [""] * len(masks), colours, masks=np.array(masks), scale=scale))


def test_a_mask_is_half_transparent_with_an_outline_and_takes_the_place_of_the_box():
    mask = disc(200, 200, 80)
    pixels = drawn_masks([mask], [RED])
    assert where(Image.fromarray(pixels), RED) == (120, 120, 280, 280)  # the outline, and no box
    np.testing.assert_allclose(pixels[200, 200], 0.55 * 128 + 0.45 * np.array(RED), atol=1)
    far = ~disc(200, 200, 84)
    assert (pixels[far] == 128).all()
    assert (pixels[disc(200, 200, 82) & ~mask] < 128).any()  # a dark halo sets the outline off


def test_where_there_is_no_mask_the_box_is_drawn():
    pixels = drawn_masks([np.zeros((480, 640), dtype=bool)], [RED])
    assert where(Image.fromarray(pixels), RED) == pytest.approx((100, 100, 300, 300), abs=2)


def test_masks_of_one_class_differ_and_small_ones_lie_on_large_ones():
    pixels = drawn_masks([disc(200, 200, 30), disc(200, 200, 120)])
    assert np.abs(pixels[200, 200].astype(int) - pixels[200, 100]).max() > 20
    assert (pixels[200, 171] == RED).all()  # the outline of the small one, which is given first


def test_masks_grow_with_the_image():
    pixels = drawn_masks([disc(200, 200, 80)], [RED], scale=2)
    assert where(Image.fromarray(pixels), RED) == pytest.approx((240, 240, 561, 561), abs=2)


def test_detections_and_truth_are_drawn_with_their_masks():
    mask = disc(150, 150, 40)
    detections = found([[110, 110, 191, 191]], [0.9], [0], image=grey())
    with_masks = Detections(
        detections.boxes, detections.scores, detections.labels, PETS, (480, 640), grey(), torch.from_numpy(mask[None])
    )
    truth = draw_truth(grey(), [Record(3, (110, 110, 81, 81))], PETS, masks=mask[None])
    for image in (with_masks.plot(), truth):
        assert np.abs(np.asarray(image)[180, 150].astype(int) - 128).max() > 30
    assert np.abs(np.asarray(detections.plot())[180, 150].astype(int) - 128).max() == 0


LAND = Categories(("cat", "sky"), (3, 20), isthing=(True, False), colours=(RED, BLUE))


def quarters() -> np.ndarray:
    """A map of sky (9) with two cats (300, 70000) and a corner that nobody named (5)."""
    segments = np.full((480, 640), 9)
    segments[200:300, 100:250], segments[200:300, 400:550], segments[:40, :40] = 300, 70_000, 5
    return segments


def test_segments_have_their_colours_and_what_is_not_listed_stays():
    pixels = np.asarray(draw_segments(grey(), quarters(), {9: 1, 300: 0, 70_000: 0}, LAND))
    assert (pixels[20, 20] == 128).all()
    np.testing.assert_allclose(pixels[450, 620], 0.55 * 128 + 0.45 * np.array(BLUE), atol=1)
    np.testing.assert_allclose(pixels[210, 110], 0.55 * 128 + 0.45 * np.array(RED), atol=1)
    assert np.abs(pixels[210, 410].astype(int) - pixels[210, 110]).max() > 20  # two cats, two shades
    assert pixels[200, 150].max() < 64  # a dark line between segments


def test_names_stand_in_the_middle_of_their_segments():
    image = draw_segments(grey(), quarters(), {300: 0}, LAND)
    left, top, right, bottom = where(image, RED)  # the plate
    assert ((left + right) / 2, (top + bottom) / 2) == pytest.approx((175, 250), abs=12)
    narrow = np.zeros((480, 640), dtype=int)
    narrow[100:400, 300:306] = 300  # too narrow for a name
    left, _, right, _ = where(draw_segments(grey(), narrow, {300: 0}, LAND), RED)
    assert right - left > 20


def test_a_panoptic_map_is_drawn_on_its_own_image():
    segments = torch.from_numpy(np.where(quarters() == 300, 2, 1)).int()
    info = (Segment(1, 1, False, 10, 0.9), Segment(2, 0, True, 10, 0.9))
    result = Panoptic(segments, info, torch.ones(480, 640), LAND, (480, 640), grey())
    assert same(result.plot(), draw_panoptic(result, Image.fromarray(grey())))
    assert has(result.plot(), RED) and has(result.plot(), BLUE)
    with pytest.raises(ValueError, match="the image is 320 x 240, but the size of the panoptic map is 640 x 480"):
        draw_panoptic(result, grey(240, 320))


def test_masks_and_maps_of_another_size_are_named():
    with pytest.raises(ValueError, match=r"expected masks of \(1, 480, 640\), got \(1, 8, 8\)"):
        draw_boxes(grey(), np.zeros((1, 4)), [""], [RED], masks=np.zeros((1, 8, 8), dtype=bool))
    with pytest.raises(ValueError, match=r"expected a map of \(480, 640\), got \(8, 8\)"):
        draw_segments(grey(), np.zeros((8, 8), dtype=int), {}, LAND)


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 2), (7, 5)])
def test_the_smallest_masks_and_maps_can_be_drawn(size):
    image = grey(*size)
    whole = np.ones((1, *size), dtype=bool)
    assert draw_boxes(image, np.array([[0, 0, *size[::-1]]]), ["cat"], [RED], masks=whole, scale=1).size == size[::-1]
    assert draw_segments(image, whole[0].astype(int), {1: 0}, LAND, scale=1).size == size[::-1]
    assert draw_segments(image, whole[0].astype(int), {1: 0}, LAND).mode == "RGB"


def test_wrong_input_is_named():
    detections = found([[1, 1, 2, 2]], [0.9], [0])
    with pytest.raises(ValueError, match="no image was kept with the detections"):
        draw_detections(detections)
    with pytest.raises(ValueError, match="the image is 320 x 240, but the size of the detections is 640 x 480"):
        draw_detections(detections, grey(240, 320))
    with pytest.raises(ValueError, match="box 1 is not finite"):
        draw_boxes(grey(), np.array([[1, 1, 2, 2], [1, np.nan, 2, 2]]), ["", ""], [RED, RED])
    with pytest.raises(ValueError, match="1 boxes, 0 captions"):
        draw_boxes(grey(), np.array([[1, 1, 2, 2]]), [], [])
    with pytest.raises(ValueError, match="at least one image"):
        contact_sheet([], 2)
    with pytest.raises(ValueError, match="expected 1 titles, got 2"):
        contact_sheet([Image.new("RGB", (8, 8))], 2, ["a", "b"])


def test_sheets_hold_every_image():
    colours = [(10 * index + 5, 99, 33) for index in range(5)]
    images = [Image.new("RGB", (100 + index, 80), colour) for index, colour in enumerate(colours)]
    sheet = contact_sheet(images, 2, [f"image {index}" for index in range(5)])
    corners = [where(sheet, colour)[:2] for colour in colours]
    assert len({x for x, _ in corners}) == 2 and len({y for _, y in corners}) == 3
    assert not same(sheet, contact_sheet(images, 2, [""] * 5))


def test_curves_rise_where_the_values_do():
    chart = draw_curves({"AP": [(0, 0.0), (10, 1.0)]}, "Validation", x_label="epoch", y_label="AP")
    pixels = np.asarray(chart).astype(int)
    blue = (pixels[100:, :, 2] - pixels[100:, :, 0]) > 150  # below the legend
    rows, columns = np.nonzero(blue)
    assert np.corrcoef(rows, columns)[0, 1] < -0.99
    assert np.ptp(columns) > 0.8 * chart.width and np.ptp(rows) > 0.6 * (chart.height - 100)


def test_many_points_are_averaged_and_an_outlier_does_not_flatten_the_rest():
    values = np.random.default_rng(0).normal(1.0, 0.05, 1000)
    plain = draw_curves({"loss": list(enumerate(values))})
    values[500] = 1000.0
    spiked = draw_curves({"loss": list(enumerate(values[:500])) + list(enumerate(values[500:], 500))})
    dark = [np.asarray(chart)[40:-40, 100:450, 0] < 60 for chart in (plain, spiked)]  # the average, left of the spike
    assert np.array_equal(dark[0].any(0), dark[1].any(0)) and dark[0].any(0).mean() > 0.9


def seen_by(matrix: np.ndarray) -> np.ndarray:
    """The palette as CIELAB (k, 3), for an eye whose loss of colours is `matrix` on linear RGB."""
    values = np.array(PALETTE) / 255
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    linear = (linear @ matrix.T).clip(0, 1)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = linear @ to_xyz.T / (0.9505, 1.0, 1.089)
    x, y, z = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116).T
    return np.stack((116 * y - 16, 500 * (x - y), 200 * (y - z)), 1)


@pytest.mark.parametrize(
    "matrix",  # Machado, Oliveira and Fernandes (2009), whole loss
    [
        np.eye(3),
        np.array([[0.1523, 1.0526, -0.2049], [0.1145, 0.7863, 0.0992], [-0.0039, -0.0481, 1.0520]]),
        np.array([[0.3673, 0.8606, -0.2280], [0.2801, 0.6725, 0.0474], [-0.0118, 0.0429, 0.9689]]),
        np.array([[1.2555, -0.0767, -0.1788], [-0.0784, 0.9308, 0.1476], [0.0047, 0.6914, 0.3039]]),
    ],
    ids=["normal", "protanopia", "deuteranopia", "tritanopia"],
)
def test_the_colours_of_curves_are_told_apart_by_everyone(matrix):
    colours = seen_by(matrix)
    distances = np.linalg.norm(colours[:, None] - colours[None], axis=-1)
    assert distances[~np.eye(len(PALETTE), dtype=bool)].min() > 15
    assert colours[:, 0].max() < 75  # visible on white


def test_curves_of_one_colour_have_other_dashes():
    series = {f"line {index}": [(0, index), (10, index)] for index in range(24)}
    pixels = np.asarray(draw_curves(series, size=(1200, 900)))
    blue = (np.abs(pixels[250:].astype(int) - PALETTE[0]).sum(-1) < 30)[:, 200:1000]  # below the legend
    rows = np.flatnonzero(blue.sum(1) > 100)
    lines = np.split(rows, np.flatnonzero(np.diff(rows) > 1) + 1)
    shares = [blue[line].any(0).mean() for line in lines]  # from the top: line 16, 8 and 0
    assert len(shares) == 3 and shares[2] == 1.0
    assert all(0.1 < share < 0.9 for share in shares[:2]) and abs(shares[0] - shares[1]) > 0.1


def test_a_marked_step_has_a_line_and_a_name():
    points = [(step, 0.2 + step / 100) for step in range(0, 101, 10)]
    options = {"series": {"AP": points}, "x_range": (0, 100)}
    plain, marked = draw_curves(**options), draw_curves(**options, mark=(75, "best AP: step 75"))
    rows, columns = np.nonzero(np.abs(np.asarray(plain).astype(int) - np.asarray(marked)).sum(-1))
    frame_left, frame_right = 60, 960 - 30
    at = frame_left + 0.75 * (frame_right - frame_left)
    assert np.bincount(columns).argmax() == pytest.approx(at, abs=8) and np.ptp(rows) > 300
    assert at - 130 < columns.min() < at - 60  # its name, on the left


@pytest.mark.parametrize(
    "series",
    [
        {},
        {"empty": []},
        {"unknown": [(0, float("nan"))]},
        {"one": [(1, 0.5)]},
        {"flat": [(0, 3.0), (1, 3.0)]},
        {"gap": [(0, 1.0), (1, float("inf")), (2, 2.0)]},
        {"tiny": [(0, 1e-5), (1, 1e-4)], "below": [(0, -1e-4)]},
        {"huge": [(0, 1e9), (1, 2e9)]},
        {f"line {index}": [(0, index), (1, index)] for index in range(30)},
    ],
)
def test_every_series_can_be_drawn(series):
    chart = draw_curves(series, "a title that is far too long for the image " * 5, size=(640, 360))
    assert chart.size == (640, 360) and chart.mode == "RGB"


def test_a_phrase_has_the_same_colour_in_ground_truth_and_prediction():
    phrases = ("red star", "disc")
    detections = replace(found([(90, 120, 190, 260), (300, 120, 400, 260)], [0.9, 0.8], [0, 0]), phrases=phrases)
    objects = [Record(3, (90, 120, 100, 140)), Record(3, (300, 120, 100, 140))]
    for drawn in (draw_detections(detections, grey()), draw_truth(grey(), objects, PETS, names=phrases)):
        assert all(has(drawn, phrase_colour(phrase)) for phrase in phrases)
    assert phrase_colour(phrases[0]) != phrase_colour(phrases[1])
