"""Options of paths: windows, a common beginning, two stochastic flows, distant predictions."""

from __future__ import annotations

import copy
from itertools import pairwise

import pytest
import torch

from mmalign.diffusion import DiffusionPolicy, FlowPolicy
from mmalign.diffusion.moves import flow_constant_move
from mmalign.types import Prompt
from tests.diffusion.test_path import KINDS, load, nudge, sample
from tests.diffusion.tiny import generators


def test_constant_diffusion_by_hand() -> None:
    """sigma .6 -> .5, x = 1, v = .3, eta = .3.

    clean = 1 - .18 = .82; score = -(1 - .4 * .82) / .36 = -1.8666667;
    mean = 1 - .03 - .045 * .1 * 1.8666667 = .9616; std = .3 sqrt(.1) = .0948683.
    """
    one = torch.ones(1, 1, 1, 1)
    at = {"sigma": torch.tensor([0.6]), "sigma_next": torch.tensor([0.5])}
    mean, std = flow_constant_move(one, 0.3 * one, noise_level=0.3, **at)
    assert mean.item() == pytest.approx(0.9616, abs=1e-6)
    assert std.item() == pytest.approx(0.0948683, abs=1e-6)
    still, none = flow_constant_move(one, 0.3 * one, noise_level=0.0, **at)
    assert still.item() == pytest.approx(0.97) and none.item() == 0.0


@pytest.mark.parametrize(("eta", "spread"), [(0.0, 0.4984), (0.3, 0.4977)])
def test_constant_diffusion_keeps_the_marginals(
    eta: float, spread: float, generator: torch.Generator
) -> None:
    """Clean values N(2, .5^2) and the exact velocity: 400 moves from N(0, 1) end there.

    With x = (1 - s) c + s e, ``E[c | x] = 2 + (1 - s) .25 (x - 2 (1 - s)) / ((1 - s)^2 .25 + s^2)``
    and ``v = (x - E[c | x]) / s``. The deviations are those measured at 400 moves.
    """
    x = torch.randn(20_000, 1, 1, 1, generator=generator)
    levels = torch.linspace(1, 0, 401)
    for s, t in pairwise(levels):
        variance = (1 - s) ** 2 * 0.25 + s**2
        clean = 2 + (1 - s) * 0.25 * (x - 2 * (1 - s)) / variance
        at = {"sigma": s.expand(len(x)), "sigma_next": t.expand(len(x))}
        mean, std = flow_constant_move(x, (x - clean) / s, noise_level=eta, **at)
        x = mean + std.view(-1, 1, 1, 1) * torch.randn(x.shape, generator=generator)
    assert x.mean().item() == pytest.approx(2.0, abs=0.02)
    assert x.std().item() == pytest.approx(spread, abs=0.01)


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_moves_of_a_window_are_random_and_scored(
    folders: dict[str, str], prompts: list[Prompt], kind: str
) -> None:
    """Moves outside are those of the deterministic sampler; scored ones have ratio 1."""
    policy = load(folders, kind, window=2, window_start=1)
    trajectory = sample(policy, prompts)
    last = trajectory.mask[0].int().tolist()[3]
    assert trajectory.mask.int().tolist() == [[0, 1, 1, 0]] * 4 and last == 0
    scores = policy.scores(trajectory).log_probs
    assert trajectory.log_probs is not None
    assert (scores - trajectory.log_probs).abs().max() < 1e-4
    family = policy.adapter.family  # type: ignore[attr-defined]
    at = {k: v[:, 3] for k, v in trajectory.stepwise.items()}
    states = {k: v[trajectory.prompt_of] for k, v in trajectory.static.items()}
    scale = policy.adapter.settings.denoising.guidance_scale  # type: ignore[attr-defined]
    with torch.no_grad():
        answer = family.guidance.answer(
            family, policy.model, at["latent"], at["timestep"], states, scale
        )
    mean, _ = family.process.move(at["latent"], answer, at["level"], at["level_next"], 0.0)
    torch.testing.assert_close(at["next"], mean, atol=1e-4, rtol=1e-4)


def test_a_move_with_little_noise_may_be_left_out(
    folders: dict[str, str], prompts: list[Prompt], caplog: pytest.LogCaptureFixture
) -> None:
    """The last DDIM move to alpha .999 has a deviation of .028; with v its share is 99.6 %.

    Left out, it is the deterministic move, and the others are drawn as they were. Of the flow's
    moves none is so loud.
    """
    every = sample(load(folders, "v_prediction"), prompts)
    assert "move 4 of 4 has" in caplog.text and "min_std: 0.1" in caplog.text
    caplog.clear()
    policy = load(folders, "v_prediction", min_std=0.1)
    load(folders, "flow")
    assert not caplog.text
    trajectory = sample(policy, prompts)
    assert every.mask.all() and trajectory.mask.int().tolist() == [[1, 1, 1, 0]] * 4
    assert torch.equal(trajectory.stepwise["next"][:, :3], every.stepwise["next"][:, :3])
    ends = [t.stepwise["next"][:, 3] for t in (trajectory, every)]
    assert 0.01 < float((ends[0] - ends[1]).square().mean().sqrt()) < 0.06
    scores = policy.scores(trajectory).log_probs
    assert trajectory.log_probs is not None and (scores[:, 3] == 0).all()
    assert (scores - trajectory.log_probs).abs().max() < 1e-4
    with pytest.raises(ValueError, match="no usable density"):
        load(folders, "epsilon", min_std=1e-4)


