"""ARImageAdapter and ARImagePolicy over a tiny random Janus."""

import copy
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from PIL import Image
from torch import Tensor
from transformers import JanusForConditionalGeneration, JanusProcessor

from mmalign import lora as loras
from mmalign.lora import LoRA
from mmalign.policy import Policy
from mmalign.rng import generator
from mmalign.tinyworld.tasks import TASKS
from mmalign.tokens import inverse_cdf_sample
from mmalign.types import Prompt, Trajectory
from mmalign.vision import ARImageAdapter, ARImagePolicy, CodeSampling
from mmalign.vision.ar_policy import choose_trainable
from tests.vision.ar_models import (
    NUM_CODES,
    SIDE,
    VOCABULARY,
    WIDTH,
    build_adapter,
    build_model,
    build_processor,
)

PROMPTS = (
    Prompt(content="a red circle"),
    Prompt(content=({"role": "user", "content": "two large blue squares and a green triangle"},)),
    Prompt(content=({"role": "user", "content": [{"type": "text", "text": "a yellow square"}]},)),
)
EXTRA = frozenset({"entropy", "kl", "top_k_mass", "top_k_entropy", "features"})


@pytest.fixture(scope="module")
def model() -> JanusForConditionalGeneration:
    return build_model().requires_grad_(False)


def keys(count: int, *, start: int = 0) -> list[torch.Generator]:
    return [generator("test", start + i) for i in range(count)]


def sampled(
    adapter: ARImageAdapter, model: JanusForConditionalGeneration, group: int = 3
) -> Trajectory:
    return adapter.sample(model, PROMPTS, group_size=group, generators=keys(len(PROMPTS)))


def picture(seed: int = 0, size: tuple[int, int] = (SIDE, SIDE)) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@torch.no_grad()
def longhand(
    model: JanusForConditionalGeneration, adapter: ARImageAdapter, trajectory: Trajectory
) -> Tensor:
    """``[B, T, V]`` log-probs of every code: one full forward pass a row, a step and a condition.

    No cache, no padding, no batch: what Janus does, written out.
    """
    settings = adapter.sampling
    rows = []
    for row, codes in enumerate(trajectory.stepwise["token"]):
        ids = trajectory.static["prompt_ids"][int(trajectory.prompt_of[row])]
        empty = torch.tensor([i if i in (1, 7) else 0 for i in ids.tolist()])
        steps = []
        for step in range(NUM_CODES):
            logits = []
            for words in (ids, empty):
                inputs = model.get_input_embeddings()(words[None])
                if step:
                    drawn = model.prepare_embeddings_for_image_generation(codes[None, :step])
                    inputs = torch.cat([inputs, drawn], 1)
                state = model.model.language_model(inputs_embeds=inputs).last_hidden_state[0, -1]
                logits.append(model.model.generation_head(state))
            c, u = logits
            mixed = u + settings.guidance_scale * (c - u)
            steps.append((mixed / settings.temperature).log_softmax(-1))
        rows.append(torch.stack(steps))
    return torch.stack(rows)


