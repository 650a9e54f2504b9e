"""Packed rows, in which a shared prompt stands once, against rows side by side."""

import copy
import logging

import pytest
import torch
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from mmalign import lora
from mmalign.text import CausalAdapter, Sampling, shared
from mmalign.text.packing import counted, packed, side_by_side
from mmalign.text.policy import checkpoint_activations
from mmalign.text.shared import share_prompts, shares_prompts, worth_sharing
from mmalign.types import Trajectory

SIZES = {
    "vocab_size": 99,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 96,
    "initializer_range": 0.2,
}
WINDOW = 5
ABLE = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SIZES)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SIZES, head_dim=8)),
    # Shorter than prompts and answers together: both masks are cut by the window.
    "mistral, window": lambda: MistralForCausalLM(MistralConfig(**SIZES, sliding_window=WINDOW)),
    "qwen2, window in one layer": lambda: Qwen2ForCausalLM(
        Qwen2Config(**SIZES, use_sliding_window=True, sliding_window=WINDOW, max_window_layers=1)
    ),
    "mixtral": lambda: MixtralForCausalLM(MixtralConfig(**SIZES, num_local_experts=2)),
    "gpt2, absolute positions": lambda: GPT2LMHeadModel(
        GPT2Config(vocab_size=99, n_embd=32, n_layer=2, n_head=2, initializer_range=0.2)
    ),
    "opt, shifted positions": lambda: OPTForCausalLM(
        OPTConfig(
            vocab_size=99,
            hidden_size=32,
            word_embed_proj_dim=32,
            ffn_dim=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=96,
        )
    ),
}
UNABLE = {
    "bloom": (
        lambda: BloomForCausalLM(BloomConfig(vocab_size=99, hidden_size=32, n_layer=2, n_head=4)),
        "cannot be replaced",
    ),
    "mamba": (
        lambda: MambaForCausalLM(
            MambaConfig(vocab_size=99, hidden_size=32, num_hidden_layers=2, state_size=4)
        ),
        "cannot be replaced",
    ),
    "gemma2": (
        lambda: Gemma2ForCausalLM(Gemma2Config(**SIZES, head_dim=8)),
        "attends by 'eager'",
    ),
}


def made(name: str) -> PreTrainedModel:
    torch.manual_seed(0)
    return ABLE[name]().eval()


@pytest.fixture
def trajectory() -> Trajectory:
    """Six answers of unequal length to three unequal prompts; one token between is not scored."""
    torch.manual_seed(1)
    mask = torch.arange(6) < torch.tensor([6, 2, 1, 4, 5, 3]).unsqueeze(1)
    tokens = torch.where(mask, torch.randint(3, 99, (6, 6)), 0)
    mask[4, 2] = False
    return Trajectory(
        mask=mask,
        prompt_of=torch.tensor([0, 0, 1, 2, 2, 2]),
        static={"prompt_ids": [torch.randint(3, 99, (n,)) for n in (7, 3, 12)]},
        stepwise={"token": tokens},
        outputs=[None] * 6,
    )


def adapter(share: bool | None, temperature: float = 0.7) -> CausalAdapter:
    settings = Sampling(temperature=temperature, max_new_tokens=6, stop_ids=(2,))
    return CausalAdapter(
        tokenizer=None,  # type: ignore[arg-type]  # Ids are given; nothing is tokenised.
        sampling=settings,
        feature_size=32,
        share_prompts=share,
    )


def scores_and_gradients(model, trajectory, share, want=frozenset(), against=None):
    """Every score, and the gradient of a weighted sum of them, by name of the parameter."""
    model.zero_grad()
    scores = adapter(share).scores(model, trajectory, want=want, against=against)
    fields = {
        k: v for k in scores.__slots__ if (v := getattr(scores, k)) is not None and k != "features"
    }
    total = sum((v * torch.linspace(-1, 1, v.numel()).view_as(v)).sum() for v in fields.values())
    total.backward()
    gradients = {k: p.grad.clone() for k, p in model.named_parameters() if p.grad is not None}
    return {k: v.detach() for k, v in fields.items()}, gradients


def assert_same(packed_run, plain_run):
    """Within 1e-5 relative to the largest entry of all scores, and of all gradients."""
    for one, other in zip(packed_run, plain_run, strict=True):
        assert one.keys() == other.keys() and one
        largest = max(float(v.abs().max()) for v in other.values())
        assert largest > 0
        for key in one:
            assert float((one[key] - other[key]).abs().max()) <= 1e-5 * largest, key


