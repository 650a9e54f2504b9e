import pytest
import torch
from transformers import GenerationConfig

from mmalign.lora import LoRA, attach
from mmalign.text.adapter import CausalAdapter
from mmalign.types import Prompt, Trajectory
from tests.text.conftest import MODELS, adapter_of, bpe, generators, gpt2, llama

ANSWERS = [["one", "two three four"], ["five six"], ["yes", "no yes"]]
EVERYTHING = frozenset({"entropy", "top_k_mass", "top_k_entropy", "features"})


@pytest.fixture(params=sorted(MODELS))
def model(request, words):
    return MODELS[request.param](len(words))


def longhand(model, prompt, answer, temperature=1.0):
    """Log-probs of one row on its own: no padding, no cache, every logit."""
    ids = torch.tensor([[*prompt, *answer]])
    logits = model(input_ids=ids).logits[0].double() / temperature
    table = logits.log_softmax(-1)
    return torch.stack([table[len(prompt) + t - 1, token] for t, token in enumerate(answer)])


@pytest.mark.parametrize("temperature", [0.6, 1.0, 1.3])
def test_batched_scores_are_those_of_each_row_alone(model, words, prompts, temperature):
    """Rows of unequal prompts and answers, padded on both sides, against a row by itself."""
    adapter = adapter_of(model, words, temperature=temperature)
    trajectory = adapter.encode(prompts, ANSWERS, generators=generators(3))
    scores = adapter.scores(model, trajectory).log_probs
    assert scores.shape == trajectory.mask.shape and scores.dtype == torch.float32
    for row in range(len(trajectory)):
        kept = trajectory.mask[row]
        prompt = trajectory.static["prompt_ids"][int(trajectory.prompt_of[row])].tolist()
        answer = trajectory.stepwise["token"][row][kept].tolist()
        alone = longhand(model, prompt, answer, temperature)
        torch.testing.assert_close(scores[row][kept].double(), alone, atol=1e-5, rtol=0)
        assert (scores[row][~kept] == 0).all()


def test_padding_is_invisible(model, words, prompts):
    """0 to 7 more columns of padding on the left, by a longer neighbour, and on the right."""
    adapter = adapter_of(model, words)
    alone = adapter.encode(prompts[:1], [["one two"]], generators=generators(1))
    expected = adapter.scores(model, alone).log_probs
    for extra in range(8):
        longer = Prompt(content=" ".join(["compute 3 + 4", *["+"] * extra]))
        answers = [["one two"], ["one " * extra]]
        both = adapter.encode([prompts[0], longer], answers, generators=generators(2))
        wide = Trajectory.concatenate(
            [both, adapter.encode(prompts[:1], [["a " * 7]], generators=[])]
        )
        scores = adapter.scores(model, wide.rows(torch.tensor([0, 1]))).log_probs
        torch.testing.assert_close(scores[:1, :3], expected, atol=1e-5, rtol=0)
        assert (scores[0, 3:] == 0).all()


def test_the_end_token_is_scored_also_where_it_is_the_padding(prompts):
    """With pad == eos the mask comes from lengths, so the end has a log-prob and a gradient."""
    tokenizer = bpe()
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == 1
    model = llama(len(tokenizer))
    model.generation_config.eos_token_id = 1
    adapter = adapter_of(model, tokenizer, max_new_tokens=16)
    trajectory = adapter.encode(prompts[:1], [["the", "the cat sat"]], generators=generators(1))
    ends = trajectory.mask.sum(1) - 1
    assert (trajectory.stepwise["token"].gather(1, ends[:, None]) == 1).all()
    scores = adapter.scores(model, trajectory).log_probs
    assert (scores.gather(1, ends[:, None]) < 0).all()
    scores[0, ends[0]].backward()
    assert model.lm_head.weight.grad.abs().sum() > 0


def test_a_cut_answer_has_no_end_token_and_is_told(model, words, prompts, caplog):
    adapter = adapter_of(model, words, max_new_tokens=3)
    trajectory = adapter.encode(prompts[:1], [["one two", "one two three"]], generators=[])
    assert "1 of 2 recorded answers are longer than max_new_tokens=3" in caplog.text
    assert trajectory.stepwise["token"][0, 2] == words.eos_token_id
    assert trajectory.mask.all()
    assert words.eos_token_id not in trajectory.stepwise["token"][1]


