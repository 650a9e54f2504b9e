"""What is measured of descriptions: invented objects, and how right they are in all."""

from __future__ import annotations

from collections.abc import Mapping

from mmalign.policy import Policy
from mmalign.tinyworld.claims.common import answers
from mmalign.tinyworld.judges import DescriptionJudge
from mmalign.tinyworld.tasks import TASKS

HELDOUT = 500
INVENTED = "hallucinated objects per description"
SHARE = "share of named objects that are hallucinated"
COVERED = "share of objects covered"
SCORE = "judge's score"


def described(policies: Mapping[str, Policy], *, seed: int) -> dict[str, dict[str, list[float]]]:
    """By policy and metric, the figures of one description of each of `HELDOUT` pictures.

    An object counts as hallucinated where no object of the picture has all that is said of it.
    """
    prompts = TASKS["describe"].prompts(split="heldout", size=HELDOUT, seed=7)
    judge = DescriptionJudge()
    found = {}
    for name, policy in policies.items():
        details = judge.details(prompts, answers(policy, prompts, seed=seed))
        found[name] = {
            INVENTED: [float(one.hallucinated) for one in details],
            SHARE: [one.hallucinated / max(one.stated, 1) for one in details],
            COVERED: [one.covered / one.true for one in details],
            SCORE: [one.score for one in details],
        }
    return found
