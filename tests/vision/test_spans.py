"""Which part of a picture a token stands for: by hand, and by what each token reacts to."""

import math

import pytest
import torch
from PIL import Image
from torch import nn
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlavaNextConfig,
    LlavaNextImageProcessor,
    LlavaNextProcessor,
    LlavaOnevisionConfig,
    LlavaOnevisionImageProcessor,
    LlavaOnevisionProcessor,
    LlavaOnevisionVideoProcessor,
)

from mmalign.tinyworld.tokenizer import build_tokenizer
from mmalign.types import Prompt
from mmalign.vision.features import features_of
from mmalign.vision.lvlm_policy import vision_tower
from mmalign.vision.spans import BOXES, Sight, clipped, grid, seen_pictures
from tests.vision.lvlm_models import FAMILIES, adapter_of

MARK = [math.nan] * 4


def asked(*pictures):
    """A turn with the pictures and a word."""
    parts = [*[{"type": "image"}] * len(pictures), {"type": "text", "text": "describe"}]
    return Prompt(content=({"role": "user", "content": parts},), images=pictures)


def black(width, height, spot=None):
    """A black picture, white in the box ``spot`` of shares."""
    picture = Image.new("RGB", (width, height))
    if spot is not None:
        left, top, right, bottom = spot
        box = (left * width, top * height, right * width, bottom * height)
        picture.paste((255, 255, 255), tuple(round(x) for x in box))
    return picture


def boxes_of(name, *sizes):
    """Boxes of black pictures of ``(width, height)``."""
    model, processor = FAMILIES[name]()
    found = seen_pictures(adapter_of(model, processor), model, asked(*[black(*s) for s in sizes]))
    return [one.boxes for one in found]


def table(*rows):
    return torch.tensor(rows)


HALVES = [[0, 0, 0.5, 0.5], [0.5, 0, 1, 0.5], [0, 0.5, 0.5, 1], [0.5, 0.5, 1, 1]]
"""Two lines of two tokens."""


def lines(*columns, ends):
    """Two lines of equal height, of these columns, with or without a mark behind each."""
    found = []
    for top, bottom in ((0, 0.5), (0.5, 1)):
        found += [[left, top, right, bottom] for left, right in columns] + [MARK] * ends
    return found


def test_every_family_of_these_tests_is_known():
    assert set(BOXES) == set(FAMILIES)


@pytest.mark.parametrize(
    ("name", "size", "expected"),
    [
        # One square of two lines of two tokens, into which the picture is squeezed.
        ("llava", (24, 16), HALVES),
        ("gemma3", (24, 16), HALVES),
        # The square, and two tiles: a canvas of 32 x 16 px with the picture at 4 to 28. Columns of
        # 8 px so reach from -4, 4, 12, 20 to 28 px of its 24. By rows, the mark behind.
        (
            "llava_next",
            (24, 16),
            HALVES + lines((0, 1 / 6), (1 / 6, 0.5), (0.5, 5 / 6), (5 / 6, 1), ends=1),
        ),
        # The same with a thin picture, 32 x 8, in the middle of the canvas: of 2 rows of 8 px the
        # upper ends, the lower begins at half the picture. Nothing is outside by a whole row.
        (
            "llava_next",
            (32, 8),
            HALVES + lines((0, 0.25), (0.25, 0.5), (0.5, 0.75), (0.75, 1), ends=1),
        ),
        (
            "llava_onevision",
            (24, 16),
            HALVES + lines((0, 1 / 6), (1 / 6, 0.5), (0.5, 5 / 6), (5 / 6, 1), ends=1),
        ),
        # Four tiles are 4 x 4 tokens, 2 times what two tiles may have: sqrt(2) smaller each way,
        # 4 // 1.41 = 2.
        ("llava_onevision", (32, 32), HALVES + lines((0, 0.5), (0.5, 1), ends=1)),
        # A token for every 8 x 8 px, and the picture keeps its size.
        ("qwen2_vl", (24, 16), lines((0, 1 / 3), (1 / 3, 2 / 3), (2 / 3, 1), ends=0)),
        ("qwen2_5_vl", (24, 16), lines((0, 1 / 3), (1 / 3, 2 / 3), (2 / 3, 1), ends=0)),
        ("qwen3_vl", (24, 16), lines((0, 1 / 3), (1 / 3, 2 / 3), (2 / 3, 1), ends=0)),
        # Two tiles side by side, each 2 x 2 tokens, then the whole.
        (
            "internvl",
            (24, 16),
            lines((0, 0.25), (0.25, 0.5), ends=0) + lines((0.5, 0.75), (0.75, 1), ends=0) + HALVES,
        ),
        ("internvl", (16, 16), HALVES),
        # 24 x 16 becomes 32 x 22, then 32 x 32: two rows of two tiles of 2 x 2 tokens.
        (
            "idefics3",
            (24, 16),
            [
                [left + x, top + y, left + x + 0.25, top + y + 0.25]
                for top in (0, 0.5)
                for left in (0, 0.5)
                for y in (0, 0.25)
                for x in (0, 0.25)
            ]
            + HALVES,
        ),
    ],
)
def test_boxes_by_hand(name, size, expected):
    (found,) = boxes_of(name, size)
    torch.testing.assert_close(found, table(*expected), equal_nan=True)


