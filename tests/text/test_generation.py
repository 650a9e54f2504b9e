"""Sampling: every prompt is read once, and every answer is what it would be on its own."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor
from transformers import (
    FalconH1Config,
    FalconH1ForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    Lfm2Config,
    Lfm2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)
from transformers.cache_utils import DynamicLayer

from mmalign.text import generation
from mmalign.text.cache import Decoding, RoomyLayer
from mmalign.text.generation import Sampling, generate
from mmalign.text.rows import left_padded, positions_of
from mmalign.tokens import inverse_cdf_sample, narrowed, step_logits

VOCABULARY = 60
COMMON = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 96,
    "initializer_range": 0.3, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip


def _gpt2() -> PreTrainedModel:
    """Absolute positions."""
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=VOCABULARY, n_positions=96, n_embd=32, n_layer=2, n_head=2,
            initializer_range=0.3, bos_token_id=1, eos_token_id=2,
        )
    )  # fmt: skip


def _qwen2() -> PreTrainedModel:
    """A layer that sees everything, and one that sees five tokens: fewer than the prompts have."""
    return Qwen2ForCausalLM(
        Qwen2Config(**COMMON, use_sliding_window=True, sliding_window=5, max_window_layers=1)
    )


def _gemma2() -> PreTrainedModel:
    """Windows in every other layer, and capped logits."""
    return Gemma2ForCausalLM(
        Gemma2Config(**COMMON, head_dim=16, sliding_window=5, query_pre_attn_scalar=16)
    )


def _falcon_h1() -> PreTrainedModel:
    """Recurrent states beside keys and values in every layer."""
    mamba = {"mamba_d_ssm": 32, "mamba_n_heads": 2, "mamba_d_head": 16, "mamba_d_state": 8}
    return FalconH1ForCausalLM(FalconH1Config(**COMMON, **mamba, mamba_chunk_size=4))


MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**COMMON)),
    "gpt2": _gpt2,
    "qwen2": _qwen2,
    "gemma2": _gemma2,
    "lfm2": lambda: Lfm2ForCausalLM(Lfm2Config(**COMMON, layer_types=["conv", "full_attention"])),
    "falcon_h1": _falcon_h1,
}
LENGTHS = (9, 4, 13)
GROUP, STEPS = 3, 10
# Six of sixty ids end an answer, so that answers of many lengths come.
SAMPLING = Sampling(
    temperature=0.8, max_new_tokens=STEPS, stop_ids=tuple(range(2, 8)), banned=(11,)
)


def build(name: str) -> PreTrainedModel:
    torch.manual_seed(1)
    return MODELS[name]().eval()


def prompts() -> list[Tensor]:
    draw = torch.Generator().manual_seed(0)
    return [torch.randint(12, VOCABULARY, (n,), generator=draw) for n in LENGTHS]


def inputs_of(ids: list[Tensor]) -> dict[str, Tensor]:
    mask = left_padded([torch.ones_like(row) for row in ids])
    return {"input_ids": left_padded(ids), "attention_mask": mask}


def uniforms(rows: int = GROUP * len(LENGTHS), steps: int = STEPS) -> Tensor:
    return torch.rand(rows, steps, generator=torch.Generator().manual_seed(3))


@torch.no_grad()
def longhand(model: PreTrainedModel, prompt: Tensor, numbers: Tensor) -> tuple[list[int], Tensor]:
    """One answer on its own: no cache, no padding, the whole row again for every token."""
    row, found, log_probs = prompt.tolist(), [], []
    for number in numbers:
        logits = model(input_ids=torch.tensor([row]), use_cache=False).logits[:, -1]
        logits = step_logits(logits, temperature=0.8, banned=(11,))
        token = int(inverse_cdf_sample(logits.softmax(-1), number[None]))
        log_probs.append(logits.log_softmax(-1)[0, token])
        found.append(token)
        row.append(token)
        if token in SAMPLING.stop_ids:
            break
    return found, torch.stack(log_probs)


@pytest.mark.parametrize("name", MODELS)
def test_every_answer_is_what_it_is_on_its_own(name: str) -> None:
    """Nine rows of three ragged prompts, that end at many lengths and are taken out on the way."""
    model, ids, numbers = build(name), prompts(), uniforms()
    drawn = generate(model, inputs_of(ids), numbers, SAMPLING)
    lengths = drawn.mask.sum(1).tolist()
    assert len(set(lengths)) > 1 and drawn.log_probs.dtype == torch.float32
    for row, length in enumerate(lengths):
        tokens, log_probs = longhand(model, ids[row // GROUP], numbers[row])
        assert drawn.tokens[row, :length].tolist() == tokens
        torch.testing.assert_close(drawn.log_probs[row, :length], log_probs, atol=5e-5, rtol=0)
    assert bool((drawn.tokens[~drawn.mask] == 0).all())
    assert bool((drawn.log_probs[~drawn.mask] == 0).all())


@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen2", "gemma2"])
def test_the_likeliest_tokens_are_those_of_transformers(name: str) -> None:
    """At temperature 1e-4, against transformers' own greedy generation of the same prompts."""
    model, ids = build(name), prompts()
    inputs = inputs_of(ids)
    cold = Sampling(temperature=1e-4, max_new_tokens=STEPS, stop_ids=(2,))
    drawn = generate(model, inputs, uniforms(len(ids)), cold)
    expected = model.generate(
        **inputs, do_sample=False, max_new_tokens=STEPS, eos_token_id=2, pad_token_id=0
    )[:, inputs["input_ids"].shape[1] :]
    assert torch.equal(drawn.tokens, expected)


