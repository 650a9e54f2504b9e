"""Symbolic forms of losses: the sheet of seven, the way back, entailment, training a formula."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from mmalign.diagnostics import formulas
from mmalign.diagnostics.comparing import compare
from mmalign.diagnostics.logic import FORMS, STATEMENTS, Statement, Structure, written
from mmalign.functional import PAIRWISE
from mmalign.objectives import CPO, DPO, OBJECTIVES, ORPO, LengthNormalisedDPO, Logic, SimPO
from tests.objectives.test_pairwise_objectives import two_pairs

PROBABILITIES = (0.3, 0.2, 0.25, 0.4)
"""pw, pl, rw, rl."""


def logs(*values: float) -> list[Tensor]:
    return [torch.tensor([v], dtype=torch.float64).log() for v in values]


def rho(structure: Structure, values: tuple[float, ...] = PROBABILITIES) -> float:
    return float(structure.log_ratio(logs(*values)).exp())


def structure(name: str) -> Structure:
    return STATEMENTS[name].structure()


# ---- formulas --------------------------------------------------------------------------------


def test_truth_tables_by_hand():
    """Row r has M(w) = bit 0 and M(l) = bit 1, so over these two the rows 0, 1, 2, 3 are (no, no),
    (yes, no), (no, yes), (yes, yes), and repeat for the four values of the reference's atoms:
    M(l) -> M(w) fails in row 2 alone, hence 1011 in binary = b four times."""
    assert formulas.parse("M(l) -> M(w)") == 0xBBBB
    assert formulas.parse("M(w)") == 0xAAAA and formulas.parse("R(l)") == 0xFF00
    assert formulas.parse("M(w) <-> M(l)") == 0x9999
    assert formulas.parse("true") == 0xFFFF and formulas.parse("false") == 0
    assert formulas.essential(0xBBBB) == [0, 1] and formulas.essential(0xFF00) == [3]


@pytest.mark.parametrize(
    ("formula", "same"),
    [
        ("not M(w) and M(l)", "(not M(w)) and M(l)"),
        ("M(w) or M(l) and R(w)", "M(w) or (M(l) and R(w))"),
        ("M(w) -> M(l) -> R(w)", "M(w) -> (M(l) -> R(w))"),
        ("M(w) or M(l) -> R(w)", "(M(w) or M(l)) -> R(w)"),
        ("~M( w )&M(l)|R(w)", "(not M(w) and M(l)) or R(w)"),
        ("M(w) -> M(l)", "not M(w) or M(l)"),
        ("M(w) <-> M(l) <-> R(w)", "(M(w) <-> M(l)) <-> R(w)"),
        ("M(w) -> M(l) <-> R(l)", "(M(w) -> M(l)) <-> R(l)"),
    ],
)
def test_how_connectives_bind(formula, same):
    assert formulas.parse(formula) == formulas.parse(same)


@pytest.mark.parametrize(
    ("formula", "message"),
    [
        ("M(w) and", "column 9: expected"),
        ("M(w", "column 1: expected"),
        ("M(w) M(l)", "column 6: 'M(l)' is not expected"),
        ("(M(w) or M(l)", "column 14: ')' is missing"),
        ("M(x)", "column 1: expected"),
        ("M(w) + M(l)", "column 6: '+'"),
        ("", "column 1: expected"),
        ("chosen", "column 1: expected"),
    ],
)
def test_what_is_no_formula_is_refused(formula, message):
    with pytest.raises(ValueError) as caught:
        formulas.parse(formula)
    assert repr(formula) in str(caught.value) and message in str(caught.value)


# ---- compiling -------------------------------------------------------------------------------

COMPILED = [
    ("likelihood", 0.3 / 0.7, 1.203973),
    ("unlikelihood", 0.24 / 0.76, 1.427116),
    ("cpo", 1.5, 0.510826),
    ("orpo", 1.714286, 0.459532),
    ("conditional", 2.142857, 0.382992),
    ("unconditional", 6.142857, 0.150823),
    ("dpo", 2.4, 0.348307),
]


@pytest.mark.parametrize(("name", "ratio", "loss"), COMPILED)
def test_the_seven_forms(name, ratio, loss):
    """With pw .3, pl .2, rw .25, rl .4: likelihood .3/.7, loss -log .3; with unlikelihood
    .3 x .8 = .24 against .76, loss -log .24; cpo .3/.2; orpo .3 x .8 / (.2 x .7); conditional
    .3 / (.2 x .7); unconditional (1 - .14) / .14; dpo .3 x .4 / (.2 x .25). Losses log(1 + 1/rho).
    """
    assert rho(structure(name)) == pytest.approx(ratio, abs=1e-6)
    found = structure(name).loss(logs(*PROBABILITIES), beta=1.0)
    assert found.item() == pytest.approx(loss, abs=1e-6)


def test_dpo_without_its_ambiguous_rows_is_another_loss():
    """For: rl pw, with or without the other side, .4 x .3 = .12. Against: rw pl and not rl pw,
    .25 x .2 x (1 - .12) = .044. So rho is .12 / .044 = 2.727273, not DPO's 2.4."""
    bare = replace(STATEMENTS["dpo"], ambiguous="false")
    assert rho(bare.structure()) == pytest.approx(0.12 / 0.044, abs=1e-12)