def test_scored_positions_are_those_that_predict_the_token(words, prompts):
    """A model certain of the successor id (t -> t + 1) gives 0 nats to such an answer only.

    Built by hand: attention and MLP are silenced, embeddings are one-hot, and the head maps the
    one-hot of t to a logit of 50 at t + 1. A shift by one would score some -50.
    """
    model = llama(len(words))
    size = len(words)
    config = model.config
    config.hidden_size = size
    model = type(model)(
        config.__class__(
            **{
                **config.to_dict(),
                "num_attention_heads": 1,
                "num_key_value_heads": 1,
                "head_dim": 2,
            }
        )
    )
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        model.model.embed_tokens.weight.copy_(torch.eye(size))
        model.lm_head.weight.copy_(torch.eye(size).roll(1, 0) * 50 / size**0.5)
    adapter = adapter_of(model.eval(), words)
    prompt = torch.tensor([1, 5, 40])
    successors = Trajectory(
        mask=torch.ones(1, 4, dtype=torch.bool),
        prompt_of=torch.tensor([0]),
        static={"prompt_ids": [prompt]},
        stepwise={"token": torch.tensor([[41, 42, 43, 44]])},
        outputs=[None],
    )
    assert adapter.scores(model, successors).log_probs.abs().max() < 1e-4


@pytest.mark.parametrize("temperature", [0.6, 1.0, 1.3])
def test_the_ratio_of_a_fresh_sample_is_one(model, words, prompts, temperature):
    """Scored under the distribution it was drawn from, as generation itself recorded it."""
    adapter = adapter_of(model, words, temperature=temperature)
    trajectory = adapter.sample(model, prompts, group_size=3, generators=generators(3))
    ratio = (adapter.scores(model, trajectory).log_probs - trajectory.log_probs).exp()
    assert (ratio - 1).abs().max() < 1e-4
    assert (trajectory.log_probs < 0).equal(trajectory.mask)


def test_a_sample_depends_on_no_other_row(model, words, prompts):
    adapter = adapter_of(model, words)
    together = adapter.sample(model, prompts, group_size=2, generators=generators(3))
    for i, prompt in enumerate(prompts):
        own = [torch.Generator().manual_seed(i)]
        alone = adapter.sample(model, [prompt], group_size=2, generators=own)
        assert alone.outputs == together.outputs[2 * i : 2 * i + 2]


def test_frequencies_are_the_probabilities(words):
    """4000 first tokens of one prompt; each frequency within 5 standard errors."""
    model = llama(len(words))
    adapter = adapter_of(model, words, max_new_tokens=1)
    prompt = Prompt(content="compute 3 + 4")
    with pytest.warns(UserWarning, match="were cut at max_new_tokens=1"):
        trajectory = adapter.sample(model, [prompt], group_size=4000, generators=generators(1))
    counts = torch.bincount(trajectory.stepwise["token"][:, 0], minlength=len(words)) / 4000
    ids = trajectory.static["prompt_ids"][0].unsqueeze(0)
    p = model(input_ids=ids).logits[0, -1].softmax(-1).detach()
    assert ((counts - p).abs() <= 5 * (p * (1 - p) / 4000).sqrt() + 1e-3).all()


def test_the_models_own_generation_settings_do_not_act(model, words, prompts):
    """A repetition penalty, top-k 1 and a low temperature in the model's folder change nothing."""
    adapter = adapter_of(model, words)
    plain = adapter.sample(model, prompts, group_size=2, generators=generators(3))
    model.generation_config = GenerationConfig(
        do_sample=True,
        top_k=1,
        temperature=0.1,
        repetition_penalty=5.0,
        min_new_tokens=6,
        eos_token_id=2,
    )
    assert (
        adapter.sample(model, prompts, group_size=2, generators=generators(3)).outputs
        == plain.outputs
    )
    assert model.generation_config.repetition_penalty == 5.0


def test_sampled_ids_are_scored_without_a_round_trip_through_text(
    model, words, prompts, monkeypatch
):
    adapter = adapter_of(model, words)
    trajectory = adapter.sample(model, prompts, group_size=2, generators=generators(3))

    def refuse(*args, **kwargs):
        raise AssertionError("the tokenizer was called while scoring")

    monkeypatch.setattr(type(words), "__call__", refuse)
    monkeypatch.setattr(type(words), "decode", refuse)
    adapter.scores(model, trajectory)


def test_a_sample_ends_in_one_end_token_or_is_cut(words, prompts):
    model = llama(len(words))
    with torch.no_grad():
        model.lm_head.weight.mul_(0.1)
    adapter = adapter_of(model, words, max_new_tokens=16)
    trajectory = adapter.sample(model, prompts, group_size=20, generators=generators(3))
    tokens, lengths = trajectory.stepwise["token"], trajectory.mask.sum(1)
    ended = tokens.gather(1, lengths[:, None] - 1)[:, 0] == 2
    assert ended.any() and not ended.all()
    assert ((tokens == 2).sum(1) == ended).all()
    assert (lengths[~ended] == 16).all()
    assert (tokens[~trajectory.mask] == 0).all()