def test_log_probs_are_those_of_what_was_drawn_from() -> None:
    """One token left: certain, 0 nats, the likeliest. Two left: the likelier has at least 1/2."""
    model, inputs = build("llama"), inputs_of(prompts())
    greedy = generate(model, inputs, uniforms(), SAMPLING, narrow=partial(narrowed, top_k=1))
    cold = Sampling(
        temperature=1e-4, max_new_tokens=STEPS, stop_ids=(2, *range(3, 8)), banned=(11,)
    )
    assert torch.equal(greedy.tokens, generate(model, inputs, uniforms(), cold).tokens)
    assert bool((greedy.log_probs == 0).all())
    two = generate(model, inputs, uniforms(), SAMPLING, narrow=partial(narrowed, top_k=2))
    all_of_it = generate(model, inputs, uniforms(), SAMPLING)
    first = two.tokens[:, 0] == greedy.tokens[:, 0]
    assert 0 < int(first.sum()) < len(first)
    chance = two.log_probs[:, 0].exp()
    assert bool((chance[first] >= 0.5).all()) and bool((chance[~first] <= 0.5).all())
    same = two.tokens[:, 0] == all_of_it.tokens[:, 0]
    assert bool((two.log_probs[same, 0] > all_of_it.log_probs[same, 0]).all()) and bool(same.any())


def test_answers_can_be_over_before_their_stop_id() -> None:
    """After an even token in the third place or later: the same tokens, up to there."""
    model, inputs = build("llama"), inputs_of(prompts())

    def over(answers: Tensor, tokens: Tensor) -> Tensor:
        assert len(answers) == len(tokens) and len(set(answers.tolist())) == len(answers)
        return (tokens[:, -1] % 2 == 0) & (tokens.shape[1] > 2)

    free = generate(model, inputs, uniforms(), SAMPLING)
    cut = generate(model, inputs, uniforms(), SAMPLING, over=over)
    for row, length in enumerate(free.mask.sum(1).tolist()):
        tokens = free.tokens[row, :length].tolist()
        end = next((i + 1 for i in range(2, length) if tokens[i] % 2 == 0), length)
        assert cut.tokens[row][cut.mask[row]].tolist() == tokens[:end]
    assert int(cut.mask.sum()) < int(free.mask.sum())


