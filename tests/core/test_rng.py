"""Chance is a function of a key."""

from __future__ import annotations

import torch

from mmalign import rng

KEYS = [(0,), (1,), ("0",), (0, 1), (1, 0), (0, "order", 1), (0, "order", 2), ("0", 1), ("01",)]


def test_different_keys_have_different_seeds() -> None:
    """Types count (0 is not "0"), and so does where one part ends ("0", "1" is not "01")."""
    keys = {repr(key): key for key in [*KEYS, ("0", "1"), ("a, 'b",), ("a", "b")]}
    seeds = {rng.seed_of(*key) for key in keys.values()}
    assert len(seeds) == len(keys)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_a_key_is_a_stream() -> None:
    """The same key gives the same numbers, whatever was drawn before and from whom."""
    first = torch.rand(5, generator=rng.generator(3, "x"))
    torch.rand(7)
    assert torch.equal(first, torch.rand(5, generator=rng.generator(3, "x")))
    assert not torch.equal(first, torch.rand(5, generator=rng.generator(4, "x")))
    assert rng.python_random(3, "x").random() == rng.python_random(3, "x").random()


def test_a_seed_is_the_same_in_every_process() -> None:
    """Unlike Python's own hash, which is salted; a run resumed next year continues this one."""
    assert rng.seed_of(3, "x", 5) == 1389873707995311469


def test_neighbouring_keys_are_independent() -> None:
    """Means of 2000 uniform numbers, one of each key: 0.5 with deviation 1 / sqrt(12 * 2000)."""
    firsts = torch.stack([torch.rand((), generator=rng.generator(0, i)) for i in range(2000)])
    assert abs(float(firsts.mean()) - 0.5) < 4 / (12 * 2000) ** 0.5
    correlation = torch.corrcoef(torch.stack([firsts[:-1], firsts[1:]]))[0, 1]
    assert abs(float(correlation)) < 4 / 2000**0.5