@pytest.mark.parametrize("name", sorted(MODELS))
def test_dropout_is_off_in_scoring(name, words, prompts):
    model = MODELS[name](len(words), dropout=0.5)
    adapter = adapter_of(model, words)
    trajectory = adapter.encode(prompts, ANSWERS, generators=generators(3))
    first = adapter.scores(model, trajectory).log_probs
    assert torch.equal(first, adapter.scores(model, trajectory).log_probs)


def test_what_else_is_wanted(model, words, prompts):
    """Entropy at most log V, top-10 mass below 1, KL 0 to itself and greater to another model."""
    adapter = adapter_of(model, words)
    trajectory = adapter.encode(prompts, ANSWERS, generators=generators(3))
    scores = adapter.scores(model, trajectory, want=EVERYTHING | {"kl"}, against=model)
    assert scores.features.shape == (*trajectory.mask.shape, adapter.feature_size)
    kept = trajectory.mask
    assert (scores.entropy[kept] > 0).all()
    assert (scores.entropy <= torch.tensor(float(len(words))).log() + 1e-5).all()
    assert ((scores.top_k_mass > 0) & (scores.top_k_mass < 1))[kept].all()
    assert (scores.top_k_entropy <= torch.tensor(10.0).log() + 1e-5).all()
    assert scores.kl.abs().max() < 1e-6
    other = MODELS["llama"](len(words))
    further = adapter.scores(model, trajectory, want=frozenset({"kl"}), against=other)
    assert (further.kl[kept] > 0.01).all()
    further.kl.sum().backward()
    assert all(p.grad is None for p in other.parameters())
    for value in (scores.entropy, scores.kl, scores.top_k_mass, scores.top_k_entropy):
        assert (value[~kept] == 0).all()
    with pytest.raises(ValueError, match="without a reference"):
        adapter.scores(model, trajectory, want=frozenset({"kl"}))


def test_features_are_known_before_the_token(model, words, prompts):
    """Another last token changes no feature; another token before it does."""
    adapter = adapter_of(model, words)
    first = adapter.encode(prompts[:1], [["one two three"]], generators=[])
    other = adapter.encode(prompts[:1], [["one two four"]], generators=[])
    want = frozenset({"features"})
    a, b = (adapter.scores(model, t, want=want).features for t in (first, other))
    assert torch.equal(a[:, :3], b[:, :3]) and not torch.allclose(a[:, 3], b[:, 3])


def test_masked_steps_get_no_gradient(model, words, prompts):
    adapter = adapter_of(model, words)
    trajectory = adapter.encode(prompts, ANSWERS, generators=generators(3))
    scores = adapter.scores(model, trajectory, want=EVERYTHING)
    (scores.log_probs + scores.entropy)[~trajectory.mask].sum().backward()
    assert all(p.grad is None or p.grad.abs().max() == 0 for p in model.parameters())


def test_long_prompts_and_foreign_outputs_are_refused(model, words, prompts):
    adapter = adapter_of(model, words, max_prompt_length=7)
    with pytest.raises(ValueError, match="prompt 1 has 11 tokens, more than max_prompt_length=7"):
        adapter.encode(prompts, ANSWERS, generators=generators(3))
    from PIL import Image

    with pytest.raises(ValueError, match="row 0: this model answers in text"):
        adapter.encode(prompts[:1], [[Image.new("RGB", (2, 2))]], generators=[])


def test_checkpointed_activations_give_the_same_gradient(words, prompts):
    """Recomputed layers run twice, under a LoRA whose base is frozen, with dropout."""
    from mmalign.text.policy import checkpoint_activations

    gradients, calls = [], []
    for recompute in (False, True):
        torch.manual_seed(3)
        model = llama(len(words), dropout=0.5)
        attach(model, LoRA(rank=4))
        if recompute:
            checkpoint_activations(model)
        model.eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.normal_()
        count = []
        model.model.layers[0].mlp.register_forward_pre_hook(lambda *_, c=count: c.append(1))
        adapter = adapter_of(model, words)
        trajectory = adapter.encode(prompts, ANSWERS, generators=generators(3))
        adapter.scores(model, trajectory).log_probs.sum().backward()
        gradients.append({k: p.grad for k, p in model.named_parameters() if p.requires_grad})
        calls.append(len(count))
        assert not any(module.training for module in model.modules())
    assert calls == [1, 2]
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient)


def test_the_adapter_fulfils_the_contract(words):
    from mmalign.protocols import Adapter

    adapter = adapter_of(gpt2(len(words)), words)
    assert isinstance(adapter, Adapter) and isinstance(adapter, CausalAdapter)
