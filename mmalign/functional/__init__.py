"""The mathematics: pure functions of tensors, one a formula, no state and no reduction over rows.

Hyperparameters are keyword-only. ``PAIRWISE`` names every pairwise loss; they share one signature,
described in `mmalign.functional.logistic`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from mmalign.functional.absolute import apo_down, apo_zero, bco, nca_pair
from mmalign.functional.advantage import gae, group_advantage, tied_rows, whiten
from mmalign.functional.anchored import anchor, stepwise_margin
from mmalign.functional.coupled import aot, aot_unpaired
from mmalign.functional.games import inpo, trpa, xpo
from mmalign.functional.gaussian import (
    gaussian_kl,
    gaussian_log_collision,
    gaussian_log_probs,
)
from mmalign.functional.lists import lambda_dpo, pro
from mmalign.functional.logistic import (
    cdpo_smoothing,
    discopop,
    dpo,
    exo_pair,
    f_dpo,
    hinge,
    label_em,
    label_posterior,
    latent_em,
    ln_dpo,
    rdpo,
)
from mmalign.functional.reference_free import alphapo, cpo, dpo_sft, mapo, orpo, simpo
from mmalign.functional.several import modpo
from mmalign.functional.spread import best_of, mean_pairwise
from mmalign.functional.squared import ipo, sppo_hard
from mmalign.functional.stable import exp_bounded, log1mexp, masked_mean, masked_sum
from mmalign.functional.step_pairs import step_pair
from mmalign.functional.surrogate import clamped_surrogate, clipped_surrogate, kl, value_loss
from mmalign.functional.token_level import (
    critical_weights,
    on_policy_log_weights,
    tdpo1,
    tdpo2,
)
from mmalign.functional.unpaired import bco_unpaired, kto

PAIRWISE: Mapping[str, Callable[..., Tensor]] = {
    "dpo": dpo,
    "cdpo_smoothing": cdpo_smoothing,
    "rdpo": rdpo,
    "ipo": ipo,
    "hinge": hinge,
    "ln_dpo": ln_dpo,
    "simpo": simpo,
    "alphapo": alphapo,
    "cpo": cpo,
    "orpo": orpo,
    "dpo_sft": dpo_sft,
    "exo_pair": exo_pair,
    "nca_pair": nca_pair,
    "bco": bco,
    "sppo_hard": sppo_hard,
    "apo_zero": apo_zero,
    "apo_down": apo_down,
    "discopop": discopop,
    "aot": aot,
    "aot_unpaired": aot_unpaired,
    "f_dpo": f_dpo,
    "latent_em": latent_em,
    "mapo": mapo,
}
"""Pairwise losses by key: ``(s_w, s_l, ref_s_w, ref_s_l, n_w, n_l, *, beta, ...) -> [N]``."""

__all__ = [
    "PAIRWISE",
    "alphapo",
    "anchor",
    "aot",
    "aot_unpaired",
    "apo_down",
    "apo_zero",
    "bco",
    "bco_unpaired",
    "best_of",
    "cdpo_smoothing",
    "clamped_surrogate",
    "clipped_surrogate",
    "cpo",
    "critical_weights",
    "discopop",
    "dpo",
    "dpo_sft",
    "exo_pair",
    "exp_bounded",
    "f_dpo",
    "gae",
    "gaussian_kl",
    "gaussian_log_collision",
    "gaussian_log_probs",
    "group_advantage",
    "hinge",
    "inpo",
    "ipo",
    "kl",
    "kto",
    "label_em",
    "label_posterior",
    "lambda_dpo",
    "latent_em",
    "ln_dpo",
    "log1mexp",
    "mapo",
    "masked_mean",
    "masked_sum",
    "mean_pairwise",
    "modpo",
    "nca_pair",
    "on_policy_log_weights",
    "orpo",
    "pro",
    "rdpo",
    "simpo",
    "sppo_hard",
    "step_pair",
    "stepwise_margin",
    "tdpo1",
    "tdpo2",
    "tied_rows",
    "trpa",
    "value_loss",
    "whiten",
    "xpo",
]
