"""Objectives: what training minimises, each a frozen dataclass of its hyperparameters.

An objective knows batches and scores, never a modality.
"""

from __future__ import annotations

from collections.abc import Mapping

from mmalign.objectives.absolute import NCA, SPPO, APODown, APOZero
from mmalign.objectives.anchored import Anchored
from mmalign.objectives.bco_unpaired import BCOUnpaired
from mmalign.objectives.coupled import AOT, BCO, AOTUnpaired
from mmalign.objectives.ddpo import DDPO
from mmalign.objectives.dpo import DPO
from mmalign.objectives.dpok import DPOK
from mmalign.objectives.grpo import GRPO
from mmalign.objectives.inpo import INPO
from mmalign.objectives.ipo import IPO
from mmalign.objectives.kto import KTO, APOZeroUnpaired
from mmalign.objectives.lambda_dpo import LambdaDPO, TreePO
from mmalign.objectives.latent_em import LatentEM
from mmalign.objectives.logic import Logic
from mmalign.objectives.margin import (
    EXO,
    FDPO,
    LDDPO,
    ConservativeDPO,
    DiscoPOP,
    DPOWithSFT,
    Hinge,
    LengthNormalisedDPO,
    RobustDPO,
)
from mmalign.objectives.mixture import MPO, Term
from mmalign.objectives.modpo import MODPO
from mmalign.objectives.opa_dpo import OPADPO
from mmalign.objectives.ppo import PPO
from mmalign.objectives.pro import PRO
from mmalign.objectives.reference_free import CPO, ORPO, AlphaPO, MaPO, SimPO
from mmalign.objectives.sft import SFT
from mmalign.objectives.step_pair import D3PO, SPO
from mmalign.objectives.token_level import TDPO1, TDPO2, CriticalDPO
from mmalign.objectives.trpa import TRPA
from mmalign.objectives.weighted import WPO
from mmalign.objectives.xpo import XPO
from mmalign.protocols import Objective

OBJECTIVES: Mapping[str, type[Objective]] = {
    "dpo": DPO,
    "ipo": IPO,
    "grpo": GRPO,
    "ppo": PPO,
    "sft": SFT,
    "opa_dpo": OPADPO,
    "cdpo_smoothing": ConservativeDPO,
    "rdpo": RobustDPO,
    "ln_dpo": LengthNormalisedDPO,
    "hinge": Hinge,
    "exo_pair": EXO,
    "discopop": DiscoPOP,
    "f_dpo": FDPO,
    "dpo_sft": DPOWithSFT,
    "ld_dpo": LDDPO,
    "nca_pair": NCA,
    "apo_zero": APOZero,
    "apo_down": APODown,
    "sppo_hard": SPPO,
    "simpo": SimPO,
    "alphapo": AlphaPO,
    "cpo": CPO,
    "orpo": ORPO,
    "mapo": MaPO,
    "aot": AOT,
    "aot_unpaired": AOTUnpaired,
    "bco_pair": BCO,
    "kto": KTO,
    "apo_zero_unpaired": APOZeroUnpaired,
    "bco_unpaired": BCOUnpaired,
    "d3po": D3PO,
    "spo": SPO,
    "dpok": DPOK,
    "ddpo": DDPO,
    "latent_em": LatentEM,
    "logic": Logic,
    "tdpo1": TDPO1,
    "tdpo2": TDPO2,
    "cdpo_critical": CriticalDPO,
    "wpo": WPO,
    "mpo": MPO,
    "anchored": Anchored,
    "pro": PRO,
    "lambda_dpo": LambdaDPO,
    "tpo_tree": TreePO,
    "modpo": MODPO,
    "xpo": XPO,
    "inpo": INPO,
    "trpa": TRPA,
}

__all__ = [
    "AOT",
    "BCO",
    "CPO",
    "D3PO",
    "DDPO",
    "DPO",
    "DPOK",
    "EXO",
    "FDPO",
    "GRPO",
    "INPO",
    "IPO",
    "KTO",
    "LDDPO",
    "MODPO",
    "MPO",
    "NCA",
    "OBJECTIVES",
    "OPADPO",
    "ORPO",
    "PPO",
    "PRO",
    "SFT",
    "SPO",
    "SPPO",
    "TDPO1",
    "TDPO2",
    "TRPA",
    "WPO",
    "XPO",
    "AOTUnpaired",
    "APODown",
    "APOZero",
    "APOZeroUnpaired",
    "AlphaPO",
    "Anchored",
    "BCOUnpaired",
    "ConservativeDPO",
    "CriticalDPO",
    "DPOWithSFT",
    "DiscoPOP",
    "Hinge",
    "LambdaDPO",
    "LatentEM",
    "LengthNormalisedDPO",
    "Logic",
    "MaPO",
    "RobustDPO",
    "SimPO",
    "Term",
    "TreePO",
]