def test_counts_equal_enumeration():
    """Every pair of a structure's tables, term by term, against sixteen products."""
    values = (0.9, 0.15, 0.4, 0.65)
    for statement in STATEMENTS.values():
        s = statement.structure()
        counts = []
        for table in (s.right, s.wrong):
            rows = [r for r in range(16) if table >> r & 1]
            products = [
                math.prod(p if r >> i & 1 else 1 - p for i, p in enumerate(values)) for r in rows
            ]
            counts.append(sum(products))
        assert rho(s, values) == pytest.approx(counts[0] / counts[1], rel=1e-12)


@pytest.mark.parametrize("name", STATEMENTS)
def test_gradients(name):
    inputs = [v.requires_grad_() for v in logs(*PROBABILITIES)]
    assert torch.autograd.gradcheck(
        lambda *given: structure(name).loss(given, beta=0.7), inputs, eps=1e-6
    )


def test_nothing_overflows_for_long_outputs():
    """Sums of -800 and -900 nats in float32: DPO's ratio is exact, the loss and gradient finite."""
    given = [torch.tensor([v], requires_grad=True) for v in (-800.0, -900.0, -850.0, -870.0)]
    ratio = structure("dpo").log_ratio(given)
    assert ratio.item() == 80.0
    for name in STATEMENTS:
        loss = structure(name).loss(given, beta=0.1)
        assert torch.isfinite(loss).all()
        loss.sum().backward()
    assert all(torch.isfinite(g.grad).all() for g in given if g.grad is not None)


def test_every_labelling_of_one_atom_is_a_structure():
    """With n atoms there are 4^(2^n) labellings of the rows: n = 1 gives 16. Labels are: for,
    against, both, neither; those without a row for, or without one against, have no rho. Of 16, 4
    have no row for, 4 none against, 1 neither: 16 - 4 - 4 + 1 = 9.
    """
    pieces = ("true", "false", "M(w)", "not M(w)")
    found = set()
    refused = 0
    for p, c, a in itertools.product(pieces, repeat=3):
        try:
            made = Statement(proposition=p, condition=c, ambiguous=a).structure()
        except ValueError as error:
            assert "no row" in str(error)
            refused += 1
            continue
        found.add((made.right, made.wrong))
    assert len(found) == 9 and refused > 0


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("likelihood", "pw / (1 - pw)"),
        ("cpo", "pw / pl"),
        ("orpo", "pw (1 - pl) / (pl (1 - pw))"),
        ("conditional", "pw / (pl (1 - pw))"),
        ("unconditional", "(1 - pl (1 - pw)) / (pl (1 - pw))"),
        ("dpo", "pw rl / (pl rw)"),
        ("unlikelihood", "pw (1 - pl) / (1 - pw (1 - pl))"),
    ],
)
def test_what_is_printed(name, text):
    assert written(structure(name)) == text


# ---- losses of the package -------------------------------------------------------------------


def test_forms_are_losses_of_the_package():
    assert set(FORMS) <= set(OBJECTIVES) and set(FORMS) - {"sft"} <= set(PAIRWISE)
    assert {form.statement for form in FORMS.values()} <= set(STATEMENTS)


