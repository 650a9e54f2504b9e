"""Which labels are right: numbers, what a run remembers of its annotators, guards."""

import math
from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch

from mmalign.objectives import CPO, DPO, IPO, DPOWithSFT, LatentEM, RobustDPO, SimPO, pairwise
from mmalign.types import Batch, Scores
from tests.objectives.test_pairwise_objectives import doubles, two_pairs


def remembered(
    objective: LatentEM, memory: Mapping[str, float], **changes: object
) -> tuple[Scores, Batch, Mapping[str, float]]:
    scores, batch = two_pairs()
    batch = objective.credit(replace(batch, behaviour=scores.log_probs, **changes))
    return scores, *objective.remember(batch, memory)


def test_the_fixture():
    """beta D = (0.4, -0.3), logit(0.9) = 2.197225: w = sigmoid(2.597225, 1.897225) = (0.930683,
    0.869577). Losses w log(1 + exp(-z)) + (1 - w) log(1 + exp(z)): 0.540742 and 0.815228. The
    reliability moves to 0.9 + 0.1 ((0.930683 + 0.869577) / 2 - 0.9) = 0.900013.
    """
    scores, batch, memory = remembered(LatentEM(of=DPO(beta=0.5)), {})
    assert dict(memory) == {"0": pytest.approx(0.900013, abs=5e-7)}
    assert batch.metrics["labels_right"] == (pytest.approx(0.930683 + 0.869577, abs=2e-6), 2.0)
    assert batch.metrics["reliability"] == (pytest.approx(1.8), 2.0)
    leaf = scores.log_probs.clone().requires_grad_()
    loss = LatentEM(of=DPO(beta=0.5)).loss(Scores(log_probs=leaf), batch)
    assert loss.total.item() == pytest.approx(0.540742 + 0.815228, abs=2e-6)
    loss.total.backward()
    by_hand = doubles(-0.165998, 0.165998, 0.222010, -0.222010)
    torch.testing.assert_close(leaf.grad[:, 0], by_hand, atol=2e-6, rtol=0)


def test_the_next_batch_knows_what_the_last_one_taught():
    """Told 0.6: w = sigmoid(0.4 + logit(0.6), -0.3 + logit(0.6)) = (0.691141, 0.526347)."""
    _, batch, memory = remembered(LatentEM(of=DPO(beta=0.5)), {"0": 0.6})
    assert torch.allclose(batch.pair_anchor, doubles(0.6))
    mean = (1 / (1 + math.exp(-0.4) * 2 / 3) + 1 / (1 + math.exp(0.3) * 2 / 3)) / 2
    assert memory["0"] == pytest.approx(0.6 + 0.1 * (mean - 0.6), abs=1e-9)
    untouched = {"0": 0.6}
    remembered(LatentEM(of=DPO(beta=0.5)), untouched)
    assert untouched == {"0": 0.6}


def test_annotators_are_told_apart():
    """Pair A is 7's, pair B 8's; 9 has no pair and keeps his reliability."""
    who = torch.tensor([7, 7, 8, 8])
    _, batch, memory = remembered(LatentEM(of=DPO(beta=0.5)), {"9": 0.7, "8": 0.8}, annotator=who)
    torch.testing.assert_close(batch.pair_anchor[:, 0], doubles(0.9, 0.8))
    eight = 1 / (1 + math.exp(0.3) * 0.25)
    assert dict(memory) == {
        "7": pytest.approx(0.9 + 0.1 * (0.930683 - 0.9), abs=1e-6),
        "8": pytest.approx(0.8 + 0.1 * (eight - 0.8), abs=1e-9),
        "9": 0.7,
    }


def test_the_reliability_is_bounded():
    """Strong margins (beta D = 400 and -300) teach 1 and 0: 0.999 and the lowest."""
    who = torch.tensor([7, 7, 8, 8])
    _, _, memory = remembered(LatentEM(of=DPO(beta=500.0), rate=1.0, lowest=0.6), {}, annotator=who)
    assert dict(memory) == {"7": pytest.approx(0.999), "8": pytest.approx(0.6)}


def test_settings_of_the_memory():
    _, _, kept = remembered(LatentEM(of=DPO(beta=0.5), rate=0.0), {})
    assert dict(kept) == {"0": 0.9}


