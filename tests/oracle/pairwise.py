"""Pairwise losses in NumPy float64, from the papers' formulas; imports nothing of mmalign."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def sig(z: Array) -> Array:
    return 1 / (1 + np.exp(-z))


def log_sig(z: Array) -> Array:
    return -np.log1p(np.exp(-z))


def dpo(sw, sl, rw, rl, nw, nl, *, beta):
    return -log_sig(beta * (sw - rw - sl + rl))


def cdpo_smoothing(sw, sl, rw, rl, nw, nl, *, beta, label_smoothing=0.1):
    z = beta * (sw - rw - sl + rl)
    return -(1 - label_smoothing) * log_sig(z) - label_smoothing * log_sig(-z)


def rdpo(sw, sl, rw, rl, nw, nl, *, beta, label_smoothing=0.1):
    e, z = label_smoothing, beta * (sw - rw - sl + rl)
    return (-(1 - e) * log_sig(z) + e * log_sig(-z)) / (1 - 2 * e)


def ipo(sw, sl, rw, rl, nw, nl, *, beta, reduction="mean"):
    if reduction == "mean":
        return ((sw - rw) / nw - (sl - rl) / nl - 0.5 / beta) ** 2
    return (sw - rw - sl + rl - 0.5 / beta) ** 2


def hinge(sw, sl, rw, rl, nw, nl, *, beta):
    return np.maximum(0, 1 - beta * (sw - rw - sl + rl))


def ln_dpo(sw, sl, rw, rl, nw, nl, *, beta):
    return -log_sig(beta * ((sw - rw) / nw - (sl - rl) / nl))


def simpo(sw, sl, rw, rl, nw, nl, *, beta, gamma=1.375, label_smoothing=0.0):
    z = beta * (sw / nw - sl / nl) - gamma
    return -(1 - label_smoothing) * log_sig(z) - label_smoothing * log_sig(-z)


def alphapo(sw, sl, rw, rl, nw, nl, *, beta, gamma=0.1, alpha=0.25):
    reward_w = (1 - np.exp(sw / nw) ** -alpha) / alpha
    reward_l = (1 - np.exp(sl / nl) ** -alpha) / alpha
    return -log_sig(beta * (reward_w - reward_l) - gamma)


def cpo(sw, sl, rw, rl, nw, nl, *, beta, nll_coefficient=1.0):
    return -log_sig(beta * (sw - sl)) - nll_coefficient * sw / nw


def orpo(sw, sl, rw, rl, nw, nl, *, beta):
    pw, pl = np.exp(sw / nw), np.exp(sl / nl)
    return -np.log(pw) - beta * log_sig(np.log(pw / (1 - pw) / (pl / (1 - pl))))


def dpo_sft(sw, sl, rw, rl, nw, nl, *, beta, nll_coefficient=0.005, reduction="sum"):
    likelihood = sw / nw if reduction == "mean" else sw
    return -log_sig(beta * (sw - rw - sl + rl)) - nll_coefficient * likelihood


def exo_pair(sw, sl, rw, rl, nw, nl, *, beta, label_smoothing=1e-3):
    e, q = label_smoothing, sig(beta * (sw - rw - sl + rl))
    return q * (np.log(q) - np.log(1 - e)) + (1 - q) * (np.log(1 - q) - np.log(e))


def nca_pair(sw, sl, rw, rl, nw, nl, *, beta):
    w, l_ = beta * (sw - rw), beta * (sl - rl)
    return -log_sig(w) - 0.5 * log_sig(-w) - 0.5 * log_sig(-l_)


def bco(sw, sl, rw, rl, nw, nl, *, beta, shift=0.0):
    return -log_sig(beta * (sw - rw) - shift) - log_sig(-(beta * (sl - rl) - shift))


def sppo_hard(sw, sl, rw, rl, nw, nl, *, beta):
    return (sw - rw - 0.5 / beta) ** 2 + (sl - rl + 0.5 / beta) ** 2


def apo_zero(sw, sl, rw, rl, nw, nl, *, beta):
    return 1 - sig(beta * (sw - rw)) + sig(beta * (sl - rl))


def apo_down(sw, sl, rw, rl, nw, nl, *, beta):
    return sig(beta * (sw - rw)) + 1 - sig(beta * (sw - rw - sl + rl))


def discopop(sw, sl, rw, rl, nw, nl, *, beta, tau=0.05):
    z = beta * (sw - rw - sl + rl)
    m = sig(z / tau)
    return -log_sig(z) * (1 - m) + np.exp(-z) * m


def aot(sw, sl, rw, rl, nw, nl, *, beta, label_smoothing=0.0):
    z = beta * (np.sort(sw - sl) - np.sort(rw - rl))
    return -(1 - label_smoothing) * log_sig(z) - label_smoothing * log_sig(-z)


def aot_unpaired(sw, sl, rw, rl, nw, nl, *, beta, label_smoothing=0.0):
    z = beta * (np.sort(sw - rw) - np.sort(sl - rl))
    return -(1 - label_smoothing) * log_sig(z) - label_smoothing * log_sig(-z)


def f_dpo(sw, sl, rw, rl, nw, nl, *, beta, divergence="reverse_kl", alpha=0.5):
    link = {
        "reverse_kl": lambda h: h,
        "forward_kl": lambda h: -np.exp(-h),
        "js": log_sig,
        "alpha": lambda h: np.exp((alpha - 1) * h) / (alpha - 1),
    }[divergence]
    return -log_sig(beta * (link(sw - rw) - link(sl - rl)))


def latent_em(sw, sl, rw, rl, nw, nl, *, beta, reliability=0.9):
    p = sig(beta * (sw - rw - sl + rl))
    w = p * reliability / (p * reliability + (1 - p) * (1 - reliability))
    return -(w * np.log(p) + (1 - w) * np.log(1 - p))


def mapo(sw, sl, rw, rl, nw, nl, *, beta, snr=0.5, scale=1000.0):
    ew, el = -2 * sw / nw, -2 * sl / nl
    odds = snr * ew / np.expm1(snr * ew) - snr * el / np.expm1(snr * el)
    return ew - beta * log_sig(scale * odds)


ORACLE: dict[str, Callable[..., Array]] = {
    f.__name__: f
    for f in (
        dpo, cdpo_smoothing, rdpo, ipo, hinge, ln_dpo, simpo, alphapo, cpo, orpo, dpo_sft,
        exo_pair, nca_pair, bco, sppo_hard, apo_zero, apo_down, discopop, aot, aot_unpaired,
        f_dpo, latent_em, mapo,
    )
}  # fmt: skip
