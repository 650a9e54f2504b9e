"""Guards that hold for every registered objective, whoever adds the next one."""

from dataclasses import replace

import pytest

from mmalign.invariants import odd_beta
from mmalign.objectives import OBJECTIVES
from tests.objectives import test_two_processes

# Its beta is the inverse of a target margin, not a scale of log-ratios.
OF_ANOTHER_KIND = {"ipo"}
# Takes log-probs as errors of a denoiser.
BOUNDS = {"mapo"}


def reductions():
    """By name, the reduction of the log-probs that each objective with a beta compares."""
    found = {}
    for name, kind in OBJECTIVES.items():
        objective = kind()
        reduction = getattr(objective, "reduction", None)
        if reduction is not None and name not in OF_ANOTHER_KIND | BOUNDS:
            found[name] = reduction
    return found


@pytest.mark.parametrize("name", reductions())
def test_a_beta_of_the_other_reduction_is_noticed(name):
    """DPO with SimPO's beta, SimPO with DPO's, and so on; the defaults pass."""
    objective, reduction = OBJECTIVES[name](), reductions()[name]
    assert odd_beta(objective, symbols=True) is None
    odd = replace(objective, beta=5.0 if reduction == "sum" else 0.1)
    said = odd_beta(odd, symbols=True)
    assert said is not None and type(objective).__name__ in said
    assert odd_beta(odd, symbols=False) is None


def test_formulas_are_guarded_by_what_they_compare():
    from mmalign.objectives import Logic

    assert "sums over steps" in str(odd_beta(Logic(beta=5.0), symbols=True))
    assert "means over steps" in str(odd_beta(Logic(log_probs="mean"), symbols=True))
    assert odd_beta(Logic(log_probs="mean", beta=2.0), symbols=True) is None


def test_every_objective_with_a_coupled_credit_is_tried_with_two_processes():
    """LatentEM's statistic is what it remembers, which has a test of its own there."""
    tried = {type(o) for o in test_two_processes.COUPLED.values()} | {OBJECTIVES["latent_em"]}
    coupled = {kind for kind in OBJECTIVES.values() if "coupled" in kind().needs}
    missing = sorted(kind.__name__ for kind in coupled - tried)
    assert not missing, f"add {missing} to COUPLED in tests/objectives/test_two_processes.py"