class TestSampling:
    """What is drawn, and from which distribution."""

    def test_trajectory(self, model: JanusForConditionalGeneration) -> None:
        found = sampled(build_adapter(model), model)
        assert found.stepwise["token"].shape == (9, NUM_CODES)
        assert found.mask.dtype == torch.bool and bool(found.mask.all())
        assert found.prompt_of.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
        # "<bos> <user> a red circle <assistant> <boi>": stored once for the three rows.
        assert [len(ids) for ids in found.static["prompt_ids"]] == [7, 12, 7]
        assert found.static["prompt_ids"][0].tolist()[-1] == 7
        assert not found.separable
        for output in found.outputs:
            assert isinstance(output, Image.Image)
            assert output.size == (SIDE, SIDE) and output.mode == "RGB"

    def test_same_generators_same_pictures(self, model: JanusForConditionalGeneration) -> None:
        adapter = build_adapter(model)
        first, second = sampled(adapter, model), sampled(adapter, model)
        assert torch.equal(first.stepwise["token"], second.stepwise["token"])
        other = adapter.sample(model, PROMPTS, group_size=3, generators=keys(3, start=50))
        assert not torch.equal(first.stepwise["token"], other.stepwise["token"])

    def test_rows_of_a_prompt_differ(self, model: JanusForConditionalGeneration) -> None:
        codes = sampled(build_adapter(model), model, group=8).stepwise["token"]
        assert len(codes[:8].unique(dim=0)) > 1

    @pytest.mark.parametrize("scale", [1.0, 2.0, 5.0])
    @pytest.mark.parametrize("temperature", [0.7, 1.0])
    def test_drawn_and_scored_distribution_are_one(
        self, model: JanusForConditionalGeneration, scale: float, temperature: float
    ) -> None:
        """The uniform numbers, put through the longhand distribution, give the drawn codes; and
        the scores are the longhand log-probs of those codes: the ratio is 1."""
        adapter = build_adapter(model, guidance_scale=scale, temperature=temperature)
        found = sampled(adapter, model)
        expected = longhand(model, adapter, found)
        codes = found.stepwise["token"]
        uniforms = torch.cat([torch.rand(3, NUM_CODES, generator=key) for key in keys(3)])
        for step in range(NUM_CODES):
            drawn = inverse_cdf_sample(expected[:, step].exp(), uniforms[:, step])
            assert torch.equal(drawn, codes[:, step])
        scored = adapter.scores(model, found).log_probs
        wanted = expected.gather(-1, codes.unsqueeze(-1)).squeeze(-1)
        assert (scored - wanted).exp().sub(1).abs().max() < 1e-4
        assert found.log_probs is not None
        assert (scored - found.log_probs).exp().sub(1).abs().max() < 1e-4

    def test_sampling_records_what_scoring_says(self, model: JanusForConditionalGeneration) -> None:
        """Also where the conditional distribution is scored and the guided one was drawn from."""
        adapter = build_adapter(model, guidance_scale=5.0, guided_log_probs=False)
        found = sampled(adapter, model)
        scored = adapter.scores(model, found).log_probs
        assert found.log_probs is not None
        assert (scored - found.log_probs).exp().sub(1).abs().max() < 1e-4

    def test_a_prompt_is_read_once(self, model: JanusForConditionalGeneration) -> None:
        """Three prompts and three unconditional ones, then two rows for each of nine pictures."""
        seen: list[tuple[int, ...]] = []
        layer = model.model.language_model.layers[0]
        hook = layer.register_forward_pre_hook(
            lambda _, args: seen.append(tuple(args[0].shape[:2]))
        )
        sampled(build_adapter(model), model)
        hook.remove()
        assert seen == [(6, 12), *[(18, 1)] * (NUM_CODES - 1)]

    def test_guidance_matters(self, model: JanusForConditionalGeneration) -> None:
        """A guard of the test above: with w = 5 the distribution is really another one."""
        found = sampled(build_adapter(model), model)
        plain = build_adapter(model, guidance_scale=1.0).scores(model, found).log_probs
        guided = build_adapter(model, guidance_scale=5.0).scores(model, found).log_probs
        assert (plain - guided).abs().max() > 0.1

    def test_cold_sampling_is_greedy_generation(self, model: JanusForConditionalGeneration) -> None:
        """At temperature 1e-4 the codes are those of transformers' own greedy generation."""
        adapter = build_adapter(model, guidance_scale=3.0, temperature=1e-4)
        found = sampled(adapter, model, group=1)
        processor = build_processor()
        turns = [[{"role": "user", "content": p.content}] for p in PROMPTS[:1]]
        turns += [list(p.content) for p in PROMPTS[1:]]
        inputs = processor(
            text=processor.apply_chat_template(turns, add_generation_prompt=True),
            generation_mode="image",
            padding=True,
            padding_side="left",
            return_tensors="pt",
        )
        expected = model.generate(
            **inputs, generation_mode="image", do_sample=False, guidance_scale=3.0, max_length=64
        )
        assert torch.equal(found.stepwise["token"], expected)

    def test_row_does_not_depend_on_its_batch(self, model: JanusForConditionalGeneration) -> None:
        """Prompt 0 is padded beside prompt 1, and is not alone; codes and scores stay."""
        adapter = build_adapter(model)
        together = sampled(adapter, model)
        scores = adapter.scores(model, together).log_probs
        for row, prompt in enumerate(PROMPTS):
            alone = adapter.sample(
                model, [prompt], group_size=3, generators=[generator("test", row)]
            )
            rows = slice(3 * row, 3 * row + 3)
            assert torch.equal(alone.stepwise["token"], together.stepwise["token"][rows])
            torch.testing.assert_close(
                adapter.scores(model, alone).log_probs, scores[rows], atol=1e-5, rtol=0
            )