FUNCTIONS_OF_RHO = {
    "dpo": lambda z: torch.nn.functional.softplus(-z),
    "cdpo_smoothing": lambda z: (
        -(0.9 * torch.nn.functional.logsigmoid(z)) - 0.1 * torch.nn.functional.logsigmoid(-z)
    ),
    "hinge": lambda z: (1 - z).clamp(min=0),
    "ln_dpo": lambda z: torch.nn.functional.softplus(-z),
    "ipo": lambda z: (z / 0.5 - 1) ** 2,
    "simpo": lambda z: torch.nn.functional.softplus(1.375 - z),
}


@pytest.mark.parametrize("name", FUNCTIONS_OF_RHO)
def test_losses_are_the_functions_of_rho_that_are_printed(name):
    """Beta 0.5; the margin 1 / (2 beta) of IPO is 1, so with z = beta log rho its loss is
    (z / beta - 1)^2."""
    s = [torch.tensor(v, dtype=torch.float64) for v in ([-2.2, -2.0], [-3.5, -1.8])]
    s += [torch.tensor(v, dtype=torch.float64) for v in ([-2.7, -1.8], [-3.2, -2.2])]
    n = [torch.tensor(v, dtype=torch.float64) for v in ([3.0, 2.0], [2.0, 4.0])]
    form = FORMS[name]
    counts = (*n, *n) if form.reduction == "mean" else (1, 1, 1, 1)
    given = [value / count for value, count in zip(s, counts, strict=True)]
    z = 0.5 * structure(form.statement).log_ratio(given)
    found = PAIRWISE[name](*s, *n, beta=0.5)
    torch.testing.assert_close(found, FUNCTIONS_OF_RHO[name](z), rtol=1e-12, atol=1e-12)


# ---- comparing -------------------------------------------------------------------------------


def test_dpo_is_cpo_held_against_the_reference():
    assert structure("cpo").against_reference() == structure("dpo")
    found = compare(structure("cpo"), structure("dpo"))
    assert found.entailment == "neither" and found.order == "either" and found.flat == "equal"
    with pytest.raises(ValueError, match="already"):
        structure("dpo").against_reference()


@pytest.mark.parametrize("name", [n for n in STATEMENTS if n != "dpo"])
def test_against_the_reference_divides_rho(name):
    """At pw .3, pl .2 and the reference's .25, .4: rho over the same rho of (.25, .4)."""
    own = structure(name)
    of_reference = rho(own, (0.25, 0.4, 0.5, 0.5))
    assert rho(own.against_reference()) == pytest.approx(rho(own) / of_reference, rel=1e-12)


ENTAILED = [
    ("unlikelihood", "likelihood"),
    ("likelihood", "unconditional"),
    ("unlikelihood", "unconditional"),
    ("unlikelihood", "cpo"),
    ("unlikelihood", "orpo"),
    ("unlikelihood", "conditional"),
    ("cpo", "conditional"),
    ("orpo", "conditional"),
    ("conditional", "unconditional"),
    ("orpo", "unconditional"),
    ("cpo", "unconditional"),
    ("likelihood", "conditional"),
]


@pytest.mark.parametrize(("strong", "weak"), ENTAILED)
def test_entailment_by_hand_and_its_consequence(strong, weak):
    """Rows for and against, as (M(w), M(l)): unlikelihood {10} | {00, 01, 11}, likelihood
    {10, 11} | {00, 01}, cpo {10, 11} | {01, 11}, orpo {10} | {01}, conditional {10, 11} | {01},
    unconditional {00, 10, 11} | {01}. The first entails where its rows for are among the other's
    and the other's rows against among its own."""
    first, second = structure(strong), structure(weak)
    found = compare(first, second)
    assert found.entailment == "first" and found.order == "first" and not found.examples
    assert compare(second, first).entailment == "second"
    generator = torch.Generator().manual_seed(0)
    p = torch.rand(4, 500, generator=generator, dtype=torch.float64).clamp(1e-4, 1 - 1e-4).log()
    gap = first.loss(list(p), beta=1.0) - second.loss(list(p), beta=1.0)
    assert bool((gap >= -1e-12).all()) and float(gap.max()) > 0.01


