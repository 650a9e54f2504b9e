"""The conformance table: every adapter, every objective, and which of them go together.

Adding an adapter or an objective means adding a line here; `test_conformance.py` runs the same
invariants over every admitted combination.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from PIL import Image
from torch import Tensor

from mmalign import pairing, rng
from mmalign.data.frames import strip
from mmalign.diffusion import DiffusionPolicy, FlowPolicy
from mmalign.lora import LoRA
from mmalign.objectives import (
    AOT,
    BCO,
    CPO,
    D3PO,
    DDPO,
    DPO,
    DPOK,
    EXO,
    FDPO,
    GRPO,
    INPO,
    IPO,
    KTO,
    LDDPO,
    MODPO,
    MPO,
    NCA,
    OPADPO,
    ORPO,
    PPO,
    PRO,
    SFT,
    SPO,
    SPPO,
    TDPO2,
    TRPA,
    WPO,
    XPO,
    AlphaPO,
    Anchored,
    AOTUnpaired,
    APODown,
    APOZero,
    APOZeroUnpaired,
    BCOUnpaired,
    ConservativeDPO,
    CriticalDPO,
    DiscoPOP,
    DPOWithSFT,
    Hinge,
    LambdaDPO,
    LatentEM,
    LengthNormalisedDPO,
    Logic,
    MaPO,
    RobustDPO,
    SimPO,
)
from mmalign.policy import Policy
from mmalign.prompts import frames_of
from mmalign.protocols import ON_REQUEST, Objective
from mmalign.run import PolicySpec
from mmalign.text import TextPolicy
from mmalign.tinyworld.data import TinyWorld
from mmalign.types import Batch, Output, Prompt, Scores, Trajectory
from mmalign.vision import ARImagePolicy, LVLMPolicy
from tests.diffusion.tiny_families import TinyPipeline
from tests.vision.lvlm_models import FAMILIES, TinyLVLM


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """An adapter on a small real model.

    Attributes:
        spec: Settings of the policy.
        task: Whose prompts and outputs it gets.
        exact: Whether its likelihood is exact.
        separable: Whether its steps are scored apart.
        encodes: Whether recorded outputs can be encoded.
        toy: A reward that a few updates can raise.
        only: Names of the objectives it is tried with; None for all.
        asked: What becomes of a prompt of the task.
        drawn: What becomes of an output of the task.
    """

    spec: PolicySpec
    task: str
    exact: bool
    separable: bool
    encodes: bool
    toy: Callable[[Sequence[Prompt], Sequence[Output]], Tensor]
    only: frozenset[str] | None = None
    asked: Callable[[Prompt], Prompt] = lambda prompt: prompt
    drawn: Callable[[Output], Output] = lambda output: output


def short_sums(prompts: Sequence[Prompt], outputs: Sequence[Output]) -> Tensor:
    """Minus the number of words."""
    return torch.tensor([-float(len(str(o).split())) for o in outputs])


def redness(prompts: Sequence[Prompt], outputs: Sequence[Output]) -> Tensor:
    """Mean of red minus blue, pixels in [0, 1]."""
    means = []
    for output in outputs:
        assert not isinstance(output, str)
        bands = strip(frames_of(output)).split()
        red, _, blue = (sum(c.tobytes()) / len(c.tobytes()) for c in bands)
        means.append((red - blue) / 255)
    return torch.tensor(means)


RANK = LoRA(rank=8, alpha=16)
ADAPTERS: dict[str, Case] = {
    "text": Case(
        spec=TextPolicy(model="tinyworld/text", lora=RANK, max_new_tokens=12),
        task="arithmetic", exact=True, separable=False, encodes=True, toy=short_sums,
    ),
    "text_full": Case(
        spec=TextPolicy(model="tinyworld/text", max_new_tokens=12, temperature=0.7),
        task="arithmetic", exact=True, separable=False, encodes=True, toy=short_sums,
    ),
    "lvlm": Case(
        spec=LVLMPolicy(model="tinyworld/lvlm", lora=RANK, max_new_tokens=12),
        task="describe", exact=True, separable=False, encodes=True, toy=short_sums,
    ),
    "lvlm_several_images": Case(
        spec=LVLMPolicy(model="tinyworld/lvlm", lora=RANK, max_new_tokens=4),
        task="multi_image", exact=True, separable=False, encodes=True, toy=short_sums,
    ),
    "ar_image": Case(
        spec=ARImagePolicy(model="tinyworld/ar_image", lora=RANK),
        task="draw", exact=True, separable=False, encodes=True, toy=redness,
    ),
    "diffusion_path": Case(
        spec=DiffusionPolicy(model="tinyworld/diffusion", likelihood="path", steps=4, lora=RANK),
        task="draw", exact=True, separable=True, encodes=False, toy=redness,
    ),
    "diffusion_elbo": Case(
        spec=DiffusionPolicy(model="tinyworld/diffusion", likelihood="elbo", steps=4, lora=RANK),
        task="draw", exact=False, separable=True, encodes=True, toy=redness,
    ),
    "flow_path": Case(
        spec=FlowPolicy(model="tinyworld/flow", likelihood="path", steps=4, lora=RANK),
        task="draw", exact=True, separable=True, encodes=False, toy=redness,
    ),
    "flow_elbo": Case(
        spec=FlowPolicy(model="tinyworld/flow", likelihood="elbo", steps=4, lora=RANK),
        task="draw", exact=False, separable=True, encodes=True, toy=redness,
    ),
}  # fmt: skip
# Families differ in how they read pictures, which no objective knows of: two are enough.
ADAPTERS |= {
    f"lvlm_{family}": Case(
        spec=TinyLVLM(family=family, lora=RANK),
        task="multi_image" if number % 2 else "describe",
        exact=True,
        separable=False,
        encodes=True,
        toy=short_sums,
        only=frozenset({"dpo", "grpo"}),
    )
    for number, family in enumerate(sorted(FAMILIES.keys() - {"llava"}))
}


def edited(prompt: Prompt) -> Prompt:
    """The prompt with a picture to edit."""
    return replace(prompt, images=(Image.new("RGB", (32, 32), (200, 90, 30)),))


def moving(output: Output) -> Output:
    """A clip of five frames that fades to black."""
    assert not isinstance(output, str)
    (picture,) = frames_of(output)
    return tuple(picture.point(lambda level, k=k: level * (5 - k) // 5) for k in range(5))


# Every pipeline in its own way of calling; what is done with the answers is shared.
PIPELINES = (
    "stable_diffusion_xl", "pixart_sigma", "sana", "flux", "kontext", "qwen_image", "wan", "ltx",
)  # fmt: skip
CLIPS = ("wan", "ltx")
ADAPTERS |= {
    f"{kind}_{likelihood}": Case(
        spec=TinyPipeline(kind=kind, likelihood=likelihood, steps=3, lora=RANK, resize=True),
        task="draw",
        exact=likelihood == "path",
        separable=True,
        encodes=likelihood == "elbo",
        toy=redness,
        only=frozenset({"dpo", "grpo"}),
        asked=edited if kind == "kontext" else lambda prompt: prompt,
        drawn=moving if kind in CLIPS else lambda output: output,
    )
    for kind in PIPELINES
    for likelihood in (("path", "elbo") if kind in ("kontext", *CLIPS) else ("path",))
}

OBJECTIVES: dict[str, Objective] = {
    "dpo": DPO(beta=0.1),
    "ipo": IPO(beta=0.1),
    "cdpo_smoothing": ConservativeDPO(),
    "rdpo": RobustDPO(),
    "ln_dpo": LengthNormalisedDPO(),
    "hinge": Hinge(),
    "exo_pair": EXO(),
    "discopop": DiscoPOP(),
    "f_dpo": FDPO(),
    "dpo_sft": DPOWithSFT(),
    "ld_dpo": LDDPO(),
    "nca_pair": NCA(),
    "apo_zero": APOZero(),
    "apo_down": APODown(),
    "sppo_hard": SPPO(),
    "simpo": SimPO(),
    "alphapo": AlphaPO(),
    "cpo": CPO(),
    "orpo": ORPO(),
    "mapo": MaPO(),
    "aot": AOT(),
    "aot_unpaired": AOTUnpaired(),
    "bco_pair": BCO(),
    "kto": KTO(kl_point="matched"),
    "apo_zero_unpaired": APOZeroUnpaired(),
    "bco_unpaired": BCOUnpaired(),
    "latent_em": LatentEM(),
    "logic": Logic(),
    "tdpo2": TDPO2(),
    "cdpo_critical": CriticalDPO(),
    "wpo": WPO(),
    "mpo": MPO(),
    "anchored": Anchored(),
    "pro": PRO(),
    "lambda_dpo": LambdaDPO(),
    "modpo": MODPO(),
    "xpo": XPO(),
    "inpo": INPO(),
    "trpa": TRPA(kl_weight=0.1),
    "grpo": GRPO(),
    "grpo_kl": GRPO(beta=0.04),
    "dapo": GRPO(epsilon_high=0.28, aggregate="token"),
    "ddpo_groups": GRPO(epsilon=1e-4, advantage_clip=10.0),
    "ddpo": DDPO(),
    "d3po": D3PO(),
    "spo": SPO(),
    "dpok": DPOK(kl_weight=0.0),
    "ppo": PPO(),
    "sft": SFT(),
    "opa_dpo": OPADPO(),
    "opa_dpo_steps": OPADPO(token_level=True, positions=64),
}


def tried(adapter: str, objective: str) -> bool:
    """Whether the combination has a test, among those that make sense."""
    only = ADAPTERS[adapter].only
    return only is None or objective in only


def admitted(case: Case, objective: Objective) -> bool:
    """Whether the objective makes sense for the adapter's likelihood."""
    return ("bound" if case.exact else "exact") not in objective.needs