def test_a_window_is_drawn_for_every_prompt(folders: dict[str, str], prompts: list[Prompt]) -> None:
    """The same for the rows of a prompt, and in company as alone."""
    policy = load(folders, "epsilon", window=2)
    many = prompts * 4
    trajectory = policy.sample(many, group_size=2, generators=generators(8, "w"))
    mask = trajectory.mask
    assert torch.equal(mask[0::2], mask[1::2]) and (mask.sum(1) == 2).all()
    assert len({tuple(row) for row in mask.tolist()}) > 1
    alone = policy.sample(many[3:4], group_size=2, generators=generators(8, "w")[3:4])
    assert torch.equal(alone.mask, mask[6:8])
    torch.testing.assert_close(
        alone.stepwise["next"], trajectory.stepwise["next"][6:8], atol=1e-4, rtol=1e-4
    )
    scores = policy.scores(trajectory).log_probs
    windows = [policy.scores(trajectory.steps(slice(i, i + 1))).log_probs for i in range(4)]
    torch.testing.assert_close(torch.cat(windows, dim=1), scores, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["epsilon", "flow"])
def test_a_group_may_begin_with_the_same_noise(
    folders: dict[str, str], prompts: list[Prompt], kind: str
) -> None:
    apart = sample(load(folders, kind), prompts).stepwise["latent"]
    shared = sample(load(folders, kind, shared_start=True), prompts)
    latent = shared.stepwise["latent"]
    assert torch.equal(latent[0, 0], latent[1, 0]) and not torch.equal(latent[0, 1], latent[1, 1])
    assert not torch.equal(latent[0, 0], latent[2, 0])
    assert not torch.equal(apart[0, 0], apart[1, 0])


def test_the_constant_flow_is_scored_as_it_is_sampled(
    folders: dict[str, str], prompts: list[Prompt]
) -> None:
    """Ratio 1, other moves than the marginal one's, another description, and its own default."""
    policy, other = load(folders, "flow", sde="constant"), load(folders, "flow")
    assert policy.adapter.settings.denoising.amount == 0.3  # type: ignore[attr-defined]
    assert policy.adapter.describe() != other.adapter.describe()
    trajectory = sample(policy, prompts)
    assert trajectory.log_probs is not None and trajectory.mask[:, :3].all()
    scores = policy.scores(trajectory).log_probs
    assert (scores - trajectory.log_probs).abs().max() < 1e-4
    assert (other.scores(trajectory).log_probs - scores).abs().max() > 0.01


@pytest.mark.parametrize("kind", ["epsilon", "flow"])
def test_distance_of_predictions(folders: dict[str, str], prompts: list[Prompt], kind: str) -> None:
    """0 against itself; else the mean square of the guided answers' difference, with a gradient."""
    policy = load(folders, kind)
    trajectory = sample(policy, prompts)
    want, reference = frozenset({"prediction_distance"}), copy.deepcopy(policy.model)
    same = policy.scores(trajectory, want=want, against=reference)
    assert same.kl is None and same.prediction_distance is not None
    assert same.prediction_distance.abs().max().item() == 0
    nudge(policy)
    found = policy.scores(trajectory, want=want, against=reference).prediction_distance
    assert found is not None and found.requires_grad
    family = policy.adapter.family  # type: ignore[attr-defined]
    at = {k: v[:, 1] for k, v in trajectory.stepwise.items()}
    states = {k: v[trajectory.prompt_of] for k, v in trajectory.static.items()}
    with torch.no_grad():
        mine, theirs = (
            family.guidance.answer(family, model, at["latent"], at["timestep"], states, 3.0)
            for model in (policy.model, reference)
        )
    expected = (mine - theirs).square().mean(dim=(1, 2, 3))
    torch.testing.assert_close(found[:, 1].detach(), expected, rtol=1e-3, atol=1e-6)
    with pytest.raises(ValueError, match="needs the reference network"):
        policy.scores(trajectory, want=want)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"window": 5}, "window of 5 moves from move 0 on does not fit into 4 steps"),
        ({"window": 2, "window_start": 3}, "from move 3 on"),
        ({"window_start": 1}, "set `window` too"),
    ],
)
def test_senseless_windows_are_refused(
    folders: dict[str, str], settings: dict[str, int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        load(folders, "epsilon", **settings)


def test_a_network_gone_astray_is_noticed(folders: dict[str, str], prompts: list[Prompt]) -> None:
    """Not a number in the weights: the message has prompt, row and move."""
    policy = load(folders, "epsilon")
    with torch.no_grad():
        next(policy.model.parameters()).fill_(float("nan"))
    with pytest.raises(ValueError, match=r"prompt 0 \(row 0\) is not finite after move 1"):
        sample(policy, prompts)


def test_the_settings_are_the_same_for_both_kinds() -> None:
    """What shapes paths is spelt alike for diffusions and flows."""
    common = {"shared_start", "window", "window_start", "step_fraction", "long_prompts", "buckets"}
    for spec in (DiffusionPolicy, FlowPolicy):
        assert common <= set(spec.__dataclass_fields__)