def test_entailment_among_the_named_ones_is_complete():
    names = [n for n in STATEMENTS if n != "dpo"]
    found = {
        (a, b) for a, b in itertools.permutations(names, 2) if structure(a).entails(structure(b))
    }
    assert found == set(ENTAILED)


def test_dpo_and_orpo_swap_places():
    """At a reference of .5, .5: rho of DPO is pw / pl and ORPO's is larger where pw > pl."""
    found = compare(structure("dpo"), structure("orpo"))
    assert (found.entailment, found.order, found.flat) == ("neither", "either", "either")
    larger_first, larger_second = found.examples
    assert larger_first.losses(1.0)[0] > larger_first.losses(1.0)[1]
    assert larger_second.losses(1.0)[0] < larger_second.losses(1.0)[1]
    for example in found.examples:
        for name, ratio in zip(("dpo", "orpo"), example.log_ratios, strict=True):
            assert ratio == pytest.approx(math.log(rho(structure(name), example.probabilities)))


def test_equal_counts_of_different_rows():
    """Rows {10} against {00} and {11} against {01}: both ratios are pw / (1 - pw), and neither
    entails the other."""
    one = Structure(formulas.parse("M(w) and not M(l)"), formulas.parse("not M(w) and not M(l)"))
    other = Structure(formulas.parse("M(w) and M(l)"), formulas.parse("not M(w) and M(l)"))
    found = compare(one, other)
    assert found.entailment == "neither" and found.order == "equal" and found.flat is None


# ---- training a formula ----------------------------------------------------------------------


def total(objective: object) -> float:
    scores, batch = two_pairs()
    return float(objective.loss(scores, objective.credit(batch)).total)  # type: ignore[attr-defined]


def said(name: str, **settings: float | str) -> Logic:
    s = STATEMENTS[name]
    return Logic(
        proposition=s.proposition, condition=s.condition, ambiguous=s.ambiguous, **settings
    )


def test_formulas_are_the_objectives_they_stand_for():
    """On F1. ORPO weighs its odds term, and here the likelihood is weighed instead, so
    0.1 x (formula with 10 x NLL) is ORPO at 0.1."""
    assert total(Logic(beta=0.5)) == pytest.approx(0.513015 + 0.854355, abs=1e-6)
    assert total(Logic(beta=0.5)) == pytest.approx(total(DPO(beta=0.5)), abs=1e-12)
    assert total(Logic(beta=0.5, sft_weight=0.3)) == pytest.approx(
        total(DPO(beta=0.5, sft_weight=0.3)), abs=1e-12
    )
    assert total(Logic(beta=5.0, log_probs="mean")) == pytest.approx(
        total(LengthNormalisedDPO(beta=5.0)), abs=1e-12
    )
    assert total(said("cpo", beta=0.5, sft_weight=1.0)) == pytest.approx(
        total(CPO(beta=0.5)), abs=1e-12
    )
    assert total(said("cpo", beta=2.5, log_probs="mean")) == pytest.approx(
        total(SimPO(beta=2.5, gamma=0.0)), abs=1e-12
    )
    odds = said("orpo", beta=1.0, log_probs="mean", sft_weight=10.0)
    assert 0.1 * total(odds) == pytest.approx(total(ORPO(beta=0.1)), abs=1e-12)


def test_a_likelihood_formula_is_sft():
    """-log sigmoid(log(p / (1 - p))) = -log p, with p the geometric mean: 2.2 / 3 + 2.0 / 2."""
    found = total(said("likelihood", beta=1.0, log_probs="mean"))
    assert found == pytest.approx(2.2 / 3 + 1.0, abs=1e-12)


def test_what_a_formula_needs():
    assert Logic().needs == {"exact", "reference"}
    assert said("cpo").needs == {"exact"}
    assert said("orpo", log_probs="mean").additive_over == "group"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"beta": 0.0}, "beta=0.0"),
        ({"sft_weight": -1.0}, "sft_weight"),
        ({"log_probs": "median"}, "median"),
        ({"proposition": "M(w) and"}, "column 9"),
        ({"proposition": "R(w)", "condition": "true", "ambiguous": "false"}, "policy"),
        ({"proposition": "M(w)", "condition": "M(w)", "ambiguous": "false"}, "against"),
        ({"proposition": "M(l) -> M(w)", "condition": "true", "ambiguous": "false"}, "1 - p"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Logic(**settings)
