"""Another reference, computed once per row and recorded on disk."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mmalign import fingerprints
from mmalign.policy import Policy
from mmalign.protocols import Following, Reference
from mmalign.references.network import NetworkReference, default
from mmalign.run import ReferenceSpec
from mmalign.store import TensorStore
from mmalign.types import Trajectory


class RecordedReference:
    """Scores of another reference, computed once per distinct row and kept on disk.

    The store's folder is named by the inner reference's fingerprint: weights, LoRA and its scale,
    dtype, the adapter's settings (the sampling temperature among them) and code versions. A row's
    key is a hash of everything the network is given, so another tokenizer, template or truncation
    gives other ids and hence other keys, and of the precision of autocast. A stale score therefore
    cannot be read. Bounds are recorded for their (timestep, noise) draws: keep them fixed with
    ``fixed_noise: true`` on the source. A picture's latent has the same bits in every epoch.

    Args:
        inner: Computes what is missing.
        folder: Where stores are kept.
        parts: What the inner reference's scores depend on; None for its fingerprint alone.
    """

    def __init__(
        self, *, inner: Reference, folder: Path, parts: Mapping[str, str] | None = None
    ) -> None:
        self.inner = inner
        self.starts_at_policy = bool(getattr(inner, "starts_at_policy", False))
        self.store = TensorStore(folder, parts or {"reference": inner.fingerprint()})

    def scores(self, trajectory: Trajectory) -> Tensor:
        """``[B, T]`` float32 log-probs; only rows never seen before are computed."""
        precision = fingerprints.precision_key(trajectory.mask.device.type)
        keys = [key + precision for key in fingerprints.row_keys(trajectory)]
        known = {key: self.store.get(key) for key in dict.fromkeys(keys)}
        found = {key: entry["score"] for key, entry in known.items() if entry is not None}
        missing = {key: i for i, key in enumerate(keys) if key not in found}
        if missing:
            part = trajectory.rows(torch.tensor(list(missing.values())))
            for (key, i), row in zip(missing.items(), self.inner.scores(part).cpu(), strict=True):
                found[key] = row[trajectory.mask[i].cpu()]
                self.store.add(key, {"score": found[key]})
        result = torch.zeros(trajectory.mask.shape, dtype=torch.float32)
        for i, key in enumerate(keys):
            result[i, trajectory.mask[i].cpu()] = found[key]
        return result.to(trajectory.mask.device)

    def fingerprint(self) -> str:
        """The inner reference's."""
        return self.inner.fingerprint()

    def close(self) -> None:
        """Write what is still in memory."""
        self.store.flush()


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """Another reference, computed once per row and recorded on disk.

    Attributes:
        of: The reference to record; None for the default one.
        folder: Where the scores are kept; shared by runs with the same reference.
    """

    folder: str
    of: ReferenceSpec | None = None

    def build(self, policy: Policy) -> RecordedReference:
        """Open the store of the reference's fingerprint.

        Raises:
            ValueError: The reference to record moves.
        """
        inner = default(policy).build(policy) if self.of is None else self.of.build(policy)
        if isinstance(inner, Following):
            raise ValueError(
                f"reference {type(self.of).__name__} moves while the policy is trained, so a score "
                "recorded on disk would soon be another network's; use it without `type: recorded`"
            )
        parts = inner.parts() if isinstance(inner, NetworkReference) else None
        return RecordedReference(inner=inner, folder=Path(self.folder), parts=parts)