def test_one_of_several_pictures_is_a_square_in_llava_onevision():
    for found in boxes_of("llava_onevision", (24, 16), (32, 32)):
        torch.testing.assert_close(found, table(*HALVES, MARK), equal_nan=True)


def test_what_llava_cuts_away_is_not_seen():
    """32 x 16 px with the short side made 16, and the middle 16 cut out: 8 to 24 of 32 remain."""
    model, processor = FAMILIES["llava"]()
    processor.image_processor = CLIPImageProcessor(
        size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}
    )
    (found,) = seen_pictures(adapter_of(model, processor), model, asked(black(32, 16)))
    torch.testing.assert_close(found.boxes, table(*lines((0.25, 0.5), (0.5, 0.75), ends=0)))


def test_padding_is_no_place():
    """Of a box that reaches beyond the picture the rest counts; one that lies beyond is none."""
    found = clipped(grid(1, 3, (-1.0, 0.0, 2.0, 1.0)).flatten(0, 1))
    assert found[0].isnan().all() and found[2].isnan().all()
    assert found[1].tolist() == [0, 0, 1, 1]
    half = clipped(grid(1, 1, (-1.0, -1.0, 0.5, 0.25)).flatten(0, 1))
    assert half.tolist() == [[0, 0, 0.5, 0.25]]


@pytest.fixture(params=sorted(FAMILIES))
def family(request):
    return FAMILIES[request.param]()


def only_where_it_looks(model):
    """Let no patch of the tower see another: what its layers add to their input becomes 0."""
    layers = (".layers.", ".layer.", "blocks.")
    with torch.no_grad():
        for name, module in vision_tower(model).named_modules():
            if isinstance(module, nn.Linear) and any(part in f".{name}" for part in layers):
                for parameter in module.parameters():
                    parameter.zero_()


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize(
    ("size", "spot"),
    [
        ((24, 16), (0.5, 0.0, 1.0, 0.5)),
        ((16, 32), (0.0, 0.75, 0.5, 1.0)),
        ((32, 32), (0.0, 0.25, 0.25, 0.5)),
    ],
)
def test_the_tokens_of_a_bright_spot_change(family, size, spot, several):
    """And no other does by as much. Resizing blurs the edges of the spot."""
    model, processor = family
    only_where_it_looks(model)
    adapter = adapter_of(model, processor)
    more = (black(24, 16),) if several else ()
    features = []
    for picture in (black(*size), black(*size, spot)):
        prompt = asked(*more, picture)
        static = adapter.static_of([prompt])
        features += features_of(
            model,
            static["per_image"],
            static["image_keys"],
            family=adapter.family,
            cache=adapter.features,
        )
        seen = seen_pictures(adapter, model, prompt)
    change = (features[0] - features[1]).detach().norm(dim=-1)
    first, boxes = len(change) - len(seen[-1].places), seen[-1].boxes
    assert not change[:first].any()
    change = change[first:] / change.max()
    left, top, right, bottom = spot
    across = (boxes[:, 2].clamp(max=right) - boxes[:, 0].clamp(min=left)).clamp(min=0)
    down = (boxes[:, 3].clamp(max=bottom) - boxes[:, 1].clamp(min=top)).clamp(min=0)
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    share = (across * down / area).nan_to_num()
    assert (change[share == 0] < 0.35).all()
    assert (change[share > 0.7] > 0.5).all() and (share > 0.2).any()
    assert (change[boxes[:, 0].isnan()] == 0).all()