def test_a_prompt_is_read_once_and_ended_rows_are_no_longer_read() -> None:
    """Positions that pass the first layer: P * L of the prompts, then one for each row there is.

    Rows leave after their first token at once, later as soon as they are a quarter of the rest.
    """
    model, ids, numbers = build("llama"), prompts(), uniforms()
    seen: list[tuple[int, int]] = []
    model.model.layers[0].register_forward_pre_hook(
        lambda _, args: seen.append(tuple(args[0].shape[:2]))
    )
    drawn = generate(model, inputs_of(ids), numbers, SAMPLING)
    lengths = drawn.mask.sum(1)
    assert seen[0] == (len(ids), max(LENGTHS))
    present, expected = len(lengths), []
    for step in range(1, int(lengths.max())):
        running = int((lengths > step).sum())
        if step == 1 or running <= 0.75 * present:
            present = running
        expected.append((present, 1))
    assert seen[1:] == expected
    assert expected[0][0] > expected[-1][0]


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_taking_rows_out_changes_no_answer(share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Taken out after every step, or only once all of them have ended."""
    model, inputs, numbers = build("qwen2"), inputs_of(prompts()), uniforms()
    usual = generate(model, inputs, numbers, SAMPLING)
    monkeypatch.setattr(generation, "ENDED_SHARE", share)
    other = generate(model, inputs, numbers, SAMPLING)
    assert torch.equal(other.tokens, usual.tokens) and torch.equal(other.mask, usual.mask)
    torch.testing.assert_close(other.log_probs, usual.log_probs, atol=1e-5, rtol=0)


def test_an_answer_depends_on_neither_group_nor_batch() -> None:
    """Prompt 1 alone, once and three times, draws what it draws among longer prompts."""
    model, ids, numbers = build("llama"), prompts(), uniforms()
    together = generate(model, inputs_of(ids), numbers, SAMPLING)
    for rows in (slice(GROUP, GROUP + 1), slice(GROUP, 2 * GROUP)):
        alone = generate(model, inputs_of(ids[1:2]), numbers[rows], SAMPLING)
        width = alone.tokens.shape[1]
        assert torch.equal(alone.tokens, together.tokens[rows, :width])
        torch.testing.assert_close(
            alone.log_probs, together.log_probs[rows, :width], atol=1e-5, rtol=0
        )


def test_embeddings_and_positions_of_the_caller() -> None:
    """Embeddings stand for ids; positions that leave a gap go on behind their largest."""
    model, ids, numbers = build("llama"), prompts()[:1], uniforms(2)
    inputs = inputs_of(ids)
    embedded = {
        "inputs_embeds": model.get_input_embeddings()(inputs["input_ids"]).detach(),
        "attention_mask": inputs["attention_mask"],
    }
    plain = generate(model, inputs, numbers, SAMPLING)
    assert torch.equal(generate(model, embedded, numbers, SAMPLING).tokens, plain.tokens)
    positions = positions_of(inputs["attention_mask"])
    positions[:, 4:] += 7
    seen: list[Tensor] = []
    model.model.rotary_emb.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs["position_ids"]), with_kwargs=True
    )
    generate(model, {**inputs, "position_ids": positions}, numbers, SAMPLING)
    assert torch.equal(seen[0], positions)
    assert [int(p[0, 0]) for p in seen[1:]] == list(range(16, 16 + len(seen) - 1))


def test_positions_of_several_axes_go_on_alike_on_all_of_them() -> None:
    """(0, 0, 0), (1, 1, 1), then a picture up to (1, 4, 2): the next token is at 5 on each axis."""
    positions = torch.tensor([[[0, 1, 1]], [[0, 1, 4]], [[0, 1, 2]]])
    rows = Decoding.of(
        build("llama"), attention_mask=torch.ones(1, 3, dtype=torch.int64), position_ids=positions
    )
    assert rows.step()["position_ids"].tolist() == [[[5]], [[5]], [[5]]]
    assert rows.step()["position_ids"].tolist() == [[[6]], [[6]], [[6]]]
    assert rows.attention_mask.tolist() == [[1, 1, 1, 1, 1]]


def test_most_answers_cut_is_said() -> None:
    """32 answers that cannot end."""
    model, inputs = build("llama"), inputs_of(prompts()[:1])
    endless = Sampling(temperature=1.0, max_new_tokens=2, stop_ids=(2,), banned=(2,))
    with pytest.warns(UserWarning, match="32 of 32 sampled answers were cut at max_new_tokens=2"):
        generate(model, inputs, uniforms(32, 2), endless)


@pytest.mark.filterwarnings("error")
def test_few_cut_answers_are_not_spoken_of() -> None:
    """31 say too little."""
    endless = Sampling(temperature=1.0, max_new_tokens=2, stop_ids=(2,), banned=(2,))
    generate(build("llama"), inputs_of(prompts()[:1]), uniforms(31, 2), endless)


def test_a_model_without_keys_and_values_is_refused() -> None:
    config = MambaConfig(vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=1, state_size=4)
    with pytest.raises(ValueError, match="MambaForCausalLM keeps no cache of keys and values"):
        generate(MambaForCausalLM(config), inputs_of(prompts()), uniforms(), SAMPLING)


def test_a_roomy_layer_holds_what_a_plain_one_holds() -> None:
    """A prompt, rows repeated and dropped, then forty tokens: more than there is room for."""
    torch.manual_seed(0)
    roomy, plain = RoomyLayer(), DynamicLayer()

    def both(rows: int, tokens: int) -> None:
        new = torch.randn(2, rows, 2, tokens, 4)
        found, expected = roomy.update(*new), plain.update(*new)
        for a, b in zip(found, expected, strict=True):
            assert torch.equal(a, b)
        assert roomy.get_seq_length() == plain.get_seq_length()

    both(2, 5)
    for rows in (torch.tensor([0, 0, 0, 1, 1, 1]), torch.tensor([5, 1, 2])):
        for layer in (roomy, plain):
            layer.reorder_cache(rows)
        for _ in range(20):
            both(len(rows), 1)


def test_a_step_writes_into_the_room() -> None:
    """Sixteen tokens behind a prompt of eight need no new place; nothing is copied."""
    layer = RoomyLayer()
    layer.update(*torch.zeros(2, 1, 1, 8, 2))
    layer.reorder_cache(torch.tensor([0, 0, 0]))
    where = layer.keys.data_ptr()
    for _ in range(16):
        layer.update(*torch.ones(2, 3, 1, 1, 2))
    assert layer.keys.data_ptr() == where and layer.keys.shape == (3, 1, 24, 2)
    assert layer.keys[:, :, :8].sum() == 0 and layer.keys[:, :, 8:].sum() == 3 * 16 * 2
