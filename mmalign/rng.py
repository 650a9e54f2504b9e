"""Randomness as a function of where we are, not of what ran before.

Every draw comes from a generator named by a key such as (seed, "rollout", epoch, prompt number).
A run can so be resumed from its counters alone, and a row's draws do not depend on the number of
processes or on the rows beside it.
"""

from __future__ import annotations

import hashlib
import random

import torch

Key = int | str


def seed_of(*key: Key) -> int:
    """A 63-bit seed from a key; different keys give independent seeds."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator(*key: Key) -> torch.Generator:
    """A CPU generator named by ``key``."""
    return torch.Generator().manual_seed(seed_of(*key))


def python_random(*key: Key) -> random.Random:
    """A Python random stream named by ``key``."""
    return random.Random(seed_of(*key))