class TestScoring:
    """Log-probs and what else is wanted."""

    def test_flat_logits(self) -> None:
        """A head of zeros knows nothing: every code has log-prob -log 16 and entropy log 16."""
        model = build_model().requires_grad_(False)
        for parameter in model.model.generation_head.parameters():
            parameter.zero_()
        adapter = build_adapter(model)
        scores = adapter.scores(model, sampled(adapter, model), want=frozenset({"entropy"}))
        flat = torch.full((9, NUM_CODES), math.log(VOCABULARY))
        torch.testing.assert_close(scores.log_probs, -flat)
        torch.testing.assert_close(scores.entropy, flat)

    def test_certain_logits(self) -> None:
        """A head that always says code 5 draws it, with log-prob and entropy 0."""
        model = build_model().requires_grad_(False)
        head = model.model.generation_head.vision_head
        head.weight.zero_()
        head.bias.copy_(torch.where(torch.arange(VOCABULARY) == 5, 200.0, 0.0))
        adapter = build_adapter(model)
        found = sampled(adapter, model)
        assert bool((found.stepwise["token"] == 5).all())
        scores = adapter.scores(model, found, want=frozenset({"entropy"}))
        assert scores.entropy is not None
        assert scores.log_probs.abs().max() == 0 and scores.entropy.abs().max() == 0

    def test_guidance_of_one_is_conditional(self, model: JanusForConditionalGeneration) -> None:
        found = sampled(build_adapter(model), model)
        plain = build_adapter(model, guidance_scale=1.0).scores(model, found).log_probs
        for scale in (2.0, 5.0):
            adapter = build_adapter(model, guidance_scale=scale, guided_log_probs=False)
            torch.testing.assert_close(adapter.scores(model, found).log_probs, plain)

    def test_guiding_formula(self) -> None:
        """u + 3 (c - u) with c = (1, 0), u = (0.5, 1): (2, -2)."""
        sampling = CodeSampling(guidance_scale=3.0, temperature=1.0)
        guided = sampling.guide(torch.tensor([1.0, 0.0]), torch.tensor([0.5, 1.0]))
        assert guided.tolist() == [2.0, -2.0]

    def test_conditional_setting_still_samples_guided(
        self, model: JanusForConditionalGeneration
    ) -> None:
        guided = sampled(build_adapter(model, guidance_scale=5.0), model)
        adapter = build_adapter(model, guidance_scale=5.0, guided_log_probs=False)
        assert torch.equal(sampled(adapter, model).stepwise["token"], guided.stepwise["token"])

    def test_extras(self, model: JanusForConditionalGeneration) -> None:
        """Entropy and KL against the longhand distributions of two models."""
        adapter = build_adapter(model)
        found = sampled(adapter, model)
        other = copy.deepcopy(model)
        other.model.generation_head.vision_head.weight.mul_(0.5)
        scores = adapter.scores(model, found, want=EXTRA, against=other)
        p, q = longhand(model, adapter, found), longhand(other, adapter, found)
        torch.testing.assert_close(scores.entropy, -(p.exp() * p).sum(-1), atol=1e-4, rtol=0)
        torch.testing.assert_close(scores.kl, (p.exp() * (p - q)).sum(-1), atol=1e-4, rtol=0)
        top = p.topk(10).values
        torch.testing.assert_close(scores.top_k_mass, top.exp().sum(-1), atol=1e-4, rtol=0)
        assert scores.features is not None and scores.features.shape == (9, NUM_CODES, WIDTH)
        # What is known before the first code is the prompt alone.
        assert torch.allclose(scores.features[0, 0], scores.features[1, 0])

    def test_kl_to_itself_is_zero(self, model: JanusForConditionalGeneration) -> None:
        adapter = build_adapter(model)
        found = sampled(adapter, model)
        scores = adapter.scores(model, found, want=frozenset({"kl"}), against=model)
        assert scores.kl is not None and scores.kl.abs().max() < 1e-6

    def test_masked_steps_are_zero(self, model: JanusForConditionalGeneration) -> None:
        adapter = build_adapter(model)
        found = sampled(adapter, model)
        found.mask[:, 2:] = False
        scores = adapter.scores(model, found).log_probs
        assert bool((scores[:, 2:] == 0).all()) and bool((scores[:, :2] < 0).all())

    def test_description_follows_what_scores_depend_on(
        self, model: JanusForConditionalGeneration
    ) -> None:
        told = {
            build_adapter(model, guidance_scale=w, temperature=t, guided_log_probs=g).describe()
            for w in (1.0, 2.0)
            for t in (0.7, 1.0)
            for g in (True, False)
        }
        assert len(told) == 8

    def test_subset_of_rows(self, model: JanusForConditionalGeneration) -> None:
        adapter = build_adapter(model)
        found = sampled(adapter, model)
        index = torch.tensor([7, 4, 5])
        torch.testing.assert_close(
            adapter.scores(model, found.rows(index)).log_probs,
            adapter.scores(model, found).log_probs[index],
            atol=1e-5,
            rtol=0,
        )


