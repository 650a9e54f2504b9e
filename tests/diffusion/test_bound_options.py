"""Options of the bound: weights of levels, offset noise, dropped prompts, sizes, overflow."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from PIL import Image
from torch import Tensor

from mmalign import rng
from mmalign.diffusion import DiffusionPolicy, buckets
from mmalign.objectives import DPO
from mmalign.policy import Policy
from mmalign.run import Run, Training, WeightEMA
from mmalign.selectors import BestWorst
from mmalign.sources import Preferences, Rollouts
from mmalign.types import Output, Preference, Prompt, Trajectory
from tests.diffusion.test_elbo import encode, load, picture
from tests.diffusion.test_saving import largest_difference
from tests.diffusion.tiny import generators

TALL, WIDE = (24, 16), (16, 24)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_min_snr_is_folded_into_the_log_probs(
    folders: dict[str, str], prompts: list[Prompt], kind: str
) -> None:
    """Of one trajectory: the plain log-prob times min(SNR, 5) / SNR, or over SNR + 1 for v."""
    plain, weighted = load(folders, kind), load(folders, kind, timestep_weight="min_snr")
    trajectory = encode(plain, prompts, "w")
    snr = trajectory.stepwise["level"] / (1 - trajectory.stepwise["level"])
    divisor = snr if kind == "epsilon" else snr + 1
    expected = plain.scores(trajectory).log_probs * snr.clamp(max=5.0) / divisor
    torch.testing.assert_close(weighted.scores(trajectory).log_probs, expected)
    assert plain.adapter.describe() != weighted.adapter.describe()
    other = load(folders, kind, timestep_weight="min_snr", snr_gamma=0.01)
    assert (other.scores(trajectory).log_probs > expected).any()


def test_offset_noise_is_one_number_a_channel(
    folders: dict[str, str], prompts: list[Prompt]
) -> None:
    """It is added to the noise that is drawn without it, and shared by the sides of a pair."""
    plain = encode(load(folders, "epsilon", draws=2), prompts, "o").stepwise["noise"]
    found = encode(load(folders, "epsilon", draws=2, offset_noise=0.1), prompts, "o")
    noise = found.stepwise["noise"]
    offset = noise - plain
    torch.testing.assert_close(offset, offset[..., :1, :1].expand_as(offset), atol=1e-6, rtol=0)
    assert 0.01 < offset[..., 0, 0].std().item() < 0.3
    assert torch.equal(noise[0], noise[1]) and not torch.equal(offset[0], offset[2])


def test_a_dropped_prompt_is_dropped_for_the_whole_pair(
    folders: dict[str, str], prompts: list[Prompt]
) -> None:
    """Recorded, drawn by the prompt's generator, and scored as the empty prompt is."""
    policy = load(folders, "epsilon", prompt_dropout=0.5)
    many = prompts * 20
    trajectory = encode(policy, many, "d")
    dropped = trajectory.stepwise["dropped"][:, 0]
    assert torch.equal(dropped[0::2], dropped[1::2]) and 5 < int(dropped[0::2].sum()) < 35
    empty = policy.adapter.family.embed.empty()["states"]  # type: ignore[attr-defined]
    for row in range(len(many)):
        same = torch.equal(trajectory.static["states"][row], empty[0])
        assert same == bool(dropped[2 * row])
    again = encode(policy, many, "d").stepwise["dropped"][:, 0]
    assert torch.equal(dropped, again)
    # One without a prompt scores as if it had been asked for nothing.
    nothing = [Prompt(content="")] * len(many)
    asked_nothing = encode(load(folders, "epsilon"), nothing, "d")
    rows = dropped.nonzero().squeeze(1)[:2]
    with torch.no_grad():
        found = policy.scores(trajectory.rows(rows)).log_probs
        expected = policy.scores(asked_nothing.rows(rows)).log_probs
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def shaped(seed: int, size: tuple[int, int]) -> Image.Image:
    return picture(seed, size=32).resize(size[::-1])


def encode_shaped(policy: Policy, sizes: list[tuple[int, int]], *key: str) -> Trajectory:
    """One prompt a size, two pictures each."""
    asked = [Prompt(content="a red circle")] * len(sizes)
    sides: list[list[Output]] = [
        [shaped(2 * i, s), shaped(2 * i + 1, s)] for i, s in enumerate(sizes)
    ]
    return policy.adapter.encode(asked, sides, generators=generators(len(sizes), *key))


