"""The attention of one layer, against transformers' own eager attention, and perplexity."""

import copy
import math

import pytest
import torch
from PIL import Image

from mmalign.policy import Policy
from mmalign.types import Prompt
from mmalign.vision.completing import continued
from mmalign.vision.lvlm_inputs import image_inputs
from mmalign.vision.mia.attention import NAME, layer_at, look, row_weights
from mmalign.vision.mia.composing import sequence_parts
from mmalign.vision.mia.wording import Wording
from mmalign.vision.spans import BOXES
from tests.vision.lvlm_models import FAMILIES, adapter_of

WORDS = Wording(name="picture {number}", label="{name}", after="", numbers=("one", "two", "three"))
ANSWER = torch.tensor([20, 31, 44, 27, 2])


def sequence() -> Prompt:
    """Two pictures of different sizes, and a question."""
    content = [*sequence_parts(2, WORDS), {"type": "text", "text": "in picture two , what ?"}]
    pictures = (Image.new("RGB", (16, 16), "red"), Image.new("RGB", (24, 16), "blue"))
    return Prompt(content=({"role": "user", "content": content},), images=pictures)


def eager(model, adapter, prompt: Prompt) -> tuple[torch.Tensor, torch.Tensor]:
    """``[layers, H, N, N]`` attention and ``[N, V]`` logits of transformers' own eager forward."""
    reference = copy.deepcopy(model)
    reference.set_attn_implementation("eager")
    assert reference.get_decoder().config._attn_implementation == "eager"
    static = continued(adapter.static_of([prompt]), [ANSWER[:-1].tolist()])
    ids = static["prompt_ids"][0].unsqueeze(0)
    per_token = {key: value.unsqueeze(0) for key, value in static["per_token"][0].items()}
    with torch.no_grad():
        output = reference(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            **per_token,
            **image_inputs(static["per_image"]),
            output_attentions=True,
        )
    assert len(output.attentions) == model.get_decoder().config.num_hidden_layers
    return torch.cat(output.attentions), output.logits[0]


@pytest.mark.parametrize("name", sorted(FAMILIES.keys() & BOXES.keys()))
@pytest.mark.parametrize("depth", [0.0, 0.5])
def test_equals_eager_attention(name, depth):
    """Mean over heads, and over the rows of all answer tokens that have written another one."""
    torch.manual_seed(0)
    model, processor = FAMILIES[name]()
    config = model.get_decoder().config
    assert config.num_key_value_heads < config.num_attention_heads
    adapter = adapter_of(model, processor)
    kernel = config._attn_implementation
    found = look(Policy(adapter=adapter, model=model), sequence(), ANSWER, depth=depth)
    attention, _ = eager(model, adapter, sequence())
    length = len(found.attention)
    rows = attention[layer_at(depth, 2), :, length:, :length]
    assert rows.shape[1] == len(ANSWER) - 1
    torch.testing.assert_close(found.attention, rows.mean((0, 1)), rtol=1e-4, atol=1e-6)
    assert config._attn_implementation == kernel != NAME


@pytest.mark.parametrize("name", ["llava", "qwen2_vl"])
@pytest.mark.parametrize("setting", ["packed", "eager", "plain"])
def test_however_the_model_attends(name, setting):
    """The same through a packed row, a model of eager attention, and an unknown family."""
    torch.manual_seed(0)
    model, processor = FAMILIES[name]()
    expected = look(
        Policy(adapter=adapter_of(model, processor, share_prompts=False), model=model),
        sequence(),
        ANSWER,
        depth=0.5,
    )
    if setting == "eager":
        model.set_attn_implementation("eager")
    adapter = adapter_of(
        model,
        processor,
        share_prompts={"packed": True, "eager": False, "plain": None}[setting],
        plain=setting == "plain",
    )
    before = model.get_decoder().config._attn_implementation
    found = look(Policy(adapter=adapter, model=model), sequence(), ANSWER, depth=0.5)
    torch.testing.assert_close(found.attention, expected.attention, rtol=1e-4, atol=1e-6)
    assert found.perplexity == pytest.approx(expected.perplexity, rel=1e-4)
    assert model.get_decoder().config._attn_implementation == before


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_perplexity_is_at_temperature_one(temperature):
    """exp of minus the mean log-prob of all five tokens, image tokens never being drawn."""
    torch.manual_seed(0)
    model, processor = FAMILIES["llava"]()
    adapter = adapter_of(model, processor, temperature=temperature)
    found = look(Policy(adapter=adapter, model=model), sequence(), ANSWER, depth=0.5)
    _, logits = eager(model, adapter, sequence())
    logits[:, list(adapter.sampling.banned)] = -math.inf
    written = logits[len(found.attention) - 1 :].log_softmax(-1)
    mean = written.gather(1, ANSWER.unsqueeze(1)).mean()
    assert found.perplexity == pytest.approx(math.exp(-mean), rel=1e-4)


def test_pictures_and_their_tokens():
    torch.manual_seed(0)
    model, processor = FAMILIES["qwen2_vl"]()
    policy = Policy(adapter=adapter_of(model, processor), model=model)
    found = look(policy, sequence(), ANSWER, depth=0.5)
    # 2 x 2 and 2 x 3 tokens of 8 x 8 pixels.
    assert [len(seen.places) for seen in found.pictures] == [4, 6]
    on = found.on(found.pictures[1])
    torch.testing.assert_close(on, found.attention[found.pictures[1].places])


def test_the_kernel_is_restored_after_an_error(monkeypatch):
    model, processor = FAMILIES["llava"]()
    adapter = adapter_of(model, processor)
    kernel = model.get_decoder().config._attn_implementation
    wrong = Prompt(content="in picture one , what ?", images=())
    monkeypatch.setattr(type(adapter), "scores", lambda *args, **kwargs: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        look(Policy(adapter=adapter, model=model), wrong, ANSWER, depth=0.5)
    assert model.get_decoder().config._attn_implementation == kernel


def test_layers():
    """Number 16 of 32, 2 of 4, and the ends."""
    assert [layer_at(0.5, 32), layer_at(0.5, 4), layer_at(0.0, 32), layer_at(1.0, 32)] == [
        16, 2, 0, 31,
    ]  # fmt: skip


def test_rows_by_hand():
    """Keys (0) and (log 3), query 1 in the last of two positions: weights 1 / 4 and 3 / 4; the
    first position sees itself alone. Two heads share the one key.
    """
    key = torch.tensor([[[0.0], [math.log(3)]]])
    query = torch.ones(2, 2, 1)
    found = row_weights(query, key, first_row=0, scaling=1.0)
    expected = torch.tensor([[1.0, 0.0], [0.25, 0.75]])
    torch.testing.assert_close(found, expected.expand(2, 2, 2))
    # A window of one position: itself.
    windowed = row_weights(query, key, first_row=1, scaling=1.0, window=1)
    torch.testing.assert_close(windowed, torch.tensor([[[0.0, 1.0]]]).expand(2, 1, 2))