def test_places_are_the_image_tokens_in_reading_order(family):
    """As many for each picture as the processor writes for it in a prompt like this."""
    model, processor = family
    adapter = adapter_of(model, processor)
    pictures = (black(24, 16), black(16, 32), black(16, 16))
    prompt = asked(*pictures)
    (ids,) = adapter.static_of([prompt])["prompt_ids"]
    seen = seen_pictures(adapter, model, prompt)
    image = (ids == model.config.image_token_id).nonzero().squeeze(1)
    assert torch.equal(torch.cat([one.places for one in seen]), image)
    for one, picture in zip(seen, pictures, strict=True):
        assert len(one.places) == len(one.boxes)
        # Beside two others, which are the same to every family that reads several otherwise.
        beside = asked(picture, black(8, 8), black(8, 8))
        (other,) = adapter.static_of([beside])["prompt_ids"]
        (rest,) = adapter.static_of([asked(black(8, 8), black(8, 8), black(8, 8))])["prompt_ids"]
        small = int((rest == model.config.image_token_id).sum()) // 3
        assert int((other == model.config.image_token_id).sum()) - 2 * small == len(one.places)
    assert seen_pictures(adapter, model, asked()) == []


@pytest.mark.parametrize("sizes", [[(37, 53)], [(100, 9)], [(7, 61)], [(50, 50), (5, 90)]])
def test_odd_sizes_have_the_processors_number_of_tokens(family, sizes):
    """Else `seen_pictures` would refuse them."""
    model, processor = family
    seen = seen_pictures(adapter_of(model, processor), model, asked(*[black(*s) for s in sizes]))
    assert len(seen) == len(sizes)


def published(name):
    """Config and processor in the sizes of published models, whose networks are not needed."""
    tokenizer = build_tokenizer()
    if name == "llava_next":
        vision = CLIPVisionConfig(image_size=336, patch_size=14)
        square = {"height": 336, "width": 336}
        images = LlavaNextImageProcessor(size={"shortest_edge": 336}, crop_size=square)
        return LlavaNextConfig(vision_config=vision), LlavaNextProcessor(
            image_processor=images,
            tokenizer=tokenizer,
            patch_size=14,
            vision_feature_select_strategy="default",
            num_additional_image_tokens=1,
        )
    config = LlavaOnevisionConfig()
    return config, LlavaOnevisionProcessor(
        image_processor=LlavaOnevisionImageProcessor(
            size={"height": 384, "width": 384}, image_grid_pinpoints=config.image_grid_pinpoints
        ),
        tokenizer=tokenizer,
        video_processor=LlavaOnevisionVideoProcessor(),
        num_image_tokens=729,
        vision_feature_select_strategy="full",
    )


@pytest.mark.parametrize("name", ["llava_next", "llava_onevision"])
def test_sizes_of_published_models(name):
    """The processor counts tokens by a formula of its own; boxes come from how models unpad."""
    config, processor = published(name)
    sight = Sight(processor=processor, config=config, alone=True)
    for width, height in [(640, 480), (333, 1001), (1919, 41), (800, 799), (52, 1400), (27, 31)]:
        counted = processor._get_num_multimodal_tokens(image_sizes=[(height, width)])
        boxes = BOXES[name](Image.new("L", (width, height)), sight)
        assert [len(boxes)] == counted["num_image_tokens"]


def test_what_cannot_be_told_is_refused(family):
    model, processor = family
    adapter = adapter_of(model, processor)
    kind, prompt = model.config.model_type, asked(black(24, 16))
    model.config.image_token_id = 5
    with pytest.raises(ValueError, match=r"the prompt holds . image tokens, and its pictures sho"):
        seen_pictures(adapter, model, prompt)
    model.config.model_type = "another"
    with pytest.raises(ValueError, match=f"models of type 'another' do not say.*{kind}"):
        seen_pictures(adapter, model, prompt)