@pytest.mark.parametrize("kind", ["epsilon", "flow"])
def test_sizes_in_company_score_as_they_do_alone(folders: dict[str, str], kind: str) -> None:
    """Three buckets in one batch: each row's error is that of its own part, and padding is unseen.

    A policy of that one size, on the same latent and noise without padding, says the same.
    """
    policy = load(folders, kind, buckets=(TALL, WIDE))
    mixed = encode_shaped(policy, [TALL, WIDE, TALL], "b")
    assert mixed.stepwise["latent"].shape == (6, 1, 4, 12, 12)
    assert mixed.stepwise["extent"][:, 0].tolist() == [[12, 8]] * 2 + [[8, 12]] * 2 + [[12, 8]] * 2
    scores = policy.scores(mixed).log_probs
    for size, rows in ((TALL, [0, 1, 4, 5]), (WIDE, [2, 3])):
        part = mixed.rows(torch.tensor(rows))
        alone = load(folders, kind, size=size)
        extent = (size[0] // 2, size[1] // 2)
        cut = {k: buckets.cropped(part.stepwise[k], extent) for k in ("latent", "noise")}
        told = {k: v for k, v in part.stepwise.items() if k in ("timestep", "level")}
        plain = Trajectory(
            mask=part.mask,
            prompt_of=part.prompt_of,
            static=part.static,
            stepwise=cut | told,
            outputs=part.outputs,
            separable=True,
        )
        torch.testing.assert_close(
            scores[rows], alone.scores(plain).log_probs, atol=1e-5, rtol=1e-5
        )
        own = encode_shaped(alone, [size], "x").stepwise["latent"]
        same = encode_shaped(policy, [size], "x").stepwise["latent"]
        torch.testing.assert_close(buckets.cropped(same, extent), own, atol=1e-5, rtol=1e-5)
    scores.sum().backward()
    twice = encode_shaped(load(folders, kind, buckets=(TALL, WIDE), draws=2), [WIDE])
    filled = policy.scores(Trajectory.concatenate([mixed, twice])).log_probs
    torch.testing.assert_close(filled[:6, :1], scores, atol=1e-5, rtol=1e-5)
    assert (filled[:6, 1:] == 0).all()
    drawn = policy.sample([Prompt(content="a red circle")], group_size=2, generators=generators(1))
    assert Trajectory.concatenate([mixed, drawn]).mask.shape == (8, 1)
    assert torch.isfinite(policy.scores(drawn).log_probs).all()


def test_a_picture_fits_a_bucket_or_is_refused(folders: dict[str, str]) -> None:
    """With resize it goes into the bucket of the nearest shape, cut at its edges, not squashed."""
    policy = load(folders, "epsilon", buckets=(TALL, WIDE))
    with pytest.raises(ValueError, match=r"row 0: .* 16 x 16 pixels .* draws 16 x 24, 24 x 16"):
        encode_shaped(policy, [(16, 16)])
    resizing = load(folders, "epsilon", buckets=(TALL, WIDE), resize=True)
    found = encode_shaped(resizing, [(40, 20), (30, 50)])
    assert found.stepwise["extent"][:, 0].tolist() == [[12, 8]] * 2 + [[8, 12]] * 2
    # 4 x 2 pixels in columns 0 to 3: the two in the middle are what a square keeps.
    strip = Image.new("RGB", (4, 2))
    for column in range(4):
        for line in range(2):
            strip.putpixel((column, line), (60 * column, 0, 0))
    kept = buckets.covering(strip, (2, 2))
    assert [kept.getpixel((x, 0))[0] for x in range(2)] == [60, 120]  # type: ignore[index]


def test_the_nearest_bucket_is_that_of_the_nearest_shape() -> None:
    """100 x 50 is twice as high as wide, as 200 x 100 and 10 x 5 are; of these the area decides.

    50 x 100 has its very area and the other shape.
    """
    assert buckets.nearest((100, 50), [(50, 100), (10, 5), (200, 100)]) == (200, 100)


def test_the_sides_of_a_pair_share_a_bucket(folders: dict[str, str]) -> None:
    """Two pictures of one prompt, and the two prompts of a pair whose sides differ in theirs."""
    policy = load(folders, "epsilon", buckets=(TALL, WIDE))
    message = r"row 1: the picture is 24 x 16 pixels and row 0, .* 16 x 24; .* of one bucket"
    prompt = Prompt(content="a red circle")
    with pytest.raises(ValueError, match=message):
        sides: list[list[Output]] = [[shaped(0, TALL), shaped(1, WIDE)]]
        policy.adapter.encode([prompt], sides, generators=generators(1))
    same = [rng.generator("pair") for _ in range(2)]
    with pytest.raises(ValueError, match=message):
        policy.adapter.encode(
            [prompt, prompt], [[shaped(0, TALL)], [shaped(1, WIDE)]], generators=same
        )


@pytest.mark.parametrize(
    ("sizes", "message"),
    [(((24, 17),), "bucket 24 x 17 .* multiples of 4"), ((TALL, TALL), "stands twice")],
)
def test_senseless_buckets_are_refused(
    folders: dict[str, str], sizes: tuple[tuple[int, int], ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        load(folders, "epsilon", buckets=sizes)


@dataclass(frozen=True, slots=True, kw_only=True)
class OnePair:
    """One pair, so many times over, whose sides differ in their prompts and share the picture."""

    count: int = 1

    def preferences(self) -> list[Preference]:
        same = picture(3)
        right, wrong = Prompt(content="a red circle"), Prompt(content="two large blue squares")
        pair = Preference(prompt=right, chosen=same, rejected=same, rejected_prompt=wrong)
        return [pair] * self.count

    def prompts(self) -> list[Prompt]:
        return []

    def demonstrations(self) -> list[tuple[Prompt, Output]]:
        return []


def test_one_picture_against_another_caption(folders: dict[str, str]) -> None:
    """The sides share picture, timestep and noise; what is compared is the captions alone."""
    policy = load(folders, "epsilon")
    batch = next(iter(Preferences(data=OnePair(), batch_size=1).build(policy, seed=0)))
    rows = batch.trajectory
    assert rows.prompt_of.tolist() == [0, 1]
    for name in ("latent", "noise", "timestep"):
        assert torch.equal(rows.stepwise[name][0], rows.stepwise[name][1]), name
    first, second = policy.scores(rows).log_probs.squeeze(1).tolist()
    assert first != second
    assert len(DPO().credit(batch).pairs) == 1  # type: ignore[arg-type]


def test_two_captions_of_a_pair_share_what_is_drawn(folders: dict[str, str]) -> None:
    """Offset noise, and whether the caption is dropped: of both sides of a pair, or of neither."""
    policy = load(folders, "epsilon", prompt_dropout=0.5, offset_noise=0.1)
    batch = next(iter(Preferences(data=OnePair(count=20), batch_size=20).build(policy, seed=0)))
    rows = batch.trajectory
    assert rows.prompt_of.tolist() == list(range(40))
    for name in ("noise", "dropped"):
        assert torch.equal(rows.stepwise[name][0::2], rows.stepwise[name][1::2]), name
    dropped = rows.stepwise["dropped"][0::2, 0]
    assert 3 < int(dropped.sum()) < 17
    same = (rows.static["states"][0::2] == rows.static["states"][1::2]).flatten(1).all(1)
    assert torch.equal(same, dropped)


@pytest.mark.parametrize("kind", ["epsilon", "flow"])
def test_few_rows_at_a_time_give_the_same_pictures(
    folders: dict[str, str], prompts: list[Prompt], kind: str
) -> None:
    """What saves memory in VAE and network changes nothing but the size of the calls."""
    found = []
    for rows in (1, 64):
        policy = load(folders, kind, rows_per_forward=rows)
        seen: list[int] = []
        vae = policy.adapter.family.pipe.vae  # type: ignore[attr-defined]
        vae.decoder.register_forward_pre_hook(lambda _, given, to=seen: to.append(len(given[0])))
        drawn = policy.sample(prompts, group_size=2, generators=generators(2, "r"))
        assert seen == ([1] * 4 if rows == 1 else [4])
        found.append((drawn, policy.scores(encode(policy, prompts, "r")).log_probs.detach()))
    (one, first), (all_, second) = found
    torch.testing.assert_close(first, second, atol=1e-5, rtol=1e-5)
    for mine, its in zip(one.outputs, all_.outputs, strict=True):
        assert largest_difference(mine, its) <= 1  # type: ignore[arg-type]


def test_a_vae_may_work_tile_by_tile(folders: dict[str, str], tmp_path: Path) -> None:
    """On a picture larger than its own size alone; both kinds of answers have their own cache."""
    asked = [Prompt(content="a red circle")]
    smooth = Image.linear_gradient("L").convert("RGB")
    found = {}
    for size in (16, 32):
        for tiled in (False, True):
            policy = load(
                folders, "epsilon", size=size, vae_tiling=tiled, cache=str(tmp_path), resize=True
            )
            rows = policy.adapter.encode(asked, [[smooth]], generators=generators(1))
            found[size, tiled] = rows.stepwise["latent"]
            drawn = policy.sample(asked, group_size=1, generators=generators(1))
            found[size, tiled, "picture"] = torch.from_numpy(np.array(drawn.outputs[0]))
    for more in ((), ("picture",)):
        assert torch.equal(found[16, False, *more], found[16, True, *more])
        assert found[32, False, *more].shape == found[32, True, *more].shape
        assert not torch.equal(found[32, False, *more], found[32, True, *more])


def test_an_average_of_the_weights_is_saved(folders: dict[str, str], tmp_path: Path) -> None:
    """After one update with decay 2/11: w0 + 9/11 (w1 - w0), in the folder that diffusers loads."""
    run = Run(
        policy=DiffusionPolicy(model=folders["epsilon"], steps=2, guidance_scale=1.0),
        objective=DPO(beta=100.0),
        source=Preferences(data=OnePair(), batch_size=1),
        training=Training(steps=1, learning_rate=1e-2, ema=WeightEMA(decay=0.9)),
        output=str(tmp_path),
    )
    trainer = run.build()
    before = {name: value.detach().clone() for name, value in trainer.parameters.items()}
    trainer.train()
    saved = UNet2DConditionModel.from_pretrained(tmp_path / "model", subfolder="unet").state_dict()
    for name, value in trainer.parameters.items():
        start = before[name]
        expected = start + 9 / 11 * (value.detach() - start)
        torch.testing.assert_close(saved[name.removeprefix("model.")], expected)


def test_a_vae_that_overflows_is_noticed(folders: dict[str, str], prompts: list[Prompt]) -> None:
    policy = load(folders, "epsilon")
    with torch.no_grad():
        policy.adapter.family.pipe.vae.quant_conv.weight.fill_(float("nan"))  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="latents of 4 of 4 pictures are not finite"):
        encode(policy, prompts)


def test_long_prompts_are_refused_or_counted(
    folders: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    """19 tokens where the encoder reads 18: an error, or a line that says so, once a prompt."""
    longer = Prompt(content=" ".join(["red"] * 17))
    with pytest.raises(ValueError, match=r"19 tokens is too long .* long_prompts=truncate"):
        encode(load(folders, "epsilon"), [longer])
    policy = load(folders, "epsilon", long_prompts="truncate")
    with caplog.at_level(logging.WARNING):
        cut = encode(policy, [longer])
        encode(policy, [longer])
    said = [r.getMessage() for r in caplog.records if "tokens" in r.getMessage()]
    assert [
        s for s in said if "of a prompt of 19 tokens the text encoder reads the first 18 (1" in s
    ]
    assert len([s for s in said if s.startswith("of a prompt")]) == 1
    assert cut.static["states"].shape[1] == 18


def test_the_best_and_the_worst_of_a_group_are_a_pair(
    folders: dict[str, str], prompts: list[Prompt]
) -> None:
    """Online DPO: ties make no pair and are counted; the sides share their draws."""

    class Both(OnePair):
        def prompts(self) -> list[Prompt]:
            return prompts

    def first_alone(asked: Sequence[Prompt], outputs: Sequence[Output]) -> Tensor:
        """0, 1, 2 for the first prompt's pictures and 5 for all of the second's."""
        found = [5.0 if p.content == prompts[1].content else -1.0 for p in asked]
        where = [i for i, value in enumerate(found) if value < 0]
        for number, row in enumerate(where):
            found[row] = float(number)
        return torch.tensor(found)

    spec = Rollouts(
        data=Both(), reward=first_alone, num_generations=3, batch_size=2, selector=BestWorst()
    )
    batch = DPO().credit(next(iter(spec.build(load(folders, "epsilon"), seed=0))))
    assert batch.counters["dropped/ties"] == 1 and batch.denominator == 1.0
    assert batch.pairs is not None and batch.reward[batch.pairs[0]].tolist() == [2.0, 0.0]
    noise = batch.trajectory.stepwise["noise"]
    assert torch.equal(noise[0], noise[1])