def test_a_pair_that_weighs_nothing_teaches_nothing():
    pairs, weight = torch.tensor([[0, 1], [3, 2]]), doubles(1, 0)
    _, batch, memory = remembered(LatentEM(of=DPO(beta=0.5)), {}, pairs=pairs, coefficient=weight)
    assert memory["0"] == pytest.approx(0.9 + 0.1 * (0.930683 - 0.9), abs=1e-6)
    assert batch.metrics["reliability"][1] == 1.0


def test_certain_labels_are_dpo():
    """Reliability 1 lies below the clamp's reach: it is given as what the batch was marked with."""
    scores, batch, _ = remembered(LatentEM(of=DPO(beta=0.5)), {})
    certain = replace(batch, pair_anchor=torch.ones_like(batch.pair_anchor))
    dpo = DPO(beta=0.5)
    assert LatentEM(of=DPO(beta=0.5)).loss(scores, certain).total.item() == pytest.approx(
        dpo.loss(scores, dpo.credit(batch)).total.item(), abs=1e-12
    )


def test_without_a_memory_the_reliability_is_the_first():
    scores, batch, _ = remembered(LatentEM(of=DPO(beta=0.5)), {})
    marked = LatentEM(of=DPO(beta=0.5)).loss(scores, batch).total
    bare = LatentEM(of=DPO(beta=0.5)).loss(scores, replace(batch, pair_anchor=None)).total
    torch.testing.assert_close(bare, marked)


@pytest.mark.parametrize(
    ("base", "posterior", "loss"),
    [
        (DPO(beta=0.5), (0.930683, 0.869577), (0.540742, 0.815228)),
        (IPO(beta=0.5), (0.969643, 0.801743), (0.286694, 1.012495)),
        (SimPO(beta=2.5, gamma=1.375), (0.997164, 0.519591), (0.035670, 1.214403)),
        (CPO(beta=0.1, nll_coefficient=1.0), (0.965904, 0.835789), (0.314980, 0.924621)),
    ],
    ids=["dpo", "ipo", "simpo", "cpo"],
)
def test_the_base_loss(base, posterior, loss):
    """Pairs of 3 and 2, 2 and 4 steps; g by the base loss, w = sigmoid(g + 2.197225).

    dpo: beta D = 0.4, -0.3. ipo: (-m - 1)^2 - (m - 1)^2 = 4 m of means m = 0.5/3 + 0.3/2 = 0.316667
    and -0.2/2 - 0.4/4 = -0.2. simpo: log sigmoid(x - 1.375) - log sigmoid(-x - 1.375) with x 2.5
    times 1.016667 and -0.55: 3.665281 and -2.118820. cpo: 0.1 (1.3, -0.2) and the difference of the
    means: 1.146667 and -0.57.
    """
    objective = LatentEM(of=base)
    scores, batch, memory = remembered(objective, {})
    assert batch.metrics["labels_right"][0] == pytest.approx(sum(posterior), abs=2e-6)
    assert memory["0"] == pytest.approx(0.9 + 0.1 * (sum(posterior) / 2 - 0.9), abs=1e-6)
    assert objective.loss(scores, batch).total.item() == pytest.approx(sum(loss), abs=2e-6)


@pytest.mark.parametrize("base", [DPO(beta=0.5), IPO(), SimPO(), RobustDPO(), DPOWithSFT()])
def test_the_gradient_holds_the_posterior_fixed(base):
    """By g it is sigmoid(g) - w; of a label surely right it is that of -log sigmoid(g)."""
    objective = LatentEM(of=base)
    scores, batch, _ = remembered(objective, {})

    def gradient(total: torch.Tensor, leaf: torch.Tensor) -> torch.Tensor:
        return torch.autograd.grad(total, leaf)[0]

    leaf = scores.log_probs.clone().requires_grad_()
    g = objective.gap(*pairwise.sides(leaf, batch))
    w = (g.detach() + math.log(9)).sigmoid()
    by_hand = gradient(((g.detach().sigmoid() - w) * g).sum(), leaf)
    got = gradient(objective.loss(Scores(log_probs=leaf), batch).total, leaf)
    torch.testing.assert_close(got, by_hand)
    assert got.abs().max() > 1e-4
    turned = replace(batch, pairs=batch.pairs.flip(1))
    torch.testing.assert_close(objective.gap(*pairwise.sides(leaf, turned)), -g)
