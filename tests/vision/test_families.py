"""What differs between families of vision-language models, and what no family may do."""

import copy
import logging
import re
import runpy
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

from mmalign import lora
from mmalign.data.frames import clip_prompt
from mmalign.lora import LoRA
from mmalign.text.shared import shares_prompts
from mmalign.types import Prompt
from mmalign.vision.families import FAMILIES as KNOWN
from mmalign.vision.families import family_of, pictures_of
from mmalign.vision.features import decoder_inputs, features_of, model_inputs
from mmalign.vision.lvlm_policy import linear_layers, vision_tower
from tests.vision.lvlm_models import FAMILIES, TinyLVLM, adapter_of, generators

ROOT = Path(__file__).resolve().parents[2]
RED, BLUE = (255, 0, 0), (0, 0, 255)
MARKS = {
    "qwen2_vl": ("<|vision_start|>", "<|vision_end|>"),
    "qwen2_5_vl": ("<|vision_start|>", "<|vision_end|>"),
    "qwen3_vl": ("<|vision_start|>", "<|vision_end|>"),
    "internvl": ("<img>", "</img>"),
    "idefics3": ("<fake_token_around_image>", "<global-img>", "<row_1_col_2>", "<row_2_col_1>"),
    "smolvlm": ("<fake_token_around_image>", "<global-img>", "<row_1_col_2>", "<row_2_col_1>"),
    "gemma3": ("<start_of_image>", "<end_of_image>"),
}
"""What processors write around a picture."""


def asked(*colours, size=(24, 16)):
    parts = [*[{"type": "image"}] * len(colours), {"type": "text", "text": "describe the picture"}]
    pictures = tuple(Image.new("RGB", size, colour) for colour in colours)
    return Prompt(content=({"role": "user", "content": parts},), images=pictures)


@pytest.fixture(params=sorted(FAMILIES))
def family(request):
    return FAMILIES[request.param]()


def test_every_known_family_runs_in_these_tests():
    """So the table's "yes" is what `test_lvlm`, `test_features` and `test_spans` show."""
    assert set(FAMILIES) == set(KNOWN)


def test_the_table_of_the_guide_is_what_the_code_says():
    """`python docs/families.py` writes it."""
    written = runpy.run_path(str(ROOT / "docs" / "families.py"))
    guide = (ROOT / "docs" / "guides" / "models.md").read_text("utf-8")
    assert f"{written['START']}\n{written['table']()}\n{written['END']}" in guide


class TestLoRA:
    """``all-linear`` means the language model."""

    def test_targets_are_all_linear_layers_of_the_decoder_and_no_other(self, family):
        model, _ = family
        pattern = linear_layers(model, [model.get_decoder()])
        below = {id(module) for module in model.get_decoder().modules()}
        for name, module in model.named_modules():
            if isinstance(module, nn.Linear):
                assert bool(re.fullmatch(pattern, name)) == (id(module) in below), name

    def test_everything_else_stays(self, family):
        """Tower, projector and newline vectors get no gradient, and no LoRA."""
        model, processor = family
        lora.attach(model, LoRA(rank=2), targets=linear_layers(model, [model.get_decoder()]))
        moving = {name for name, p in model.named_parameters() if p.requires_grad}
        assert moving and all(".lora_" in name for name in moving)
        decoder = {id(p) for p in model.get_decoder().parameters()}
        assert all(id(p) in decoder for p in model.parameters() if p.requires_grad)
        adapter = adapter_of(model, processor)
        trajectory = adapter.encode([asked(RED)], [["one", "two"]], generators=[])
        adapter.scores(model, trajectory).log_probs.sum().backward()
        assert all(p.grad is None for p in vision_tower(model).parameters())

    def test_the_saved_config_is_short(self, family):
        """One pattern for the same layer of all blocks: seven layers a block of a decoder."""
        model, _ = family
        assert len(linear_layers(model, [model.get_decoder()]).split("|")) == 7


class TestTokens:
    """What of a picture stands in ids."""

    def test_marks_are_part_of_the_prompt(self, family):
        model, processor = family
        (ids,) = adapter_of(model, processor).static_of([asked(RED, BLUE)])["prompt_ids"]
        marks = MARKS.get(model.config.model_type, ())
        written = processor.tokenizer.convert_ids_to_tokens(ids)
        assert all(mark in written for mark in marks)

    def test_image_tokens_and_their_place_mark_are_banned(self, family):
        model, processor = family
        banned = adapter_of(model, processor).sampling.banned
        place = processor.tokenizer.convert_tokens_to_ids(processor.image_token)
        assert {model.config.image_token_id, place} <= set(banned)

    def test_an_answer_with_a_place_mark_is_refused(self, family):
        model, processor = family
        answer = f"one {processor.image_token} two"
        with pytest.raises(ValueError, match="row 0: an answer must not contain image tokens"):
            adapter_of(model, processor).encode([asked(RED)], [[answer]], generators=[])

    def test_a_clip_is_its_frames(self, family):
        """Scored as any prompt with several pictures; another frame is another log-prob."""
        model, processor = family
        adapter = adapter_of(model, processor)
        clips = [
            [Image.new("RGB", (16, 16), colour) for colour in colours]
            for colours in ((RED, RED, BLUE), (RED, BLUE, BLUE))
        ]
        prompts = [clip_prompt(clip, "describe the picture") for clip in clips]
        scores = adapter.scores(
            model, adapter.encode(prompts, [["one two"], ["one two"]], generators=[])
        ).log_probs
        assert (scores[0] - scores[1]).abs().max() > 1e-3


