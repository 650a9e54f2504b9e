"""What a policy is held to. Each reference is a small settings object that builds the real one.

A reference never sees a gradient. Most are fixed: a frozen copy, the policy's network without its
LoRA or with another one, an average of several models (`Soup`). Two follow the policy at a distance
(`EMA`, `Sync`). Where a reference shares the policy's network (LoRA off, a named LoRA) it costs no
second set of weights.
"""

from __future__ import annotations

from dataclasses import replace

from mmalign.policy import Policy
from mmalign.references.moving import EMA, MovingReference, Sync
from mmalign.references.network import (
    START_NAME,
    Frozen,
    LoRAOff,
    NamedLoRA,
    NetworkReference,
    default,
)
from mmalign.references.nothing import NoReference
from mmalign.references.recorded import Recorded, RecordedReference
from mmalign.references.soup import Soup
from mmalign.run import ReferenceSpec

__all__ = [
    "EMA", "START_NAME", "Frozen", "LoRAOff", "MovingReference", "NamedLoRA", "NetworkReference",
    "NoReference", "Recorded", "RecordedReference", "Soup", "Sync", "at_start", "chosen", "default",
]  # fmt: skip


def chosen(
    spec: ReferenceSpec | None, policy: Policy, *, start: str | None = None
) -> ReferenceSpec:
    """The reference a config asks for, with the default where it leaves the choice to us."""
    if spec is None:
        return default(policy, start=start)
    if isinstance(spec, Recorded) and spec.of is None:
        return replace(spec, of=default(policy, start=start))
    return spec


def at_start(
    spec: ReferenceSpec | None, policy: Policy, *, start: str | None = None
) -> ReferenceSpec:
    """What `chosen` is before training, as a network of its own.

    Scores on disk are of the training data; what they were computed from scores anything. One that
    follows the policy begins at it, and a run without a reference is compared with its start.
    """
    found = chosen(spec, policy, start=start)
    if isinstance(found, Recorded):
        assert found.of is not None
        found = found.of
    return default(policy, start=start) if isinstance(found, EMA | Sync | NoReference) else found
