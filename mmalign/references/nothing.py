"""No reference, said out loud."""

from __future__ import annotations

from dataclasses import dataclass

from mmalign.policy import Policy
from mmalign.protocols import AGAINST, Objective, Reference


@dataclass(frozen=True, slots=True, kw_only=True)
class NoReference:
    """None: for objectives that read no reference. Those that read one are refused."""

    def build(self, policy: Policy) -> Reference:
        """Never.

        Raises:
            ValueError: Always; there is nothing to build.
        """
        raise ValueError("`type: none` is no reference, so nothing can be computed from it")

    def check(self, objective: Objective) -> None:
        """Whether the objective does without.

        Raises:
            ValueError: It reads a reference.
        """
        name = type(objective).__name__
        if "reference" in objective.needs:
            raise ValueError(
                f"`reference: {{type: none}}`, and {name} compares the policy with its reference, "
                "so its loss is not defined without one; leave `reference` out for the default, or "
                "choose an objective that reads none (simpo, orpo, cpo, sft)"
            )
        if objective.needs & AGAINST:
            raise ValueError(
                f"`reference: {{type: none}}`, and {name} compares two networks; leave "
                "`reference` out for the default, or set the term's weight to 0"
            )
