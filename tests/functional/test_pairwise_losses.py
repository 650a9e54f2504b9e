"""Pairwise losses against a fixture, an independent implementation, landmarks and identities.

The fixture: two pairs whose token log-probs are

    A chosen    -0.5 -1.0 -0.7            reference -0.6 -1.2 -0.9
    A rejected  -1.5 -2.0                 reference -1.3 -1.9
    B chosen    -1.1 -0.9                 reference -1.0 -0.8
    B rejected  -0.4 -0.6 -0.5 -0.3       reference -0.5 -0.7 -0.5 -0.5

so that the sums are those below, the log-ratios h_w = (0.5, -0.2), h_l = (-0.3, 0.4) and
D = (0.8, -0.6). Lengths differ, so that a sum taken for a mean changes every number.
"""

import inspect
import math
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor

from mmalign import functional as F
from tests.oracle.pairwise import ORACLE


def doubles(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


CHOSEN, REJECTED = [[-0.5, -1.0, -0.7], [-1.1, -0.9]], [[-1.5, -2.0], [-0.4, -0.6, -0.5, -0.3]]
REF_CHOSEN, REF_REJECTED = (
    [[-0.6, -1.2, -0.9], [-1.0, -0.8]],
    [[-1.3, -1.9], [-0.5, -0.7, -0.5, -0.5]],
)
S_W, S_L = doubles(*map(sum, CHOSEN)), doubles(*map(sum, REJECTED))
REF_W, REF_L = doubles(*map(sum, REF_CHOSEN)), doubles(*map(sum, REF_REJECTED))
N_W, N_L = torch.tensor([3, 2]), torch.tensor([2, 4])
FIXTURE = (S_W, S_L, REF_W, REF_L, N_W, N_L)

NEGATED = None
# name, hyperparameters, losses, d loss / d s_w, d loss / d s_l (None: the negative of the former)
ROWS = [
    ("dpo", {}, (0.513015, 0.854355), (-0.200656, -0.287221), NEGATED),
    (
        "cdpo_smoothing", {"label_smoothing": 0.1},
        (0.553015, 0.824355), (-0.150656, -0.237221), NEGATED,
    ),
    ("rdpo", {"label_smoothing": 0.1}, (0.463015, 0.891855), (-0.263156, -0.349721), NEGATED),
    ("hinge", {}, (0.6, 1.3), (-0.5, -0.5), NEGATED),
    ("ipo", {"reduction": "mean"}, (0.466944, 1.44), (-0.455556, -1.2), (0.683333, 0.6)),
    ("ipo", {"reduction": "sum"}, (0.04, 2.56), (-0.4, -3.2), NEGATED),
    ("ln_dpo", {}, (0.617111, 0.744397), (-0.076750, -0.131245), (0.115125, 0.065622)),
    (
        "simpo", {"beta": 2.5, "gamma": 1.375},
        (0.271098, 2.811968), (-0.197882, -1.174892), (0.296823, 0.587446),
    ),
    (
        "cpo", {"nll_coefficient": 1.0},
        (1.153389, 1.744397), (-0.504828, -0.762490), (0.171495, 0.262490),
    ),
    ("orpo", {"beta": 0.1}, (0.753837, 1.139215), (-0.345224, -0.559440), (0.011219, 0.051843)),
    (
        "dpo_sft", {"nll_coefficient": 0.005, "reduction": "sum"},
        (0.524015, 0.864355), (-0.205656, -0.292221), (0.200656, 0.287221),
    ),
    (
        "dpo_sft", {"nll_coefficient": 0.005, "reduction": "mean"},
        (0.516682, 0.859355), (-0.202323, -0.289721), (0.200656, 0.287221),
    ),
    ("exo_pair", {"label_smoothing": 1e-3}, (2.099226, 3.286512), (-0.781659, -0.880876), NEGATED),
    ("nca_pair", {}, (1.299388, 1.465664), (-0.078368, -0.143734), (0.115643, 0.137458)),
    ("bco", {}, (1.196896, 1.542536), (-0.218912, -0.262490), (0.231285, 0.274917)),
    ("bco", {"shift": 0.05}, (1.196278, 1.541914), (-0.225083, -0.268715), NEGATED),
    ("sppo_hard", {}, (0.74, 3.4), (-1.0, -2.4), (1.4, 2.8)),
    ("apo_zero", {}, (0.900394, 1.074813), (-0.123067, -0.124688), (0.124300, 0.123758)),
    ("apo_down", {}, (0.963489, 1.049463), (0.002937, 0.002459), (0.120130, 0.122229)),
    ("discopop", {"tau": 0.05}, (0.670267, 0.855580), (-0.334588, -0.275958), NEGATED),
    (
        "f_dpo", {"divergence": "forward_kl"},
        (0.524483, 0.840378), (-0.123774, -0.347155), (0.275465, 0.190523),
    ),
    (
        "f_dpo", {"divergence": "js"},
        (0.602590, 0.766966), (-0.085439, -0.147240), (0.129999, 0.107467),
    ),
    (
        "f_dpo", {"divergence": "alpha", "alpha": 0.5},
        (0.519859, 0.846588), (-0.157861, -0.315595), (0.235501, 0.233799),
    ),
    ("latent_em", {"reliability": 0.9}, (0.540742, 0.815228), (-0.165998, -0.222010), NEGATED),
    # In sorted order: the margins' ranks swap the two pairs.
    ("aot", {}, (0.854355, 0.513015), (-0.200656, -0.287221), NEGATED),
    ("aot_unpaired", {}, (0.668460, 0.668460), (-0.243751, -0.243751), NEGATED),
]  # fmt: skip

# Values at policy = reference with beta 0.5, of the losses that only see log-ratios.
LANDMARKS = {
    "dpo": math.log(2),
    "cdpo_smoothing": math.log(2),
    "rdpo": math.log(2),
    "ipo": 1 / (4 * 0.5**2),
    "hinge": 1.0,
    "ln_dpo": math.log(2),
    "nca_pair": 2 * math.log(2),
    "bco": 2 * math.log(2),
    "sppo_hard": 1 / (2 * 0.5**2),
    "apo_zero": 1.0,
    "apo_down": 1.0,
    "discopop": (math.log(2) + 1) / 2,
    "aot": math.log(2),
    "aot_unpaired": math.log(2),
    "f_dpo": math.log(2),
    "latent_em": math.log(2),
}
VARIANTS = [
    *[(name, {}) for name in F.PAIRWISE],
    *[("f_dpo", {"divergence": d}) for d in ("forward_kl", "js", "alpha")],
    ("ipo", {"reduction": "sum"}),
    ("dpo_sft", {"reduction": "mean"}),
    ("aot", {"label_smoothing": 0.2}),
    ("aot_unpaired", {"label_smoothing": 0.2}),
    ("simpo", {"label_smoothing": 0.2}),
    ("bco", {"shift": 0.3}),
]


def random_pairs(count: int = 9) -> tuple[Tensor, ...]:
    n_w, n_l = torch.randint(1, 6, (2, count)).unbind(0)
    means = -torch.rand(4, count, dtype=torch.float64) * 2 - 0.05
    s_w, s_l, ref_w, ref_l = means[0] * n_w, means[1] * n_l, means[2] * n_w, means[3] * n_l
    return s_w, s_l, ref_w, ref_l, n_w, n_l


@pytest.mark.parametrize(("name", "hyper", "losses", "by_chosen", "by_rejected"), ROWS)
def test_fixture(name, hyper, losses, by_chosen, by_rejected):
    """Values and gradients of the two pairs; beta is 0.5 unless the row says otherwise."""
    s_w, s_l = S_W.clone().requires_grad_(), S_L.clone().requires_grad_()
    got = F.PAIRWISE[name](s_w, s_l, *FIXTURE[2:], **{"beta": 0.5, **hyper})
    got.sum().backward()
    torch.testing.assert_close(got, doubles(*losses), atol=1e-6, rtol=0)
    torch.testing.assert_close(s_w.grad, doubles(*by_chosen), atol=1e-6, rtol=0)
    expected = -doubles(*by_chosen) if by_rejected is None else doubles(*by_rejected)
    torch.testing.assert_close(s_l.grad, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize(("name", "hyper"), VARIANTS)
def test_agrees_with_an_independent_implementation(name, hyper):
    pairs = random_pairs()
    got = F.PAIRWISE[name](*pairs, beta=0.7, **hyper)
    expected = ORACLE[name](*[p.numpy().astype(float) for p in pairs], beta=0.7, **hyper)
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("name", "hyper"), VARIANTS)
def test_gradient_is_the_derivative(name, hyper):
    """Where the loss holds nothing fixed; EM's weights and BCO's shift are constants by design."""
    s_w, s_l, *rest = random_pairs(5)
    if name == "latent_em":
        gap = 0.7 * ((s_w - rest[0]) - (s_l - rest[1]))
        by_hand = -0.7 * (F.label_posterior(gap, reliability=0.9) - torch.sigmoid(gap))
        (got,) = torch.autograd.grad(
            F.latent_em(s_w.requires_grad_(), s_l, *rest, beta=0.7).sum(), s_w
        )
        torch.testing.assert_close(got, by_hand)
        return
    function = partial(F.PAIRWISE[name], beta=0.7, **hyper)
    assert torch.autograd.gradcheck(
        lambda w, l_: function(w, l_, *rest), (s_w.requires_grad_(), s_l.requires_grad_())
    )


@pytest.mark.parametrize("name", sorted(LANDMARKS))
def test_landmark_at_the_reference(name):
    s_w, s_l, _, _, n_w, n_l = random_pairs()
    got = F.PAIRWISE[name](s_w, s_l, s_w, s_l, n_w, n_l, beta=0.5)
    torch.testing.assert_close(got, torch.full_like(got, LANDMARKS[name]))


@pytest.mark.parametrize("name", ["simpo", "alphapo", "cpo", "orpo", "mapo"])
def test_reference_free_losses_take_none(name):
    s_w, s_l, _, _, n_w, n_l = random_pairs()
    without = F.PAIRWISE[name](s_w, s_l, None, None, n_w, n_l, beta=0.5)
    other = F.PAIRWISE[name](s_w, s_l, s_l, s_w, n_w, n_l, beta=0.5)
    torch.testing.assert_close(without, other, atol=0, rtol=0)


def test_one_signature():
    """Six tensors by position and name, hyperparameters by keyword, beta without a default."""
    six = ["s_w", "s_l", "ref_s_w", "ref_s_l", "n_w", "n_l"]
    for name, function in F.PAIRWISE.items():
        parameters = inspect.signature(function).parameters
        positional = [p.name for p in parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
        assert positional == six, name
        assert parameters["beta"].kind is inspect.Parameter.KEYWORD_ONLY, name
        assert parameters["beta"].default is inspect.Parameter.empty, name
        assert function.__name__ == name and function is getattr(F, name)


SHIFTED = {"dpo", "cdpo_smoothing", "rdpo", "hinge", "exo_pair", "discopop", "latent_em", "cpo"}


@pytest.mark.parametrize("name", ["nca_pair", "bco", "apo_zero", *sorted(SHIFTED)])
def test_shifting_both_sides(name):
    """A number c(x) added to both log-probs leaves losses of the difference alone unchanged."""
    hyper = {"nll_coefficient": 0.0} if name == "cpo" else {}
    s_w, s_l, *rest = random_pairs()
    function = partial(F.PAIRWISE[name], beta=0.5, **hyper)
    moved = (function(s_w + 3.0, s_l + 3.0, *rest) - function(s_w, s_l, *rest)).abs().max()
    assert (moved < 1e-12) == (name in SHIFTED)


def test_identities_with_dpo():
    pairs = random_pairs()
    s_w, s_l, ref_w, ref_l, n_w, n_l = pairs
    dpo = F.dpo(*pairs, beta=0.5)
    for other in (
        F.cdpo_smoothing(*pairs, beta=0.5, label_smoothing=0.0),
        F.rdpo(*pairs, beta=0.5, label_smoothing=0.0),
        F.latent_em(*pairs, beta=0.5, reliability=1.0),
        F.dpo_sft(*pairs, beta=0.5, nll_coefficient=0.0),
        F.f_dpo(*pairs, beta=0.5, divergence="alpha", alpha=1.0),
    ):
        torch.testing.assert_close(other, dpo)
    near = F.f_dpo(*pairs, beta=0.5, divergence="alpha", alpha=1 + 1e-7)
    torch.testing.assert_close(near, dpo, atol=1e-5, rtol=0)
    for i in range(len(dpo)):
        alone = [p[i : i + 1] for p in pairs]
        torch.testing.assert_close(F.aot(*alone, beta=0.5), dpo[i : i + 1])
        torch.testing.assert_close(F.aot_unpaired(*alone, beta=0.5), dpo[i : i + 1])
    four = torch.full_like(n_w, 4)
    torch.testing.assert_close(
        F.ln_dpo(s_w, s_l, ref_w, ref_l, four, four, beta=2.0), F.dpo(*pairs, beta=0.5)
    )
    reference_free = torch.zeros_like(s_w)
    torch.testing.assert_close(
        F.cpo(s_w, s_l, None, None, n_w, n_l, beta=0.5, nll_coefficient=0.0),
        F.dpo(s_w, s_l, reference_free, reference_free, n_w, n_l, beta=0.5),
    )


def test_other_identities():
    pairs = random_pairs()
    s_w, s_l, ref_w, ref_l, n_w, n_l = pairs
    one, zero = torch.ones_like(n_w), torch.zeros_like(s_w)
    torch.testing.assert_close(
        F.ipo(s_w, s_l, ref_w, ref_l, one, one, beta=0.3, reduction="mean"),
        F.ipo(*pairs, beta=0.3, reduction="sum"),
    )
    torch.testing.assert_close(
        F.simpo(*pairs, beta=2.0, gamma=0.0),
        F.ln_dpo(s_w, s_l, zero, zero, n_w, n_l, beta=2.0),
    )
    torch.testing.assert_close(
        F.alphapo(*pairs, beta=2.0, gamma=0.3, alpha=0.0), F.simpo(*pairs, beta=2.0, gamma=0.3)
    )
    torch.testing.assert_close(
        F.alphapo(*pairs, beta=2.0, gamma=0.3, alpha=1e-6),
        F.simpo(*pairs, beta=2.0, gamma=0.3),
        atol=1e-5,
        rtol=0,
    )
    torch.testing.assert_close(F.orpo(*pairs, beta=0.0), -s_w / n_w)


def test_rdpo_is_unbiased_and_cdpo_is_not():
    """(1 - e) L(D) + e L(-D) = -log sigmoid(beta D) for rDPO alone."""
    s_w, s_l, ref_w, ref_l, n_w, n_l = random_pairs()
    clean = F.dpo(s_w, s_l, ref_w, ref_l, n_w, n_l, beta=0.5)

    def flipped_on_average(name: str) -> Tensor:
        function = partial(F.PAIRWISE[name], beta=0.5, label_smoothing=0.2)
        kept = function(s_w, s_l, ref_w, ref_l, n_w, n_l)
        swapped = function(s_l, s_w, ref_l, ref_w, n_l, n_w)
        return 0.8 * kept + 0.2 * swapped

    torch.testing.assert_close(flipped_on_average("rdpo"), clean)
    assert (flipped_on_average("cdpo_smoothing") - clean).abs().min() > 1e-3


def test_cdpo_is_stationary_at_its_margin():
    """The gradient vanishes at D = log((1 - e) / e) / beta = log(9) / 0.5 = 4.394449."""
    margin = doubles(4.394449154672439).requires_grad_()
    zero, one = doubles(0.0), torch.tensor([1])
    F.cdpo_smoothing(margin, zero, zero, zero, one, one, beta=0.5, label_smoothing=0.1).backward()
    assert margin.grad.abs() < 1e-12


def test_ipo_stops_at_its_target():
    """At a margin of 1 / (2 beta) loss and gradient are 0; beyond it the gradient turns round."""
    zero, one = doubles(0.0, 0.0), torch.tensor([1, 1])
    margin = doubles(1 / (2 * 0.1), 1 / (2 * 0.1) + 1).requires_grad_()
    loss = F.ipo(margin, zero, zero, zero, one, one, beta=0.1)
    loss.sum().backward()
    torch.testing.assert_close(loss, doubles(0.0, 1.0))
    torch.testing.assert_close(margin.grad, doubles(0.0, 2.0))


def test_aot_compares_ranks():
    """Policy margins (1.3, -0.2) and reference margins (0.4, 0.5), beta 0.5.

    Sorted: (-0.2, 1.3) against (0.4, 0.5), so beta d = (-0.3, 0.4): losses 0.854355 and 0.513015,
    while the pairs themselves give beta D = (0.45, -0.35): 0.493249 and 0.883382.
    """
    zero, one = doubles(0.0, 0.0), torch.tensor([1, 1])
    args = (doubles(1.3, -0.2), zero, doubles(0.4, 0.5), zero, one, one)
    torch.testing.assert_close(
        F.aot(*args, beta=0.5), doubles(0.854355, 0.513015), atol=1e-6, rtol=0
    )
    torch.testing.assert_close(
        F.dpo(*args, beta=0.5), doubles(0.493249, 0.883382), atol=1e-6, rtol=0
    )


@pytest.mark.parametrize("name", sorted(F.PAIRWISE))
def test_order_of_the_pairs_is_irrelevant(name):
    pairs = random_pairs()
    order = torch.randperm(len(pairs[0]))
    before = F.PAIRWISE[name](*pairs, beta=0.5)
    after = F.PAIRWISE[name](*[p[order] for p in pairs], beta=0.5)
    expected = before if name.startswith("aot") else before[order]
    torch.testing.assert_close(after, expected)


def test_label_posterior():
    """``beta D`` = (0.4, -0.3) and reliability 0.9 give w = (0.930683, 0.869577).

    The reliability then moves to 0.9 + 0.1 (mean w - 0.9) = 0.900013.
    """
    gap = 0.5 * doubles(0.8, -0.6)
    w = F.label_posterior(gap, reliability=0.9)
    torch.testing.assert_close(w, doubles(0.930683, 0.869577), atol=1e-6, rtol=0)
    assert 0.9 * 0.9 + 0.1 * float(w.mean()) == pytest.approx(0.900013, abs=1e-6)
    torch.testing.assert_close(F.label_posterior(gap, reliability=0.5), torch.sigmoid(gap))
    at_reference = F.label_posterior(doubles(0, 0), reliability=doubles(0.7, 0.8))
    torch.testing.assert_close(at_reference, doubles(0.7, 0.8))


def test_mapo_published_numbers():
    """Errors 0.10 and 0.12, that is s = (-0.05, -0.06): 0.10 + 0.1 log(1 + exp(-4.908343))."""
    one = torch.tensor([1])
    loss = F.mapo(doubles(-0.05), doubles(-0.06), None, None, one, one, beta=0.1)
    torch.testing.assert_close(loss, doubles(0.1007358), atol=1e-6, rtol=0)
    s = doubles(-0.0).requires_grad_()
    F.mapo(s, doubles(-1e-9), None, None, one, one, beta=0.1).backward()
    assert torch.isfinite(s.grad).all()


def test_mean_of_two_opposite_margins_is_not_the_loss_of_their_mean():
    """Margins +2 and -2 average to 0, whose loss is log 2; the losses average to more."""
    zero, one = doubles(0.0, 0.0), torch.tensor([1, 1])
    loss = F.dpo(doubles(2.0, -2.0), zero, zero, zero, one, one, beta=1.0).mean()
    assert float(loss) == pytest.approx((0.126928 + 2.126928) / 2, abs=1e-6)


@pytest.mark.parametrize("name", sorted(F.PAIRWISE))
@pytest.mark.parametrize("size", [1e4, -1e4])
def test_extreme_margins_stay_finite(name, size):
    """A margin of 10000 nats either way, float32: finite loss and gradient.

    Denoisers have no such scores: an error of 20000 is not a picture.
    """
    if name == "mapo":
        size /= 1e4
    zero, one = torch.zeros(2), torch.tensor([1, 1])
    s_w = torch.tensor([min(size, 0.0), -0.1]).requires_grad_()
    s_l = torch.tensor([min(-size, 0.0), -0.1]).requires_grad_()
    loss = F.PAIRWISE[name](s_w, s_l, zero, zero, one, one, beta=0.5)
    loss.sum().backward()
    assert torch.isfinite(loss).all() and torch.isfinite(s_w.grad).all()
    assert torch.isfinite(s_l.grad).all()


def test_a_row_without_steps_divides_by_one():
    none = torch.tensor([0])
    loss = F.ipo(doubles(0.0), doubles(0.0), doubles(0.0), doubles(0.0), none, none, beta=0.5)
    torch.testing.assert_close(loss, doubles(1.0))


@pytest.mark.parametrize(
    ("name", "hyper"),
    [
        ("cdpo_smoothing", {"label_smoothing": 0.6}),
        ("cdpo_smoothing", {"label_smoothing": -0.1}),
        ("rdpo", {"label_smoothing": 0.5}),
        ("exo_pair", {"label_smoothing": 0.0}),
        ("ipo", {"reduction": "max"}),
        ("dpo_sft", {"reduction": "max"}),
    ],
)
def test_senseless_hyperparameters_are_refused(name, hyper):
    with pytest.raises(ValueError, match=next(iter(hyper))):
        F.PAIRWISE[name](*FIXTURE, beta=0.5, **hyper)