COMBINATIONS = [
    (adapter, objective)
    for adapter, case in ADAPTERS.items()
    for objective, settings in OBJECTIVES.items()
    if admitted(case, settings) and tried(adapter, objective)
]
REFUSED = [
    (adapter, objective)
    for adapter, case in ADAPTERS.items()
    for objective, settings in OBJECTIVES.items()
    if not admitted(case, settings) and case.only is None
]


def generators(count: int, *key: int | str) -> list[torch.Generator]:
    """One generator a prompt."""
    return [rng.generator("conformance", *key, i) for i in range(count)]


def prompts_of(case: Case, count: int) -> list[Prompt]:
    """A few prompts of the case's task."""
    return [case.asked(p) for p in TinyWorld(task=case.task, size=count, seed=3).prompts()]


def sampled(case: Case, policy: Policy, *, num_prompts: int = 2, group_size: int = 3) -> Trajectory:
    """A few groups sampled by the policy."""
    return policy.sample(
        prompts_of(case, num_prompts),
        group_size=group_size,
        generators=generators(num_prompts, "sample"),
    )


def batch_of(trajectory: Trajectory, *, group_size: int = 3) -> Batch:
    """A batch with rewards that differ within each group; every second row is the reference's."""
    rows = len(trajectory)
    reward = torch.tensor([float((7 * i) % 5) for i in range(rows)])
    return Batch(
        trajectory=trajectory,
        group=torch.arange(rows) // group_size,
        reward=reward,
        weight=trajectory.mask.float(),
        from_reference=torch.arange(rows) % 2 == 1,
    )


