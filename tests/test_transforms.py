"""Crops, flips with their labels, and colour."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clipwise.data.reversal import reverse, reverse_labels, reverse_partners
from clipwise.data.synthetic import PAIRS
from clipwise.data.transforms import (
    Box,
    ColourAugment,
    Normalise,
    crop_resize,
    evaluation_boxes,
    flip,
    mirror_labels,
    train_box,
)

SIDES = st.integers(1, 400)
SCALES = st.lists(st.floats(0.01, 1), min_size=1, max_size=4)
POSITIONS = st.sampled_from(["corner", "centre", "anywhere"])


def inside(box: Box, height: int, width: int) -> bool:
    return (
        min(box.top, box.left) >= 0
        and min(box.height, box.width) >= 1
        and box.top + box.height <= height
        and box.left + box.width <= width
    )


@settings(max_examples=200, deadline=None)
@given(SIDES, SIDES, POSITIONS, SCALES, st.integers(0, 3), st.integers(0, 2**32))
def test_a_training_box_is_never_empty_nor_outside(height, width, position, scales, max_distort, seed):
    def draw() -> Box:
        return train_box(
            height,
            width,
            np.random.default_rng(seed),
            position=position,
            scales=scales,
            max_distort=max_distort,
        )

    box = draw()
    assert inside(box, height, width)
    assert box == draw(), "the generator alone decides"
    if max_distort == 0:
        assert box.height == box.width


def draws(count: int, height: int, width: int, **options) -> Counter[Box]:
    rng = np.random.default_rng(0)
    return Counter(train_box(height, width, rng, **options) for _ in range(count))


def test_corner_crops_are_the_13_places_of_the_multi_scale_crop_equally_often():
    boxes = draws(2600, 240, 320, position="corner", scales=(0.5,))
    # Room: 120 down and 200 to the right. Corners, centre, edge middles, inner quarters.
    corners = {(0, 0), (0, 200), (120, 0), (120, 200)}
    edges = {(0, 100), (60, 0), (60, 200), (120, 100)}
    quarters = {(30, 50), (30, 150), (90, 50), (90, 150)}
    assert {box[:2] for box in boxes} == corners | edges | quarters | {(60, 100)}
    assert {box[2:] for box in boxes} == {(120, 120)}
    assert min(boxes.values()) > 140


def test_corner_crops_touch_the_border_where_the_room_is_no_multiple_of_four():
    boxes = draws(500, 103, 131, position="corner", scales=(0.9,))
    assert max(box.top + box.height for box in boxes) == 103
    assert max(box.left + box.width for box in boxes) == 131


def test_distortion_pairs_neighbouring_scales_only():
    scales = (1, 0.875, 0.75, 0.66)
    boxes = draws(2000, 256, 340, position="centre", scales=scales, max_distort=1)
    lengths = [256, 224, 192, 168]
    expected = {(a, b) for i, a in enumerate(lengths) for j, b in enumerate(lengths) if abs(i - j) <= 1}
    assert {(box.height, box.width) for box in boxes} == expected
    assert min(boxes.values()) > 150, "uniform over the ten pairs"


def test_the_overhead_adl_crop_is_a_square_of_three_sizes_at_any_place():
    boxes = draws(20000, 16, 20, position="anywhere", scales=(1, 0.875, 0.75), max_distort=0)
    for side in (16, 14, 12):
        places = {box[:2] for box in boxes if box[2:] == (side, side)}
        assert places == {(top, left) for top in range(16 - side + 1) for left in range(20 - side + 1)}
    per_side = Counter()
    for box, count in boxes.items():
        per_side[box.height] += count
    assert max(per_side.values()) - min(per_side.values()) < 600


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"position": "corner", "scales": ()}, "scales"),
        ({"position": "corner", "scales": (1.2,)}, "1.2"),
        ({"position": "corner", "scales": (0.0,)}, "0.0"),
        ({"position": "random", "scales": (1,)}, "'random'"),
        ({"position": "corner", "scales": (1,), "max_distort": -1}, "-1"),
    ],
)
def test_an_impossible_training_crop_is_refused_with_its_value(options, message):
    with pytest.raises(ValueError, match=message):
        train_box(10, 10, np.random.default_rng(0), **options)


def test_one_test_crop_is_central_and_224_of_256_is_a_ratio_of_0_875():
    assert evaluation_boxes(256, 340, crops=1, ratio=0.875) == [Box(16, 58, 224, 224)]
    assert evaluation_boxes(240, 320, crops=1, ratio=1) == [Box(0, 40, 240, 240)]


def test_three_test_crops_run_along_the_longer_side_in_order_and_cover_it():
    wide = evaluation_boxes(256, 340, crops=3, ratio=1)
    assert wide == [Box(0, 0, 256, 256), Box(0, 42, 256, 256), Box(0, 84, 256, 256)]
    tall = evaluation_boxes(340, 256, crops=3, ratio=1)
    assert tall == [Box(left, top, 256, 256) for top, left, _, _ in wide]
    smaller = evaluation_boxes(256, 340, crops=3, ratio=0.875)
    assert smaller == [Box(16, 0, 224, 224), Box(16, 58, 224, 224), Box(16, 116, 224, 224)]
    assert len(evaluation_boxes(90, 90, crops=3, ratio=1)) == 3, "a square frame keeps the number of views"


@settings(max_examples=200, deadline=None)
@given(SIDES, SIDES, st.sampled_from([1, 3]), st.floats(0.001, 1))
def test_test_crops_are_squares_inside_the_frame_and_the_middle_one_is_the_centre_crop(h, w, crops, ratio):
    boxes = evaluation_boxes(h, w, crops=crops, ratio=ratio)
    assert all(inside(box, h, w) and box.height == box.width for box in boxes)
    assert boxes[crops // 2] == evaluation_boxes(h, w, crops=1, ratio=ratio)[0]


@pytest.mark.parametrize(
    ("crops", "ratio", "match"), [(2, 1, "got 2"), (10, 1, "10"), (1, 0, "got 0"), (1, 1.01, "1.01")]
)
def test_other_test_crops_are_refused(crops, ratio, match):
    with pytest.raises(ValueError, match=match):
        evaluation_boxes(100, 100, crops=crops, ratio=ratio)


def noise(frames: int = 3, height: int = 40, width: int = 60) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (frames, height, width, 3), dtype=np.uint8)


def test_a_crop_of_the_wanted_size_is_the_frames_own_pixels_and_owns_them():
    frames = noise()
    clip = crop_resize(frames, Box(5, 7, 24, 24), 24)
    assert np.array_equal(clip.permute(0, 2, 3, 1).numpy(), frames[:, 5:29, 7:31])
    before = clip.clone()
    frames[:] = 0
    assert torch.equal(clip, before)


def test_nothing_outside_the_box_reaches_the_crop():
    frames = noise()
    others = 255 - frames
    others[:, 5:29, 7:31] = frames[:, 5:29, 7:31]
    box = Box(5, 7, 24, 24)
    for size in (10, 37):
        assert torch.equal(crop_resize(frames, box, size), crop_resize(others, box, size))


@pytest.mark.parametrize("size", [9, 20, 50])
def test_the_native_uint8_resize_agrees_with_float_arithmetic(size):
    frames = noise()
    resized = crop_resize(frames, Box(4, 10, 30, 35), size)
    exact = torch.nn.functional.interpolate(
        torch.from_numpy(frames[:, 4:34, 10:45].astype(np.float64)).permute(0, 3, 1, 2),
        size=(size, size),
        mode="bilinear",
        antialias=True,
    )
    # Two passes, each rounded to a whole shade.
    assert (resized.double() - exact).abs().max() <= 1.5
    assert (resized.double() - exact).mean().abs() < 0.05, "and no drift to the darker or the lighter side"


@pytest.mark.parametrize("make", ["read-only", "reversed", "fortran"])
def test_a_mapped_or_reversed_array_gives_the_same_crop_without_a_warning(make, recwarn):
    frames = noise()
    same = {"read-only": frames.copy(), "reversed": frames[::-1].copy()[::-1], "fortran": frames.copy("F")}
    view = same[make]
    if make == "read-only":
        view.flags.writeable = False
    for box in (Box(0, 0, 40, 40), Box(3, 5, 20, 20)):
        assert torch.equal(crop_resize(view, box, 20), crop_resize(frames, box, 20))
    assert not recwarn.list


@pytest.mark.parametrize("size", [20, 32])
def test_crops_stay_channels_last_through_stacking_flipping_and_normalising(size):
    crop = crop_resize(noise(), Box(0, 0, 20, 20), size)
    batch = torch.stack([crop, flip(crop)])
    assert batch.movedim(2, -1).is_contiguous()
    assert Normalise()(batch).flatten(0, 1).is_contiguous(memory_format=torch.channels_last)


def test_one_pixel_can_fill_a_crop_and_a_crop_can_shrink_to_one_pixel():
    frames = noise()
    filled = crop_resize(frames, Box(7, 9, 1, 1), 12)
    assert torch.equal(filled, torch.from_numpy(frames[:, 7, 9])[:, :, None, None].expand(3, 3, 12, 12))
    assert crop_resize(np.full((2, 9, 9, 3), 200, np.uint8), Box(0, 0, 9, 9), 1).eq(200).all()


@pytest.mark.parametrize("size", [20, 13, 48])  # the box's own size, smaller, larger
def test_a_crop_is_written_where_it_is_to_be(size: int) -> None:
    frames, box = noise(), Box(2, 3, 20, 20)
    batch = torch.full((3, len(frames), size, size, 3), 77, dtype=torch.uint8).permute(0, 1, 4, 2, 3)
    assert crop_resize(frames, box, size, out=batch[1]).data_ptr() == batch[1].data_ptr()
    assert torch.equal(batch[1], crop_resize(frames, box, size))
    assert batch[::2].eq(77).all()


@pytest.mark.parametrize("size", [20, 13, 48])
@pytest.mark.parametrize("width", [1, 2, 7, 19, 20, 21, 33])
def test_mirrored_is_flipped_to_the_bit(size: int, width: int) -> None:
    """Whether the picture is flipped before it is resized or after: resizing has no left and right."""
    frames = np.random.default_rng(size).integers(0, 256, (3, 24, 40, 3), np.uint8)
    for box in (Box(1, 2, 20, width), Box(0, 40 - width, 7, width)):
        expected = flip(crop_resize(frames, box, size))
        out = torch.zeros(3, size, size, 3, dtype=torch.uint8).permute(0, 3, 1, 2)
        assert torch.equal(crop_resize(frames, box, size, mirrored=True), expected)
        assert crop_resize(frames, box, size, mirrored=True, out=out) is out
        assert torch.equal(out, expected)


def test_wrong_frames_and_boxes_are_refused_with_their_values():
    frames = noise()
    with pytest.raises(TypeError, match="float32"):
        crop_resize(frames.astype(np.float32), Box(0, 0, 4, 4), 4)
    with pytest.raises(ValueError, match=r"\(40, 60, 3\)"):
        crop_resize(frames[0], Box(0, 0, 4, 4), 4)
    for box in (Box(0, 0, 41, 40), Box(-1, 0, 4, 4), Box(0, 57, 4, 4), Box(0, 0, 0, 4)):
        with pytest.raises(ValueError, match="40 × 60"):
            crop_resize(frames, box, 4)
    with pytest.raises(ValueError, match="got 0"):
        crop_resize(frames, Box(0, 0, 4, 4), 0)


def changes(classes: list[str]) -> dict[int, int | None]:
    return {label: other for label, other in enumerate(mirror_labels(classes)) if other != label}


def pairs(*both: tuple[int, int]) -> dict[int, int | None]:
    return dict(both) | {b: a for a, b in both}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("sthv1", pairs((2, 4), (30, 41), (52, 66)) | {104: None}),
        ("sthv2", pairs((86, 87), (93, 94), (166, 167)) | {50: None}),
        ("jester", pairs((0, 1), (6, 7), (14, 15))),
        ("mini_ssv2", {41: None, 46: None, 83: None}),
        ("kinetics400", {}),
        ("mit", {}),
        ("diving48", {}),
        ("ucf101", {}),
        ("hmdb51", {}),
    ],
)
def test_flipped_labels_of_the_public_sets(shared: Path, name: str, expected: dict[int, int | None]):
    text = (shared / f"reference/labels/{name}.txt").read_text(encoding="utf-8")
    assert changes([line for line in text.splitlines() if line]) == expected


LISTS = [
    "diving48",
    "hmdb51",
    "jester",
    "kinetics400",
    "mini_kinetics400",
    "mini_ssv2",
    "mit",
    "sthv1",
    "sthv2",
    "ucf101",
]


def public_classes(shared: Path, name: str) -> list[str]:
    text = (shared / f"reference/labels/{name}.txt").read_text(encoding="utf-8")
    return [line for line in text.splitlines() if line]


@pytest.mark.parametrize("name", LISTS)
@pytest.mark.parametrize("transform", [mirror_labels, reverse_labels])
def test_of_the_public_sets_too_a_flip_and_a_reversal_are_their_own_inverse(shared: Path, name: str, transform):
    assert sorted(path.stem for path in (shared / "reference/labels").glob("*.txt")) == LISTS
    partners = transform(public_classes(shared, name))
    assert all(partner is None or partners[partner] == label for label, partner in enumerate(partners))


WORDS = ["left", "Right", "LEFT", "right", "clockwise", "counterclockwise", "anticlockwise", "turn", "upright"]
NAMES = st.lists(st.sampled_from(WORDS), min_size=1, max_size=3)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.builds(lambda sep, words: sep.join(words), st.sampled_from(" _-"), NAMES), unique=True, max_size=30))
def test_a_flip_is_its_own_inverse_whatever_the_list_holds(classes):
    partners = mirror_labels(classes)
    assert all(partner is None or partners[partner] == label for label, partner in enumerate(partners))


def reversals(classes: list[str], *more: tuple[str, str]) -> dict[int, int]:
    return {label: other for label, other in enumerate(reverse_labels(classes, more)) if other is not None}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "sthv1",
            pairs((2, 4), (5, 11), (6, 12), (9, 20), (10, 26), (13, 15), (39, 45), (47, 60), (70, 77), (116, 124)),
        ),
        (
            "sthv2",
            pairs((0, 32), (4, 7), (5, 46), (6, 171), (14, 172), (36, 37), (40, 42), (41, 44), (165, 168), (166, 167)),
        ),
        ("mini_ssv2", pairs((0, 14), (8, 86), (15, 16), (18, 19))),
        ("jester", pairs((4, 5), (10, 11), (12, 13), (14, 15), (16, 17), (18, 19))),
        ("mit", pairs((187, 251))),
        ("kinetics400", {}),
        ("hmdb51", {}),
    ],
)
def test_reversed_labels_of_the_public_sets(shared: Path, name: str, expected: dict[int, int]):
    assert reversals(public_classes(shared, name)) == expected


def test_every_rendered_pair_is_each_other_backwards():
    classes = [name for pair in PAIRS for name in pair]
    assert reverse_labels(classes) == [label ^ 1 for label in range(len(classes))]


def test_no_class_is_reversed_for_a_word_in_its_name():
    classes = ["moving something up", "moving something down", "Swiping Left", "Swiping Right", "opening bottle"]
    classes += ["pretending to open something", "pretending to close something", "lifting it up", "letting it down"]
    assert reversals(classes) == {}


def test_reversed_names_are_found_in_any_spelling_but_not_twice():
    assert reversals(["Open_Fridge", "x", "closeFridge"]) == {0: 2, 2: 0}
    assert reversals(["sitting_down", "standing_up"]) == {0: 1, 1: 0}
    assert reversals(["open door", "close window"]) == {}
    assert reversals(["covering pan with lid", "covering pan with foil", "uncovering pan"]) == {}, "which one?"


def test_own_pairs_go_before_the_known_ones_and_a_class_may_be_the_same_either_way():
    classes = ["opening", "closing", "shutting", "shaking"]
    assert reversals(classes, ("opening", "shutting"), ("shaking", "shaking")) == {0: 2, 2: 0, 3: 3}
    with pytest.raises(ValueError, match="'opening' is in two pairs"):
        reverse_labels(classes, [("opening", "shutting"), ("closing", "opening")])
    with pytest.raises(ValueError, match="'ajar' is not in"):
        reverse_labels(classes, [("opening", "ajar")])


def test_a_head_without_pairs_stays_when_another_is_reversed():
    verbs, nouns = ["open", "close", "cut"], ["door", "bread"]
    assert reverse_partners([verbs, nouns]) == [[1, 0, None], [0, 1]]
    assert reverse_partners([verbs, nouns], [("cut", "cut")]) == [[1, 0, 2], [0, 1]]
    with pytest.raises(ValueError, match="'door' and 'cut' are not"):
        reverse_partners([verbs, nouns], [("door", "cut")])
    with pytest.raises(ValueError, match="no class has the class that it is when played backwards"):
        reverse_partners([nouns])


def test_a_reversal_turns_the_order_of_frames_and_nothing_else():
    clip = crop_resize(noise(frames=5), Box(0, 0, 20, 20), 20)
    assert torch.equal(reverse(clip)[0], clip[4])
    assert torch.equal(reverse(reverse(clip)), clip)


def test_flipped_labels_of_folder_names():
    handwash = ["Step_1", "Step_2_Left", "Step_2_Right", "Step_3"]
    assert changes(handwash) == pairs((1, 2))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("turnLeft", "turnRight"),
        ("LeftTurn", "RightTurn"),
        ("LEFT-turn", "RIGHT-turn"),
        ("left2", "right2"),
        ("wave (left, then right)", "wave (right, then left)"),
        ("spin clockwise", "spin counterclockwise"),
        ("spin_clockwise", "spin_counter_clockwise"),
        ("spin-clockwise", "spin-anti-clockwise"),
        ("Spin Clockwise", "Spin Counter-clockwise"),
        ("SpinClockwise", "SpinCounterClockwise"),
        ("spin CLOCKWISE", "spin ANTICLOCKWISE"),
        ("left hand clockwise", "right hand anticlockwise"),
    ],
)
def test_mirrored_names_are_found_in_any_spelling(one: str, other: str):
    assert mirror_labels([one, "stand still", other]) == [2, 1, 0]


def test_words_that_merely_contain_left_or_right_keep_their_label():
    classes = ["upright", "brightness", "leftover", "copyright", "rightly"]
    assert mirror_labels(classes) == [0, 1, 2, 3, 4]


def test_a_partner_in_another_style_is_no_partner():
    assert mirror_labels(["turn left", "turn_right", "Turn Right"]) == [None, None, None]


def test_a_class_listed_twice_is_refused():
    with pytest.raises(ValueError, match="'left' twice"):
        mirror_labels(["left", "right", "left"])


def test_a_flip_mirrors_columns_and_nothing_else():
    clip = crop_resize(noise(), Box(0, 0, 20, 20), 20)
    assert torch.equal(flip(clip)[..., 3], clip[..., -4])
    assert torch.equal(flip(flip(clip)), clip)


def clips(count: int = 4, frames: int = 3) -> torch.Tensor:
    """One picture, repeated: any difference in what comes out is a difference in what was drawn."""
    picture = torch.randint(0, 256, (3, 16, 16), dtype=torch.uint8)
    return picture.expand(count, frames, 3, 16, 16).contiguous()


def test_normalising_is_the_textbook_formula_for_bytes_and_for_shares():
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    batch = torch.randint(0, 256, (2, 3, 3, 5, 7), dtype=torch.uint8)
    share = batch.double() / 255
    expected = (share - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    normalise = Normalise(mean, std)
    for given_ in (batch, share, share.float()):
        result = normalise(given_)
        assert result.dtype == torch.float32
        assert result.shape == batch.shape
        torch.testing.assert_close(result.double(), expected, rtol=0, atol=2e-6)


def test_preprocessing_adds_nothing_to_a_checkpoint():
    assert not Normalise().state_dict()
    assert not ColourAugment(0.4, 0.4, 0.4, 0.1, 0.2).state_dict()


def test_one_colour_draw_per_clip_differing_between_clips():
    out = ColourAugment(0.4, 0.4, 0.4, 0.1)(clips())
    assert torch.equal(out, out[:, :1].expand_as(out)), "the frames of a clip change together"
    for i in range(4):
        for j in range(i):
            assert not torch.equal(out[i], out[j]), (i, j)


def test_greyscale_takes_whole_clips_at_its_probability():
    out = ColourAugment(greyscale=0.3)(clips(count=400, frames=2))
    grey = (out[:, :, 0] == out[:, :, 1]).flatten(2).all(-1)
    assert torch.equal(grey[:, 0], grey[:, 1])
    assert 0.22 < grey[:, 0].float().mean() < 0.38


def test_colour_repeats_with_the_seed_and_stays_between_black_and_white():
    augment = ColourAugment(0.9, 0.9, 0.9, 0.5, 0.2)
    results = []
    for _ in range(2):
        torch.manual_seed(3)
        results.append(augment(clips()))
    assert torch.equal(*results)
    assert results[0].min() >= 0
    assert results[0].max() <= 1


@pytest.mark.parametrize("evaluate", [True, False])
def test_without_jitter_or_in_evaluation_colours_are_only_scaled(evaluate):
    augment = ColourAugment(0.4, 0.4, 0.4, 0.1, 0.5).eval() if evaluate else ColourAugment()
    batch = clips()
    assert torch.equal(augment(batch), batch / 255)


@pytest.mark.parametrize(
    ("options", "match"), [({"hue": 0.6}, "0.6"), ({"greyscale": 1.5}, "1.5"), ({"contrast": -1.0}, "-1.0")]
)
def test_impossible_colour_settings_are_refused(options, match):
    with pytest.raises(ValueError, match=match):
        ColourAugment(**options)


@pytest.mark.parametrize("transform", [Normalise, ColourAugment])
def test_device_transforms_name_what_is_wrong_with_a_batch(transform):
    module = transform()
    with pytest.raises(ValueError, match=r"\(2, 3, 5, 5\)"):
        module(torch.zeros(2, 3, 5, 5))
    with pytest.raises(TypeError, match="int64"):
        module(torch.zeros(2, 3, 3, 5, 5, dtype=torch.int64))
