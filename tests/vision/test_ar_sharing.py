"""Pictures of one prompt scored in a packed row against pictures scored side by side."""

import pytest
import torch

from mmalign import lora
from mmalign.text.shared import share_prompts
from mmalign.types import Prompt, Trajectory
from mmalign.vision.ar_codes import scored_rows
from mmalign.vision.ar_pictures import prompt_ids
from tests.vision.ar_models import NUM_CODES, VOCABULARY, build_adapter, build_model

PROMPTS = [Prompt(content="draw a red circle"), Prompt(content="draw a small blue square")]


def scores_and_gradients(adapter, model, trajectory, share):
    model.zero_grad()
    adapter.share_prompts = share
    scores = adapter.scores(model, trajectory, want=frozenset({"entropy", "features"}))
    weights = torch.linspace(-1, 1, scores.log_probs.numel()).view_as(scores.log_probs)
    (weights * (scores.log_probs + scores.entropy)).sum().backward()
    gradients = {k: p.grad.clone() for k, p in model.named_parameters() if p.grad is not None}
    return [scores.log_probs.detach(), scores.entropy.detach(), scores.features], gradients


@pytest.mark.parametrize("with_lora", [False, True])
@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_packed_is_side_by_side(scale, with_lora):
    """Five pictures of two prompts, guided or not, all weights or a LoRA."""
    model = build_model().eval()
    if with_lora:
        lora.attach(model, lora.LoRA(rank=4, alpha=8), targets=".*language_model.*(q|v)_proj")
    adapter = build_adapter(model, guidance_scale=scale)
    assert share_prompts(model.model.language_model)
    prompts = [prompt_ids(adapter.processor, p, row=0, limit=None) for p in PROMPTS]
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(0, VOCABULARY, (5, NUM_CODES), generator=generator)
    trajectory = Trajectory(
        mask=torch.ones(5, NUM_CODES, dtype=torch.bool),
        prompt_of=torch.tensor([0, 0, 0, 1, 1]),
        static={"prompt_ids": prompts},
        stepwise={"token": codes},
        outputs=[None] * 5,
    )
    packed, packed_gradients = scores_and_gradients(adapter, model, trajectory, True)
    plain, plain_gradients = scores_and_gradients(adapter, model, trajectory, False)
    for one, other in zip(packed, plain, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
    assert packed_gradients.keys() == plain_gradients.keys() and packed_gradients
    largest = max(float(g.abs().max()) for g in plain_gradients.values())
    for key, gradient in plain_gradients.items():
        error = float((packed_gradients[key] - gradient).abs().max())
        assert error <= 1e-5 * largest, key


def test_unconditional_prompts_of_one_length_are_one():
    """Three prompts of 5, 5 and 6 tokens have two unconditional forms, each read once."""
    model = build_model().eval()
    adapter = build_adapter(model, guidance_scale=2.0)
    share_prompts(model.model.language_model)
    rows = scored_rows(
        model,
        [
            torch.tensor([1, 21, 22, 23, 24]),
            torch.tensor([1, 24, 23, 22, 21]),
            torch.arange(20, 26),
        ],
        [0, 1, 2],
        torch.zeros(3, NUM_CODES, dtype=torch.int64),
        torch.ones(3, NUM_CODES, dtype=torch.bool),
        drawing=adapter.drawing,
        guided=True,
        share=True,
    )
    prompts = 5 + 5 + 6 + 5 + 6
    assert rows.input_ids.shape == (1, prompts + 6 * (NUM_CODES - 1))
    assert len(rows.prompts) == 5
