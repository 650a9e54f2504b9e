"""Ranking, displacement, KL estimates, concentration and sparsity: numbers and landmarks."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import save_file
from torch import Tensor, nn

from mmalign import lora
from mmalign.diagnostics import concentration, likelihood, ranking, sparsity
from mmalign.functional import dpo


def doubles(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


# ---- ranking ---------------------------------------------------------------------------------

S_W, S_L = doubles(-2.2, -2.0), doubles(-3.5, -1.8)
REF_W, REF_L = doubles(-2.7, -1.8), doubles(-3.2, -2.2)
N_W, N_L = doubles(3, 2), doubles(2, 4)


def test_ranking_by_hand():
    """Sums: A -2.2 >= -3.5, B -2.0 < -1.8. Means: A -0.733 >= -1.75, B -1.0 < -0.45. A tie is
    right, unlike in the accuracy of implicit rewards."""
    assert ranking.ranked_right(S_W, S_L, N_W, N_L).tolist() == [True, False]
    assert ranking.ranked_right(S_W, S_L, N_W, N_L, normalised=True).tolist() == [True, False]
    assert ranking.ranked_right(S_W, S_W, N_W, N_L).tolist() == [True, True]


def test_length_decides_between_sums_and_means():
    """-6 over 6 steps and -4 over 2: the sum prefers the latter, the mean (-1, -2) the former."""
    given = (doubles(-6.0), doubles(-4.0), doubles(6.0), doubles(2.0))
    assert not ranking.ranked_right(*given).any()
    assert ranking.ranked_right(*given, normalised=True).all()


@pytest.mark.parametrize(
    ("difference", "right", "loss"),
    [(1.9, False, 0.602653), (2.0, True, 0.598139), (2.1, True, None)],
)
def test_difficulty_is_the_margin_that_is_needed(difference, right, loss):
    """Reference -12 and -10: difficulty 2, threshold -log sigmoid(0.2) = 0.598139 at beta 0.1. A
    margin D of 1.9 leaves the chosen side 0.1 nats behind, at a loss of 0.602653."""
    ref_w, ref_l = doubles(-12.0), doubles(-10.0)
    hardness = ranking.difficulty(ref_w, ref_l)
    threshold = ranking.right_below(hardness, beta=0.1)
    assert hardness.item() == 2.0 and threshold.item() == pytest.approx(0.598139, abs=1e-6)
    s_w, s_l = ref_w + difference, ref_l
    one = doubles(1.0)
    assert ranking.ranked_right(s_w, s_l, one, one).item() is right
    found = dpo(s_w, s_l, ref_w, ref_l, one, one, beta=0.1)
    assert (found.item() <= threshold.item() + 1e-12) is right
    if loss is not None:
        assert found.item() == pytest.approx(loss, abs=1e-6)


def test_right_exactly_where_the_loss_is_below_the_threshold():
    draw = torch.Generator().manual_seed(0)
    s_w, s_l, ref_w, ref_l = -10 * torch.rand(4, 400, generator=draw, dtype=torch.float64)
    one = torch.ones(400)
    loss = dpo(s_w, s_l, ref_w, ref_l, one, one, beta=0.3)
    below = loss <= ranking.right_below(ranking.difficulty(ref_w, ref_l), beta=0.3)
    right = ranking.ranked_right(s_w, s_l, one, one)
    assert torch.equal(below, right) and 0 < int(right.sum()) < 400


def test_idealised_score_by_hand():
    """log(ref ratio) = -2; logit(.55) / .1 = 2.006707, logit(.6) / .1 = 4.054651."""
    ref_w, ref_l = doubles(-12.0, -12.0), doubles(-10.0, -10.0)
    found = ranking.idealised_score(ref_w, ref_l, beta=0.1, agreement=doubles(0.55, 0.6))
    assert found.tolist() == pytest.approx([0.006707, 2.054651], abs=1e-6)
    undecided = ranking.idealised_score(ref_w, ref_l, beta=0.1, agreement=0.5)
    assert undecided.tolist() == [-2.0, -2.0]
    for wrong in (0.0, 1.0, math.nan):
        with pytest.raises(ValueError, match="agreement"):
            ranking.idealised_score(ref_w, ref_l, beta=0.1, agreement=wrong)
    with pytest.raises(ValueError, match="beta"):
        ranking.idealised_score(ref_w, ref_l, beta=0.0)


def test_quantiles():
    """Of 0, 1, ..., 10: the tenth is 1, the half 5, nine tenths 9."""
    found = ranking.quantiles(torch.arange(11.0))
    assert found == pytest.approx({0.1: 1.0, 0.5: 5.0, 0.9: 9.0})
    assert all(math.isnan(v) for v in ranking.quantiles(torch.zeros(0)).values())


# ---- likelihood ------------------------------------------------------------------------------


def test_displacement_by_hand():
    """h_w = (0.5, -0.2), h_l = (-0.3, 0.4). Third: chosen -1, rejected -3: both fell, and the
    margin rose by 2."""
    found = likelihood.displacement(
        torch.cat([S_W, doubles(-4.0)]),
        torch.cat([S_L, doubles(-6.0)]),
        torch.cat([REF_W, doubles(-3.0)]),
        torch.cat([REF_L, doubles(-3.0)]),
    )
    assert found.chosen.tolist() == pytest.approx([0.5, -0.2, -1.0])
    assert found.margin.tolist() == pytest.approx([0.8, -0.6, 2.0])
    assert found.chosen_fell.tolist() == [False, True, True]
    assert found.both_fell.tolist() == [False, False, True]
    assert found.fell_while_margin_rose.tolist() == [False, False, True]
    same = likelihood.displacement(S_W, S_L, S_W, S_L)
    assert not same.chosen_fell.any() and same.margin.tolist() == [0.0, 0.0]


def test_kl_of_whole_outputs_by_enumeration():
    """Two steps over three symbols, the second step's logits depending on the first symbol: the
    means of k1 and k3 over all nine outputs are the KL of the outputs; policy logits (.3, -.2, .1)
    and reference logits (0, .5, -.4) at the first step alone give 0.131165, k2 0.123732."""
    policy, reference = doubles(0.3, -0.2, 0.1), doubles(0.0, 0.5, -0.4)
    p, r = policy.log_softmax(0), reference.log_softmax(0)
    one = likelihood.sample_kl(p[:, None], r[:, None], torch.ones(3, 1, dtype=torch.bool))
    means = {kind: float((p.exp() * value).sum()) for kind, value in one.items()}
    assert means == pytest.approx({"k1": 0.131165, "k2": 0.123732, "k3": 0.131165}, abs=1e-6)

    shift = doubles(0.5, 0.0, -1.0)
    second = [(policy + i * shift).log_softmax(0) for i in range(3)]
    rows = [(a, b) for a in range(3) for b in range(3)]
    log_probs = torch.stack([torch.stack([p[a], second[a][b]]) for a, b in rows])
    of_reference = torch.stack([torch.stack([r[a], r[b]]) for a, b in rows])
    weight = log_probs.sum(1).exp()
    exact = float((weight * (log_probs - of_reference).sum(1)).sum())
    found = likelihood.sample_kl(log_probs, of_reference, torch.ones(9, 2, dtype=torch.bool))
    assert float((weight * found["k1"]).sum()) == pytest.approx(exact, abs=1e-12)
    assert float((weight * found["k3"]).sum()) == pytest.approx(exact, abs=1e-12)
    assert abs(float((weight * found["k2"]).sum()) - exact) > 1e-3


def test_kl_is_0_at_the_reference_and_blind_to_padding():
    log_probs = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
    mask = torch.arange(5) < torch.tensor([[5], [3], [1], [4]])
    other = torch.where(mask, log_probs, torch.inf)
    for value in likelihood.sample_kl(other, log_probs, mask).values():
        assert value.tolist() == [0.0] * 4


# ---- concentration ---------------------------------------------------------------------------


def test_top_k_entropy_by_hand():
    """p = (1/2, 1/4, 1/8, 1/16, 1/16), k = 3: bits 1/2 + 1/2 + 3/8 = 1.375, mass 0.875; of
    q = (4, 2, 1) / 7: log2 7 - (4 x 2 + 2 x 1) / 7 = 2.807355 - 1.428571 = 1.378783."""
    p = doubles(0.5, 0.25, 0.125)
    mass = p.sum()
    q = p / mass
    entropy = -(q * q.log()).sum()
    found = concentration.top_k_entropy_bits(mass, entropy)
    assert found.item() == pytest.approx(1.375, abs=1e-12) and mass.item() == 0.875
    bare = concentration.top_k_entropy_bits(mass, entropy, renormalised=True)
    assert bare.item() == pytest.approx(1.378783, abs=1e-6)


def test_top_k_entropy_landmarks():
    """Uniform over V = 40 with k = 10: (10 / 40) log2 40. One certain symbol: 0."""
    found = concentration.top_k_entropy_bits(doubles(0.25, 1.0), doubles(math.log(10), 0.0))
    assert found.tolist() == pytest.approx([0.25 * math.log2(40), 0.0], abs=1e-12)


@pytest.mark.parametrize(
    ("values", "patience", "drop", "peak"),
    [
        ([1.0, 2.0, 1.9, 1.5], 2, 0.02, 1),
        ([1.0, 2.0, 1.5], 2, 0.02, None),
        ([1.0, 2.0, 1.99, 1.98], 2, 0.02, None),
        ([1.0, 2.0, 1.97, 1.96], 2, 0.02, 1),
        ([1.0, 2.0, 1.0, 2.0], 2, 0.02, None),
        ([3.0, 2.0, 1.0], 2, 0.02, 0),
        ([1.0, 1.0, 1.0, 1.0], 1, 0.0, None),
        ([0.0, 0.0, 0.0], 2, 0.02, None),
        ([1.0, 2.0, 3.0], 1, 0.0, None),
        ([], 1, 0.0, None),
    ],
)
def test_turning_down(values, patience, drop, peak):
    """2 % of 2.0 is 0.04, so 1.98 is not yet down and 1.96 is."""
    assert concentration.turned_down(values, patience=patience, drop=drop) == peak


def test_what_a_run_is_told():
    said = concentration.overoptimised([0, 10, 20, 30], [0.9, 0.9, 0.8, 0.7], [1.0, 1.1, 1.2, 1.3])
    assert said is not None and "mass has fallen from 0.9 at step 10 to 0.7" in said
    assert "entropy" not in said
    assert concentration.overoptimised([0, 10], [0.9, 0.95], [1.0, 1.1]) is None
    with pytest.raises(ValueError, match="patience=0"):
        concentration.turned_down([1.0], patience=0)


# ---- sparsity --------------------------------------------------------------------------------


def test_sparsity_by_hand():
    """bfloat16 makes 0.5039 to 0.50390625, 1e-5 to 1.00136e-5 (above the tolerance) and 1e-6,
    1.2e-5 about 1.1e-5 apart: 3 of 5 changed. In float32 1e-5 is no more than the tolerance, so 2
    changed."""
    before = torch.tensor([1.0, 0.5, 0.25, 0.0, 1e-6])
    after = torch.tensor([1.0, 0.5039, 0.25, 1e-5, 1.2e-5])
    found = sparsity.tensor_sparsity(before, after)
    assert (found.unchanged, found.total, found.share) == (2, 5, 0.4)
    assert sparsity.tensor_sparsity(before, after, dtype=torch.float32).unchanged == 3


def test_small_updates_vanish_in_the_cast():
    """1.001 is 1.0 in bfloat16, whose next number is 1.0078125."""
    before, after = torch.ones(10), torch.full((10,), 1.001)
    assert sparsity.tensor_sparsity(before, after).share == 1.0
    assert sparsity.tensor_sparsity(before, after, dtype=torch.float32).share == 0.0


def test_the_same_weights_are_all_unchanged():
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    for dtype in (torch.bfloat16, torch.float32):
        found = sparsity.compare_models(model, model, dtype=dtype)
        assert set(found) == {"0.weight", "0.bias", "1.weight", "1.bias"}
        assert sparsity.total(found) == sparsity.Sparsity(unchanged=23, total=23)
    assert sparsity.total({}).share == 1.0


def test_layers():
    """Names agree up to and with their first number."""
    each = {
        "model.layers.0.a.weight": sparsity.Sparsity(unchanged=1, total=4),
        "model.layers.0.b.0.weight": sparsity.Sparsity(unchanged=3, total=4),
        "model.layers.1.a.weight": sparsity.Sparsity(unchanged=4, total=4),
        "model.norm.weight": sparsity.Sparsity(unchanged=0, total=2),
    }
    found = {name: s.share for name, s in sparsity.by_layer(each).items()}
    assert found == {"model.layers.0": 0.5, "model.layers.1": 1.0, "model.norm": 0.0}


def test_a_lora_counts_as_the_weights_it_makes():
    """Rank 1, alpha 2: the update is 2 b a^T. With a = (1, 0) and b = (1, 0, 0) one of the six
    entries of the weight moves; bias and the other layer stay. A LoRA switched off moves none."""
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    tuned = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    tuned.load_state_dict(plain.state_dict())
    lora.attach(tuned, lora.LoRA(rank=1, alpha=2, target_modules=("0",)))
    untouched = sparsity.compare_models(plain, tuned)
    assert sparsity.total(untouched).share == 1.0
    with torch.no_grad():
        tuned[0].lora_A["policy"].weight.copy_(torch.tensor([[1.0, 0.0]]))
        tuned[0].lora_B["policy"].weight.copy_(torch.tensor([[1.0], [0.0], [0.0]]))
    found = sparsity.compare_models(plain, tuned)
    assert {n: s.total - s.unchanged for n, s in found.items()} == {
        "0.weight": 1, "0.bias": 0, "1.weight": 0, "1.bias": 0,
    }  # fmt: skip
    moved = dict(sparsity.merged(tuned))["0.weight"] - plain[0].weight
    assert moved[0, 0].item() == pytest.approx(2.0, abs=1e-6)
    lora.disable(tuned)
    assert sparsity.total(sparsity.compare_models(plain, tuned)).share == 1.0


def test_folders(tmp_path: Path):
    """Shards against one file: two of the four entries of b moved."""
    a, b = torch.ones(3), torch.zeros(4)
    moved = torch.tensor([0.0, 1.0, 0.0, -1.0])
    for name in ("one", "two", "none", "lora"):
        (tmp_path / name).mkdir()
    save_file({"a": a}, tmp_path / "one" / "model-1.safetensors")
    save_file({"b": b}, tmp_path / "one" / "model-2.safetensors")
    save_file({"a": a, "b": moved}, tmp_path / "two" / "model.safetensors")
    found = sparsity.compare_folders(tmp_path / "one", tmp_path / "two")
    assert {name: s.share for name, s in found.items()} == {"a": 1.0, "b": 0.5}
    assert sparsity.total(found).share == pytest.approx(5 / 7)
    with pytest.raises(ValueError, match="holds no"):
        sparsity.compare_folders(tmp_path / "one", tmp_path / "none")
    save_file({"x": a}, tmp_path / "lora" / "adapter_model.safetensors")
    with pytest.raises(ValueError, match="compare_models"):
        sparsity.compare_folders(tmp_path / "one", tmp_path / "lora")
    save_file({"c": a}, tmp_path / "none" / "model.safetensors")
    with pytest.raises(ValueError, match="different tensors"):
        sparsity.compare_folders(tmp_path / "one", tmp_path / "none")


def test_weights_that_do_not_correspond_are_refused():
    with pytest.raises(ValueError, match="different parameters"):
        sparsity.compare_models(nn.Linear(2, 2), nn.Linear(2, 2, bias=False))
    with pytest.raises(ValueError, match=r"weight: shapes \(2, 2\) and \(2, 3\) differ"):
        sparsity.compare_models(nn.Linear(2, 2), nn.Linear(3, 2))


def test_a_kind_of_lora_that_is_no_product_is_refused():
    from peft import inject_adapter_in_model

    model = nn.Sequential(nn.Linear(2, 2))
    inject_adapter_in_model(
        LoraConfig(r=1, target_modules=["0"], use_dora=True), model, adapter_name="policy"
    )
    with pytest.raises(ValueError, match="DoRA"):
        dict(sparsity.merged(model))