class TestSharing:
    """Whether a shared prompt runs once, and what the log says."""

    def test_shared_where_exact_and_said_once_where_not(self, family, caplog):
        model, processor = family
        with caplog.at_level(logging.WARNING):
            adapter = adapter_of(model, processor, share_prompts=True)
            trajectory = adapter.encode([asked(RED)], [["one", "two"]], generators=[])
            for _ in range(2):
                adapter.scores(model, trajectory)
            adapter.sample(model, [asked(RED)], group_size=2, generators=generators(1))
        said = [r for r in caplog.records if "prompts are repeated for each answer" in r.message]
        assert shares_prompts(model.get_decoder()) == (not said)
        assert len(said) == KNOWN[model.config.model_type].blocks

    def test_the_tokens_of_a_gemma_picture_see_each_other(self):
        """A change in a picture's last token moves its first; without blocks it does not."""
        model, processor = FAMILIES["gemma3"]()
        adapter = adapter_of(model, processor)
        static = adapter.static_of([asked(RED)])
        ids, kinds = static["prompt_ids"][0], static["per_token"][0]["token_type_ids"]
        first, *_, last = (ids == model.config.image_token_id).nonzero().squeeze(1).tolist()
        inputs = adapter.prefill(model, static)
        assert torch.equal(inputs["token_type_ids"][0], kinds)
        moved = inputs["inputs_embeds"].clone()
        moved[0, last] += 1

        def states(embeddings, **more):
            return model.base_model(inputs_embeds=embeddings, **more).last_hidden_state[0, first]

        with torch.no_grad():
            seeing = {"token_type_ids": inputs["token_type_ids"]}
            assert not torch.allclose(
                states(inputs["inputs_embeds"], **seeing), states(moved, **seeing)
            )
            assert torch.equal(states(inputs["inputs_embeds"]), states(moved))


class TestDeepstack:
    """Qwen3-VL's later features."""

    @pytest.fixture
    def read(self):
        model, processor = FAMILIES["qwen3_vl"]()
        adapter = adapter_of(model, processor)
        static = adapter.static_of([asked(RED), asked()])
        features = features_of(
            model,
            static["per_image"],
            static["image_keys"],
            family=adapter.family,
            cache=adapter.features,
        )
        return model, adapter, static, features

    def test_features_are_those_of_the_model(self, read):
        """First what its decoder embeds, then what its first layer adds."""
        model, _, static, features = read
        found = model.get_image_features(**static["per_image"][0])
        expected = torch.cat([found.pooler_output[0], found.deepstack_features[0][0]], -1)
        torch.testing.assert_close(features[0], expected)
        assert not torch.allclose(expected[:, :32], expected[:, 32:])

    def test_they_move_what_is_read(self, read):
        model, adapter, static, features = read
        ids = static["prompt_ids"][0].unsqueeze(0)
        inputs = decoder_inputs(model, ids, features[:1], family=adapter.family)
        assert inputs["visual_pos_masks"].sum() == len(features[0])
        plain = {"inputs_embeds": inputs["inputs_embeds"]}
        decoder = model.get_decoder()
        with torch.no_grad():
            with_them, without = (decoder(**i).last_hidden_state for i in (inputs, plain))
        assert not torch.allclose(with_them, without, atol=1e-3)

    def test_rows_without_a_picture_have_none(self, read):
        model, adapter, static, features = read
        ids = static["prompt_ids"][1].unsqueeze(0)
        for inputs in (decoder_inputs, model_inputs):
            found = inputs(model, ids, features[1:], family=adapter.family)
            assert set(found) == {"inputs_embeds"}

    def test_an_older_transformers_is_told(self, read, caplog):
        """Its forward takes no features, so the model reads pictures itself."""
        model = copy.copy(read[0])
        model.forward = lambda input_ids=None, attention_mask=None: None
        with caplog.at_level(logging.WARNING):
            assert family_of(model) is None
        assert "Qwen3VLForConditionalGeneration: pictures and prompts are read anew" in caplog.text
        assert "mm_encoder_outputs" in caplog.text


class TestPictures:
    """What goes through the tower by itself."""

    @pytest.mark.parametrize(
        ("name", "expected"),
        [
            ("llava", 2), ("llava_next", 2), ("llava_onevision", 2), ("qwen3_vl", 2),
            # Two tiles and the whole, twice; 2 x 2 tiles and the whole, twice.
            ("internvl", 6), ("idefics3", 10), ("gemma3", 2),
        ],
    )  # fmt: skip
    def test_by_hand(self, name, expected):
        model, processor = FAMILIES[name]()
        adapter = adapter_of(model, processor)
        static = adapter.static_of([asked(RED, BLUE)])
        found = pictures_of(static["per_image"][0], adapter.family)
        assert len(found) == expected == len(static["image_keys"][0])

    def test_one_of_several_is_told_from_one_alone(self):
        """LLaVA-OneVision reads the first in one square, the second in three."""
        model, processor = FAMILIES["llava_onevision"]()
        adapter = adapter_of(model, processor)
        static = adapter.static_of([asked(RED, RED), asked(RED), asked(RED, BLUE, RED)])
        several, alone, more = static["image_keys"]
        assert several[0] == several[1] == more[0] == more[2] != alone[0]


def test_a_config_loads_a_family():
    """With one line of settings; what is sampled is scored."""
    policy = TinyLVLM(family="smolvlm", lora=LoRA(rank=2)).load()
    trajectory = policy.sample([asked(RED), asked()], group_size=2, generators=generators(2))
    scores = policy.scores(trajectory).log_probs
    torch.testing.assert_close(scores.detach(), trajectory.log_probs, atol=1e-4, rtol=0)