@pytest.mark.parametrize("name", sorted(ABLE))
def test_packed_is_side_by_side(name, trajectory):
    """Log-probs, entropy and every gradient, full fine-tuning."""
    model = made(name)
    assert share_prompts(model.get_decoder())
    want = frozenset({"entropy"})
    assert_same(
        scores_and_gradients(model, trajectory, True, want),
        scores_and_gradients(model, trajectory, False, want),
    )


@pytest.mark.parametrize("checkpointed", [False, True])
def test_with_a_lora_and_with_recomputed_activations(trajectory, checkpointed):
    """The layout reaches the layers again when the backward pass recomputes them."""
    model = made("llama")
    lora.attach(model, lora.LoRA(rank=4, alpha=8))
    for key, parameter in model.named_parameters():
        if "lora_B" in key:
            torch.nn.init.normal_(parameter, std=0.1)
    if checkpointed:
        checkpoint_activations(model)
    share_prompts(model.get_decoder())
    runs = [scores_and_gradients(model, trajectory, share) for share in (True, False)]
    assert all("lora_" in key for key in runs[0][1])
    assert_same(*runs)


def test_exact_kl_to_a_reference(trajectory):
    """Policy and reference both read packed rows; the KL of a model to itself is 0."""
    model = made("qwen2")
    share_prompts(model.get_decoder())
    itself = copy.deepcopy(model)
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.lm_head.weight.mul_(1.1)
    want = frozenset({"kl"})
    same, _ = scores_and_gradients(model, trajectory, True, want, itself)
    assert same["kl"].abs().max() < 1e-6
    assert_same(
        scores_and_gradients(model, trajectory, True, want, other),
        scores_and_gradients(model, trajectory, False, want, other),
    )