def with_step_weights(batch: Batch) -> Batch:
    """Pairs whose rejected side's steps count 0.1, 0.2, ..."""
    batch = pairing.ordered_pairs(batch)
    weights = batch.pair_weights()
    share = torch.arange(1, weights.shape[2] + 1) / 10
    return replace(batch, pair_weight=torch.stack([weights[:, 0], weights[:, 1] * share], 1))


def scores_of(policy: Policy, trajectory: Trajectory, objective: Objective) -> Scores:
    """What the objective reads; the reference's distributions are the policy's own."""
    want = objective.needs & ON_REQUEST
    return policy.scores(trajectory, want=want, against=policy.model if want else None)


def with_scores(policy: Policy, batch: Batch, objective: Objective) -> Batch:
    """The batch with everything the objective needs, as trainer and source supply it."""
    if "step_weights" in objective.needs:
        batch = with_step_weights(batch)
    with torch.no_grad():
        found = policy.scorer(batch.trajectory, frozenset(), None)
    if isinstance(objective, MODPO):
        brevity = -batch.trajectory.mask.sum(1).float()
        batch = replace(batch, reward=torch.stack([batch.reward, brevity], 1))
    if "reference" in objective.needs:
        batch = replace(batch, reference=found["log_probs"])
    if "behaviour" in objective.needs:
        batch = replace(batch, behaviour=found["log_probs"])
    return replace(batch, values=found.get("values"))
