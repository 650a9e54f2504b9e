"""The bound on tiny random pipelines: oracle networks, sharing, parity with Diffusion-DPO."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from mmalign.diffusion import DiffusionPolicy, FlowPolicy
from mmalign.diffusion.processes import draw_quantiles
from mmalign.objectives import DPO
from mmalign.policy import Policy
from mmalign.types import Batch, Prompt, Trajectory
from tests.diffusion.tiny import generators

KINDS = ["epsilon", "v_prediction", "flow"]


def load(folders: dict[str, str], kind: str, **more: object) -> Policy:
    spec = FlowPolicy if kind == "flow" else DiffusionPolicy
    return spec(model=folders[kind], steps=3, guidance_scale=2.0, **more).load()  # type: ignore[arg-type]


def picture(seed: int, *, size: int = 16, mode: str = "RGB") -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    return Image.fromarray(values).convert(mode)


def encode(policy: Policy, prompts: list[Prompt], *key: int | str) -> Trajectory:
    sides = [[picture(2 * i), picture(2 * i + 1)] for i in range(len(prompts))]
    return policy.adapter.encode(prompts, sides, generators=generators(len(prompts), *key))


class Oracle(nn.Module):
    """Stands where the network stands and answers with the truth it was given."""

    def __init__(self, answer: Tensor) -> None:
        super().__init__()
        self.anchor = nn.Parameter(torch.zeros(()))
        self.answer = answer

    def forward(self, *_: object, **__: object) -> tuple[Tensor]:
        return (self.answer + self.anchor,)


@pytest.mark.parametrize("kind", KINDS)
def test_an_oracle_scores_zero(folders: dict[str, str], prompts: list[Prompt], kind: str) -> None:
    """The target of each kind, worked out from its definition; one off by 0.2 scores -0.02.

    With error 0.2 on every element, -0.5 * 0.2^2 = -0.02.
    """
    policy = load(folders, kind)
    trajectory = encode(policy, prompts)
    at = {k: v[:, 0] for k, v in trajectory.stepwise.items()}
    signal = at["level"].sqrt()[:, None, None, None]
    spread = (1 - at["level"]).sqrt()[:, None, None, None]
    truth = {
        "epsilon": at["noise"],
        "v_prediction": signal * at["noise"] - spread * at["latent"],
        "flow": at["noise"] - at["latent"],
    }[kind]
    scores = policy.adapter.scores(Oracle(truth), trajectory)
    assert scores.log_probs.abs().max().item() < 1e-10
    scores = policy.adapter.scores(Oracle(truth + 0.2), trajectory)
    torch.testing.assert_close(scores.log_probs, torch.full((4, 1), -0.02))


@pytest.mark.parametrize("kind", KINDS)
def test_a_pair_shares_timestep_and_noise(
    folders: dict[str, str], prompts: list[Prompt], kind: str
) -> None:
    """Rows of one prompt do, rows of different prompts do not; sampled groups likewise."""
    policy = load(folders, kind, draws=2)
    recorded = encode(policy, prompts)
    sampled = policy.sample(prompts, group_size=2, generators=generators(2, "s"))
    for trajectory in (recorded, sampled):
        for name in ("timestep", "level", "noise"):
            value = trajectory.stepwise[name]
            assert torch.equal(value[0], value[1]) and torch.equal(value[2], value[3])
            assert not torch.equal(value[0], value[2])
        assert not torch.equal(trajectory.stepwise["latent"][0], trajectory.stepwise["latent"][1])


def as_batch(trajectory: Trajectory) -> Batch:
    rows = len(trajectory)
    return Batch(
        trajectory=trajectory,
        group=torch.arange(rows) // 2,
        reward=torch.tensor([1.0, 0.0]).repeat(rows // 2),
        weight=trajectory.mask.float(),
        pairs=torch.arange(rows).view(-1, 2),
    )


@pytest.mark.parametrize("kind", KINDS)
def test_dpo_on_the_bound_is_diffusion_dpo(
    folders: dict[str, str], prompts: list[Prompt], kind: str
) -> None:
    """Longhand: ``mean[-log sigmoid(-beta/2 ((e_w - e_l) - (e_w_ref - e_l_ref)))]``, gradient too.

    The errors are means over the latent of the network called directly, on latents noised by
    diffusers' own scheduler.
    """
    policy = load(folders, kind)
    family = policy.adapter.family  # type: ignore[attr-defined]
    reference = copy.deepcopy(policy.model)
    with torch.no_grad():
        for parameter in policy.model.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
    trajectory = encode(policy, prompts)
    with torch.no_grad():
        held_to = policy.adapter.scores(reference, trajectory).log_probs
    batch = DPO(beta=50.0).credit(as_batch(trajectory))
    batch = replace(batch, reference=held_to)
    ours = DPO(beta=50.0).loss(policy.scores(trajectory), batch).total / batch.denominator
    ours.backward()
    gradient = [p.grad.clone() for p in policy.model.parameters() if p.grad is not None]
    policy.model.zero_grad()

    at = {k: v[:, 0] for k, v in trajectory.stepwise.items()}
    states = {k: v[trajectory.prompt_of] for k, v in trajectory.static.items()}
    if kind == "flow":
        sigma = at["level"][:, None, None, None]
        noisy, target = (1 - sigma) * at["latent"] + sigma * at["noise"], at["noise"] - at["latent"]
    else:
        scheduler, time = family.pipe.scheduler, at["timestep"].long()
        noisy = scheduler.add_noise(at["latent"], at["noise"], time)
        target = at["noise"]
        if kind == "v_prediction":
            target = scheduler.get_velocity(at["latent"], at["noise"], time)

    def error(model: nn.Module) -> Tensor:
        answer = family.predict(model, noisy, at["timestep"], states)
        found: Tensor = (target - answer).square().mean(dim=(1, 2, 3))
        return found[0::2] - found[1::2]

    with torch.no_grad():
        difference = error(reference)
    longhand = -logsigmoid(-0.5 * 50.0 * (error(policy.model) - difference)).mean()
    torch.testing.assert_close(ours, longhand, atol=1e-5, rtol=1e-5)
    longhand.backward()
    expected = [p.grad for p in policy.model.parameters() if p.grad is not None]
    torch.testing.assert_close(gradient, expected, atol=1e-4, rtol=1e-3)


def test_the_weight_of_draws_is_folded_in(folders: dict[str, str], prompts: list[Prompt]) -> None:
    """Two draws: the sum over steps is the mean of the two bounds."""
    policy = load(folders, "epsilon", draws=2)
    trajectory = encode(policy, prompts)
    single = load(folders, "epsilon")
    each = [single.scores(trajectory.steps(slice(i, i + 1))).log_probs for i in range(2)]
    total = policy.scores(trajectory).log_probs.sum(1)
    torch.testing.assert_close(total, (each[0] + each[1]).squeeze(1) / 2)


def test_stratified_draws_cover_the_range(generator: torch.Generator) -> None:
    """The k-th of four lies in the k-th quarter of [0.2, 1]; the mean over many is 0.6."""
    found = draw_quantiles((500, 4), generator=generator, within=(0.2, 1.0), draw="uniform")
    for k in range(4):
        assert 0.2 + 0.2 * k <= found[:, k].min() and found[:, k].max() <= 0.2 + 0.2 * (k + 1)
    assert found.mean().item() == pytest.approx(0.6, abs=0.01)


def test_logit_normal_draws(generator: torch.Generator) -> None:
    """The median is one half; 68.3 % lie between sigmoid(-1) and sigmoid(1); a range holds."""
    found = draw_quantiles((4000, 1), generator=generator, within=(0.0, 1.0), draw="logit_normal")
    inside = (found > 0.26894) & (found < 0.73106)
    assert found.median().item() == pytest.approx(0.5, abs=0.02)
    assert inside.float().mean().item() == pytest.approx(0.683, abs=0.025)
    held = draw_quantiles((4000, 1), generator=generator, within=(0.5, 0.9), draw="logit_normal")
    assert held.min() >= 0.5 and held.max() <= 0.9


@pytest.mark.parametrize("kind", KINDS)
def test_sampling_is_reproducible_and_scores_its_own_latents(
    folders: dict[str, str], prompts: list[Prompt], kind: str
) -> None:
    """With ``drawn: own`` the final latent is kept; neighbours change nothing."""
    policy = load(folders, kind, drawn="own")
    both = policy.sample(prompts, group_size=2, generators=generators(2, "s"))
    alone = policy.sample(prompts[1:], group_size=2, generators=generators(2, "s")[1:])
    for name, value in alone.stepwise.items():
        torch.testing.assert_close(both.stepwise[name][2:], value, atol=1e-4, rtol=1e-4)
    family = policy.adapter.family  # type: ignore[attr-defined]
    scaled = family.latents.from_latents(both.stepwise["latent"][:, 0])
    decoded = family.pipe.vae.decode(scaled).sample
    expected = family.pipe.image_processor.postprocess(decoded.detach(), output_type="pil")
    assert [np.asarray(p).tolist() for p in both.outputs] == [
        np.asarray(p).tolist() for p in expected
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_a_drawn_picture_scores_as_the_same_picture_recorded(
    folders: dict[str, str], prompts: list[Prompt], kind: str
) -> None:
    """Bit for bit, at the same draws; and what is drawn once is not kept for later."""
    policy = load(folders, kind)
    drawn = policy.sample(prompts, group_size=2, generators=generators(2, "s"))
    assert not policy.adapter.family.latents.posteriors.memory  # type: ignore[attr-defined]
    sides = [drawn.outputs[:2], drawn.outputs[2:]]
    recorded = policy.adapter.encode(prompts, sides, generators=generators(2, "s"))
    assert torch.equal(drawn.stepwise["latent"], recorded.stepwise["latent"])
    same = {k: drawn.stepwise[k] for k in ("noise", "timestep", "level")}
    recorded = replace(recorded, stepwise={**recorded.stepwise, **same})
    found = policy.scores(drawn).log_probs
    torch.testing.assert_close(found, policy.scores(recorded).log_probs)
    # A draw from the posterior is one, and not the mean.
    other = load(folders, kind, latent="sample")
    sampled = other.sample(prompts, group_size=2, generators=generators(2, "s"))
    assert not torch.equal(sampled.stepwise["latent"], drawn.stepwise["latent"])


def test_recorded_pictures_are_encoded_by_the_vae(
    folders: dict[str, str], prompts: list[Prompt]
) -> None:
    """The posterior's mean, scaled; a draw from it differs by its deviation times the noise."""
    policy = load(folders, "flow")
    vae = policy.adapter.family.pipe.vae  # type: ignore[attr-defined]
    pixels = torch.from_numpy(np.array(picture(0))).permute(2, 0, 1)[None].float() / 127.5 - 1
    with torch.no_grad():
        posterior = vae.encode(pixels).latent_dist
    expected = (posterior.mean - 0.1) * 0.7
    latent = encode(policy, prompts).stepwise["latent"]
    torch.testing.assert_close(latent[:1, 0], expected, atol=1e-5, rtol=1e-5)
    drawn = encode(load(folders, "flow", latent="sample"), prompts).stepwise["latent"]
    z = (drawn[:1, 0] - expected) / (0.7 * posterior.std)
    assert z.abs().max().item() < 6 and 0.8 < z.std().item() < 1.2


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (picture(0, mode="L"), "channels L, not RGB"),
        (picture(0, mode="RGBA"), "channels RGBA, not RGB"),
        (picture(0, size=32), "32 x 32 pixels and the model draws 16 x 16"),
        ("a red circle", "answers in pictures"),
    ],
)
def test_pictures_that_do_not_fit_are_refused(
    folders: dict[str, str], wrong: Image.Image | str, message: str
) -> None:
    """Row, what is wrong, what to do; with resize only text is still refused."""
    prompt = [Prompt(content="a red circle")]
    sides = [[picture(0), wrong]]
    with pytest.raises(ValueError, match=f"row 1: .*{message}"):
        load(folders, "epsilon").adapter.encode(prompt, sides, generators=generators(1))
    resizing = load(folders, "epsilon", resize=True).adapter
    if isinstance(wrong, str):
        with pytest.raises(ValueError, match=message):
            resizing.encode(prompt, sides, generators=generators(1))
    else:
        assert len(resizing.encode(prompt, sides, generators=generators(1))) == 2


def test_what_a_bound_has_not_is_refused(folders: dict[str, str], prompts: list[Prompt]) -> None:
    """Exact KL belongs to the path."""
    policy = load(folders, "epsilon")
    with pytest.raises(ValueError, match="likelihood: path"):
        policy.scores(encode(policy, prompts), want=frozenset({"kl"}), against=policy.model)


def test_padding_and_order_are_invisible(folders: dict[str, str], prompts: list[Prompt]) -> None:
    """Permuted rows score the same; a row padded to more draws scores 0 there."""
    policy = load(folders, "epsilon")
    trajectory = encode(policy, prompts)
    scores = policy.scores(trajectory).log_probs
    order = torch.tensor([2, 0, 3, 1])
    shuffled = policy.scores(trajectory.rows(order)).log_probs
    torch.testing.assert_close(shuffled, scores[order], atol=1e-6, rtol=1e-5)
    longer = encode(load(folders, "epsilon", draws=3), prompts)
    padded = policy.scores(Trajectory.concatenate([trajectory, longer])).log_probs
    torch.testing.assert_close(padded[:4, :1], scores, atol=1e-6, rtol=1e-5)
    assert (padded[:4, 1:] == 0).all()