@pytest.mark.parametrize("name", ["llama", "mistral, window", "gpt2, absolute positions"])
def test_an_answer_sees_no_other_answer(name, trajectory):
    """Another second answer of a prompt changes no number, and no gradient, of the first."""
    model = made(name)
    share_prompts(model.get_decoder())
    tokens = trajectory.stepwise["token"].clone()
    tokens[1, :2] = torch.tensor([50, 51])
    tokens[3, :4] = torch.tensor([60, 61, 62, 63])
    edited = Trajectory(
        mask=trajectory.mask,
        prompt_of=trajectory.prompt_of,
        static=trajectory.static,
        stepwise={"token": tokens},
        outputs=trajectory.outputs,
    )
    kept = torch.tensor([0, 2, 4, 5])
    found = []
    for one in (trajectory, edited):
        model.zero_grad()
        log_probs = adapter(True).scores(model, one).log_probs
        log_probs[kept].sum().backward()
        weights = model.get_decoder().get_input_embeddings().weight.grad.clone()
        found.append((log_probs.detach(), weights))
    assert torch.equal(found[0][0][kept], found[1][0][kept])
    assert not torch.equal(found[0][0][1], found[1][0][1])
    # The edited tokens are still read by their own rows, which nothing was asked of here.
    torch.testing.assert_close(found[0][1], found[1][1], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", sorted(UNABLE))
def test_models_that_cannot_share_say_so_and_work(name, trajectory, caplog):
    build, reason = UNABLE[name]
    torch.manual_seed(0)
    model = build().eval()
    with caplog.at_level(logging.WARNING):
        assert not share_prompts(model.get_decoder())
    assert reason in caplog.text and "prompts are repeated" in caplog.text
    assert not shares_prompts(model.get_decoder())
    if name != "mamba":  # Its padding is no matter of attention masks.
        scores = adapter(None).scores(model, trajectory).log_probs
        assert (scores[trajectory.mask] < 0).all()


def test_a_lost_layout_is_an_error():
    """A packed row without its layout must never turn into attention to everything."""
    model = made("llama")
    share_prompts(model.get_decoder())
    rows = packed([torch.tensor([3, 4])], counted([torch.tensor([3, 4])]), [0], *_one_answer())
    settings = rows.settings()
    settings.pop("shared_prompt_layout")
    with pytest.raises(AssertionError, match="layout"):
        model.get_decoder()(input_ids=rows.input_ids, **settings)


def _one_answer():
    return torch.tensor([[5, 6]]), torch.ones(1, 2, dtype=torch.bool)


def test_the_packed_row_by_hand():
    """Prompts a b and c; answers x y z and u of the first, v w of the second.

    Last tokens predict nothing and are left out: a b x y | c v. The prompt's last token predicts
    x and u.
    """
    prompts = [torch.tensor([10, 11]), torch.tensor([12])]
    tokens = torch.tensor([[20, 21, 22], [23, 0, 0], [24, 25, 0]])
    mask = torch.tensor([[1, 1, 1], [1, 0, 0], [1, 1, 0]]).bool()
    rows = packed(prompts, counted(prompts), [0, 0, 1], tokens, mask)
    assert rows.input_ids.tolist() == [[10, 11, 20, 21, 12, 24]]
    assert rows.position_ids.tolist() == [[0, 1, 2, 3, 0, 1]]
    assert rows.answer.tolist() == [[False, False, True, True, False, True]]
    assert rows.column.tolist() == [1, 2, 3, 1, 4, 5]
    assert rows.prompts == (0, 1)
    assert [(s.start, s.end, s.answers) for s in rows.layout.segments] == [
        (0, 2, ((2, 4),)),
        (4, 5, ((5, 6),)),
    ]
    assert rows.layout.lengths == [2, 2, 1, 1]
    beside = side_by_side(prompts, counted(prompts), [0, 0, 1], tokens, mask)
    assert beside.input_ids.tolist() == [[10, 11, 20, 21], [10, 11, 23, 0], [0, 12, 24, 25]]
    assert beside.attention_mask.tolist() == [[1, 1, 1, 1], [1, 1, 0, 0], [0, 1, 1, 0]]
    assert beside.position_ids[2, 1:3].tolist() == [0, 1]
    assert list(zip(beside.row.tolist(), beside.column.tolist(), strict=True)) == [
        (0, 1), (0, 2), (0, 3), (1, 1), (2, 1), (2, 2),
    ]  # fmt: skip


def test_positions_with_several_axes_go_on_behind_the_largest():
    """A picture of 2 x 2 after one word: text goes on at 3 on every axis."""
    prompt = torch.arange(5)
    positions = torch.tensor([[0, 1, 1, 1, 1], [0, 1, 1, 2, 2], [0, 1, 2, 1, 2]])
    tokens, mask = torch.tensor([[7, 8, 9]]), torch.ones(1, 3, dtype=torch.bool)
    for lay in (packed, side_by_side):
        rows = lay([prompt], [positions], [0], tokens, mask)
        assert rows.position_ids.shape == (3, 1, 7)
        assert rows.position_ids[:, 0, 5:].tolist() == [[3, 4]] * 3


def test_the_cost_rule():
    """A pair on a long prompt shares; two answers to two prompts of their own have nothing to."""
    assert worth_sharing([256], [0, 0], [64, 64])  # 640 positions against 384.
    assert not worth_sharing([64, 64], [0, 1], [64, 64])  # 256 against 256.
    assert worth_sharing([10, 200], [0, 1], [5, 5])  # Nothing shared, but 410 against 220: padding.


def rows_through(model: PreTrainedModel, trajectory: Trajectory) -> dict[str, int]:
    """How many rows each part of the layers is given when answers are scored, packed."""
    found = {}
    for name, module in model.get_decoder().named_modules():
        if name.endswith(("_proj", "input_layernorm")):
            module.register_forward_hook(
                lambda _, arguments, output, name=name: found.update({name: arguments[0].shape[1]})
            )
    adapter(True).scores(model, trajectory)
    return found


@pytest.mark.parametrize("checkpointed", [False, True])
def test_the_last_layer_leaves_out_what_is_not_read(trajectory, checkpointed):
    """Prompts of 7, 3, 12; answers read 5 + 1, 0, 3 + 4 + 2: 37 rows, of which 22 - 3 are prompt.

    The token that is not scored stands at the third place of an answer, so the second predicts
    nothing: 37 - 19 - 1 = 17 rows are read, also where activations are recomputed.
    """
    model = made("llama")
    if checkpointed:
        checkpoint_activations(model)
    share_prompts(model.get_decoder())
    found = rows_through(copy.deepcopy(model), trajectory)
    for part in ("self_attn.q_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.down_proj"):
        assert (found[f"layers.0.{part}"], found[f"layers.1.{part}"]) == (37, 17), part
    for part in ("self_attn.k_proj", "self_attn.v_proj", "input_layernorm"):
        assert found[f"layers.1.{part}"] == 37, part


def test_a_last_layer_that_would_answer_otherwise_runs_on_every_token(
    trajectory, monkeypatch, caplog
):
    found = iter([None, "it then answers otherwise"])
    monkeypatch.setattr(shared, "_difference", lambda decoder: next(found))
    model = made("llama")
    assert share_prompts(model.get_decoder())
    assert "runs on every token" in caplog.text
    assert set(rows_through(model, trajectory).values()) == {37}
