"""Signs of over-optimisation while a run is made, without a judge; see the formulas' own file."""

from __future__ import annotations

import logging

from mmalign.diagnostics.concentration import overoptimised, per_output, top_k_entropy_bits
from mmalign.log import RunFolder
from mmalign.protocols import Likelihood, Want
from mmalign.types import Batch, Metric, Scores

TOP_K: Want = frozenset({"top_k_mass", "top_k_entropy"})
MASS, ENTROPY = "top_k/mass", "top_k/entropy_bits"
PATIENCE, DROP = 3, 0.05
"""Three measurements below the highest, the last by a twentieth: batches differ by less."""
logger = logging.getLogger(__name__)


class ConcentrationWatch:
    """Measures, now and then, how a policy's next-step probability is spread over symbols.

    On the rows of the batch that is trained on: the policy's own samples where the source draws
    them, recorded outputs otherwise.

    Args:
        every: Updates between two measurements, the first before any update; None for never.
        likelihood: The policy's.

    Raises:
        ValueError: The policy's log-probs are a bound, so its steps have no symbols.
    """

    def __init__(self, every: int | None, *, likelihood: Likelihood) -> None:
        if every is not None and every < 1:
            raise ValueError(f"training.watch_concentration={every} must be at least 1, or null")
        if every is not None and likelihood == "bound":
            raise ValueError(_NO_SYMBOLS)
        self.every = every
        self.warned = False

    def want(self, step: int) -> Want:
        """What scores are to hold in the update after ``step`` updates."""
        return TOP_K if self.every is not None and step % self.every == 0 else frozenset()

    def metrics(self, scores: Scores, piece: Batch, step: int) -> dict[str, Metric]:
        """Sums over the piece's outputs, and their number; nothing where none is due.

        Raises:
            ValueError: The policy's steps are draws of a Gaussian.
        """
        if not self.want(step):
            return {}
        if scores.top_k_mass is None or scores.top_k_entropy is None:
            raise ValueError(_NO_SYMBOLS)
        mask = piece.trajectory.mask
        bits = top_k_entropy_bits(scores.top_k_mass, scores.top_k_entropy)
        some, found = mask.any(1), {}
        for name, values in ((MASS, scores.top_k_mass), (ENTROPY, bits)):
            each = per_output(values.detach(), mask)
            found[name] = (each[some].sum(), some.sum())
        return found

    def warn(self, folder: RunFolder) -> None:
        """Say once where the curves of this run have turned down."""
        if self.warned:
            return
        lines = [line for line in folder.read("metrics.jsonl") if MASS in line]
        said = overoptimised(
            [line["step"] for line in lines],
            [line[MASS] for line in lines],
            [line[ENTROPY] for line in lines],
            patience=PATIENCE,
            drop=DROP,
        )
        if said is not None:
            logger.warning("%s", said)
            self.warned = True


_NO_SYMBOLS = (
    "training.watch_concentration counts the likeliest symbols of a step, and this policy's steps "
    "choose none (a denoiser's are draws of a Gaussian or of a bound); remove the setting"
)