class TestEncoding:
    """Recorded pictures."""

    def test_codes_are_those_of_the_model(self, model: JanusForConditionalGeneration) -> None:
        adapter = build_adapter(model)
        shown = [[picture(0), picture(1)], [picture(2)], []]
        found = adapter.encode(PROMPTS, shown, generators=keys(3))
        assert found.prompt_of.tolist() == [0, 0, 1]
        processor = build_processor()
        pixels = processor.image_processor(
            images=[picture(0), picture(1), picture(2)], return_tensors="pt"
        )["pixel_values"]
        expected = model.model.vqmodel.encode(pixels).image_tokens.view(3, -1)
        assert torch.equal(found.stepwise["token"], expected)

    def test_scored_like_sampled_ones(self, model: JanusForConditionalGeneration) -> None:
        adapter = build_adapter(model)
        found = adapter.encode(PROMPTS, [[picture(i)] for i in range(3)], generators=keys(3))
        expected = longhand(model, adapter, found)
        wanted = expected.gather(-1, found.stepwise["token"].unsqueeze(-1)).squeeze(-1)
        torch.testing.assert_close(
            adapter.scores(model, found).log_probs, wanted, atol=1e-4, rtol=0
        )

    def test_decoding(self, model: JanusForConditionalGeneration) -> None:
        """A picture's pixels are the decoder's, scaled from [-1, 1] to 0 .. 255."""
        found = sampled(build_adapter(model), model, group=1)
        decoded = model.decode_image_tokens(found.stepwise["token"])
        expected = ((decoded.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
        for output, wanted in zip(found.outputs, expected, strict=True):
            assert np.array_equal(np.asarray(output), wanted.numpy())


class TestMisuse:
    """Clear words for what cannot work."""

    @pytest.mark.parametrize(
        ("output", "words"),
        [
            (picture(0, (SIDE, SIDE * 2)), "has 8 x 16 pixels and the model draws 8 x 8"),
            ("a red circle", "answers in pictures, and the recorded output is a str"),
        ],
    )
    def test_outputs(
        self, model: JanusForConditionalGeneration, output: Image.Image | str, words: str
    ) -> None:
        with pytest.raises(ValueError, match=words):
            build_adapter(model).encode(PROMPTS[:1], [[output]], generators=keys(1))

    @pytest.mark.parametrize(
        ("prompt", "words"),
        [
            (Prompt(content="  "), "prompt 0 has no text"),
            (Prompt(content=({"role": "user", "content": []},)), "prompt 0 has no text"),
            (Prompt(content="a red circle", images=(picture(),)), "draws from text alone"),
            (
                Prompt(content=({"role": "user", "content": [{"type": "image"}]},)),
                "draws from text alone",
            ),
        ],
    )
    def test_prompts(
        self, model: JanusForConditionalGeneration, prompt: Prompt, words: str
    ) -> None:
        with pytest.raises(ValueError, match=words):
            build_adapter(model).sample(model, [prompt], group_size=1, generators=keys(1))

    def test_long_prompt(self, model: JanusForConditionalGeneration) -> None:
        adapter = build_adapter(model)
        adapter.max_prompt_length = 11
        with pytest.raises(ValueError, match="prompt 1 has 12 tokens"):
            sampled(adapter, model)

    @pytest.mark.parametrize(
        ("scale", "temperature", "words"),
        [(-1.0, 1.0, "guidance_scale must"), (2.0, 0.0, "temperature must")],
    )
    def test_settings(self, scale: float, temperature: float, words: str) -> None:
        with pytest.raises(ValueError, match=words):
            CodeSampling(guidance_scale=scale, temperature=temperature)

    def test_kl_without_reference(self, model: JanusForConditionalGeneration) -> None:
        adapter = build_adapter(model)
        with pytest.raises(ValueError, match="without a reference"):
            adapter.scores(model, sampled(adapter, model), want=frozenset({"kl"}))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with its processor, as a user has a model on disk."""
    path = tmp_path_factory.mktemp("janus")
    build_model().save_pretrained(str(path))
    build_processor().save_pretrained(str(path))
    return path


def trained_scores(policy: Policy) -> Tensor:
    """Move what is trainable a little, and score three pictures."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in policy.trainable().values():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    return recorded_scores(policy)


def recorded_scores(policy: Policy) -> Tensor:
    found = policy.adapter.encode(
        PROMPTS, [[picture(i)] for i in range(3)], generators=keys(len(PROMPTS))
    )
    with torch.no_grad():
        return policy.scores(found).log_probs


class TestPolicy:
    """Loading, what is trained, and what is written."""

    def test_full(self, folder: Path, tmp_path: Path) -> None:
        policy = ARImagePolicy(model=str(folder)).load()
        before = recorded_scores(policy)
        after = trained_scores(policy)
        assert (after - before).abs().max() > 0.01
        policy.save(tmp_path)
        assert JanusForConditionalGeneration.from_pretrained(tmp_path).config.model_type == "janus"
        assert JanusProcessor.from_pretrained(tmp_path).num_image_tokens == NUM_CODES
        again = ARImagePolicy(model=str(tmp_path)).load()
        torch.testing.assert_close(recorded_scores(again), after)
        assert again.model.generation_config.generation_kwargs == {"boi_token_id": 7}

    def test_lora(self, folder: Path, tmp_path: Path) -> None:
        """peft reads the LoRA on the base model, without mmalign, and scores alike."""
        policy = ARImagePolicy(model=str(folder), lora=LoRA(rank=4)).load()
        base = ARImagePolicy(model=str(folder)).load()
        torch.testing.assert_close(recorded_scores(policy), recorded_scores(base))
        after = trained_scores(policy)
        assert (after - recorded_scores(base)).abs().max() > 0.01
        policy.save(tmp_path)
        plain = JanusForConditionalGeneration.from_pretrained(folder)
        wrapped = PeftModel.from_pretrained(plain, str(tmp_path)).eval()
        read = Policy(adapter=base.adapter, model=wrapped.base_model.model)
        torch.testing.assert_close(recorded_scores(read), after)
        with loras.disabled(policy.model):
            torch.testing.assert_close(recorded_scores(policy), recorded_scores(base))

    def test_trainable_parts(self) -> None:
        full = build_model()
        choose_trainable(full, None)
        moving = {name.split(".")[1] for name, p in full.named_parameters() if p.requires_grad}
        assert moving == {
            "language_model",
            "generation_embeddings",
            "generation_aligner",
            "generation_head",
        }
        light = build_model()
        choose_trainable(light, LoRA(rank=2))
        names = [name for name, p in light.named_parameters() if p.requires_grad]
        assert names and all(n.startswith("model.language_model.layers.") for n in names)
        assert all("lora_" in n for n in names)

    def test_gradient_reaches_what_draws(self) -> None:
        model = build_model()
        choose_trainable(model, None)
        adapter = build_adapter(model)
        adapter.scores(model, sampled(adapter, model)).log_probs.sum().backward()
        for name, parameter in model.named_parameters():
            assert parameter.requires_grad == (parameter.grad is not None), name

    def test_checkpointed_activations_give_the_same_gradient(self, folder: Path) -> None:
        """The layers' MLPs run twice (forward, and again in the backward pass) instead of once."""
        gradients, calls = [], []
        for recompute in (False, True):
            torch.manual_seed(3)
            spec = ARImagePolicy(
                model=str(folder), lora=LoRA(rank=2), gradient_checkpointing=recompute
            )
            policy = spec.load()
            with torch.no_grad():
                for name, parameter in policy.trainable().items():
                    if "lora_B" in name:
                        parameter.normal_()
            count: list[int] = []
            layer = policy.model.model.language_model.layers[0].mlp
            layer.register_forward_pre_hook(lambda *_, seen=count: seen.append(1))
            found = policy.adapter.encode(PROMPTS[:1], [[picture()]], generators=keys(1))
            policy.scores(found).log_probs.sum().backward()
            gradients.append({k: p.grad for k, p in policy.trainable().items()})
            calls.append(len(count))
            assert not any(module.training for module in policy.model.modules())
        assert calls == [1, 2]
        for name, gradient in gradients[0].items():
            torch.testing.assert_close(gradients[1][name], gradient)

    def test_shipped_in_half_precision(self, folder: Path) -> None:
        """Scores are float32, and bfloat16 weights change them little."""
        exact = recorded_scores(ARImagePolicy(model=str(folder)).load())
        half = recorded_scores(ARImagePolicy(model=str(folder), dtype="bfloat16").load())
        assert half.dtype == torch.float32
        assert (half - exact).abs().mean() < 0.2


class TestShipped:
    """The small Janus that comes with the package."""

    def test_draws_what_it_is_asked_for(self) -> None:
        """Competent and improvable; and a picture's codes survive being painted and read again."""
        policy = ARImagePolicy().load()
        prompts = TASKS["draw"].prompts(split="heldout", size=64, seed=3)
        found = policy.sample(prompts, group_size=1, generators=keys(64))
        score = TASKS["draw"].judge(prompts, [p for p in found.outputs if p is not None]).mean()
        assert 0.4 < score < 0.9
        again = policy.adapter.encode(prompts, [[p] for p in found.outputs], generators=keys(64))
        same = again.stepwise["token"] == found.stepwise["token"]
        assert same.float().mean() > 0.97
