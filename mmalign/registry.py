"""What can be named in a config: literal tables from a short name to a class.

Values are dotted paths, so that reading a table imports nothing. Packages outside mmalign add to a
table through the entry-point group of its name; ``type: package.module:Class`` always works.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoints, entry_points

POLICIES = {
    "text": "mmalign.text:TextPolicy",
    "lvlm": "mmalign.vision:LVLMPolicy",
    "ar_image": "mmalign.vision:ARImagePolicy",
    "diffusion": "mmalign.diffusion:DiffusionPolicy",
    "flow": "mmalign.diffusion:FlowPolicy",
}
OBJECTIVES = {
    "dpo": "mmalign.objectives:DPO",
    "ipo": "mmalign.objectives:IPO",
    "grpo": "mmalign.objectives:GRPO",
    "ppo": "mmalign.objectives:PPO",
    "sft": "mmalign.objectives:SFT",
    "opa_dpo": "mmalign.objectives:OPADPO",
    "cdpo_smoothing": "mmalign.objectives:ConservativeDPO",
    "rdpo": "mmalign.objectives:RobustDPO",
    "ln_dpo": "mmalign.objectives:LengthNormalisedDPO",
    "hinge": "mmalign.objectives:Hinge",
    "exo_pair": "mmalign.objectives:EXO",
    "discopop": "mmalign.objectives:DiscoPOP",
    "f_dpo": "mmalign.objectives:FDPO",
    "dpo_sft": "mmalign.objectives:DPOWithSFT",
    "ld_dpo": "mmalign.objectives:LDDPO",
    "nca_pair": "mmalign.objectives:NCA",
    "apo_zero": "mmalign.objectives:APOZero",
    "apo_down": "mmalign.objectives:APODown",
    "sppo_hard": "mmalign.objectives:SPPO",
    "simpo": "mmalign.objectives:SimPO",
    "alphapo": "mmalign.objectives:AlphaPO",
    "cpo": "mmalign.objectives:CPO",
    "orpo": "mmalign.objectives:ORPO",
    "mapo": "mmalign.objectives:MaPO",
    "aot": "mmalign.objectives:AOT",
    "aot_unpaired": "mmalign.objectives:AOTUnpaired",
    "bco_pair": "mmalign.objectives:BCO",
    "kto": "mmalign.objectives:KTO",
    "apo_zero_unpaired": "mmalign.objectives:APOZeroUnpaired",
    "bco_unpaired": "mmalign.objectives:BCOUnpaired",
    "d3po": "mmalign.objectives:D3PO",
    "spo": "mmalign.objectives:SPO",
    "dpok": "mmalign.objectives:DPOK",
    "ddpo": "mmalign.objectives:DDPO",
    "latent_em": "mmalign.objectives:LatentEM",
    "logic": "mmalign.objectives:Logic",
    "tdpo1": "mmalign.objectives:TDPO1",
    "tdpo2": "mmalign.objectives:TDPO2",
    "cdpo_critical": "mmalign.objectives:CriticalDPO",
    "wpo": "mmalign.objectives:WPO",
    "mpo": "mmalign.objectives:MPO",
    "anchored": "mmalign.objectives:Anchored",
    "pro": "mmalign.objectives:PRO",
    "lambda_dpo": "mmalign.objectives:LambdaDPO",
    "tpo_tree": "mmalign.objectives:TreePO",
    "modpo": "mmalign.objectives:MODPO",
    "xpo": "mmalign.objectives:XPO",
    "inpo": "mmalign.objectives:INPO",
    "trpa": "mmalign.objectives:TRPA",
}
REFERENCES = {
    "frozen": "mmalign.references:Frozen",
    "lora_off": "mmalign.references:LoRAOff",
    "named_lora": "mmalign.references:NamedLoRA",
    "recorded": "mmalign.references:Recorded",
    "soup": "mmalign.references:Soup",
    "ema": "mmalign.references:EMA",
    "sync": "mmalign.references:Sync",
    "none": "mmalign.references:NoReference",
}
SOURCES = {
    "preferences": "mmalign.sources:Preferences",
    "rollouts": "mmalign.sources:Rollouts",
    "mixed": "mmalign.sources:Mixed",
    "demonstrations": "mmalign.demonstrations:Demonstrations",
    "unpaired": "mmalign.unpaired:Unpaired",
    "ranked": "mmalign.ranked:Ranked",
    "critical": "mmalign.critical:Critical",
    "step_pairs": "mmalign.diffusion.step_pairs:StepPairs",
    "implicit_rewards": "mmalign.margins:ImplicitRewards",
    "views": "mmalign.vision.views:Views",
    "bdhs_online": "mmalign.vision.bdhs:OnlineBDHS",
    "bdhs_mixed": "mmalign.vision.bdhs:MixedBDHS",
    "bdhs_averaged": "mmalign.vision.bdhs:AveragedBDHS",
}
SELECTORS = {
    "best_worst": "mmalign.selectors:BestWorst",
    "best_random": "mmalign.selectors:BestRandom",
    "keep_all": "mmalign.selectors:KeepAll",
    "all_pairs": "mmalign.selectors:AllPairs",
    "best_against_rest": "mmalign.selectors:BestAgainstRest",
    "adjacent": "mmalign.selectors:Adjacent",
}
REWARDS = {
    "tinyworld": "mmalign.tinyworld.data:TaskJudge",
    "tinyworld_likeness": "mmalign.tinyworld.judges:LikenessJudge",
    "clip": "mmalign.rewards.clip:ClipReward",
    "function": "mmalign.rewards.function:FunctionReward",
    "jpeg": "mmalign.rewards.jpeg:JPEGReward",
    "length": "mmalign.rewards.text:LengthReward",
    "relevance": "mmalign.rewards.relevance:RelevanceReward",
    "sentiment": "mmalign.rewards.sentiment:SentimentReward",
}
DIVERSITIES = {
    "ngrams": "mmalign.diversity:NGramDistance",
    "sentences": "mmalign.diversity:SentenceDistance",
    "pixels": "mmalign.diversity:PixelDistance",
    "clip": "mmalign.diversity:CLIPDistance",
}
DATA = {
    "tinyworld": "mmalign.tinyworld.data:TinyWorld",
    "tinyworld_brief": "mmalign.tinyworld.brief:BriefSums",
    "file": "mmalign.data.files:File",
    "built": "mmalign.data.built:Built",
    "several": "mmalign.data.several:Several",
}

BUILDERS: dict[str, str] = {
    "bdhs": "mmalign.vision.bdhs:BDHS",
    "povid": "mmalign.vision.bdhs:POVID",
    "mia-dpo": "mmalign.vision.mia:MIADPO",
    "rlaif-v": "mmalign.vision.rlaifv:RLAIFV",
    "contrastive": "mmalign.vision.contrastive:Contrastive",
    "insight-v": "mmalign.vision.insight:InsightV",
    "opa-dpo": "mmalign.vision.opa.building:OPADPOBuilder",
    "pairs": "mmalign.data.pairs:SampledPairs",
    "fifa": "mmalign.diffusion.fifa:FiFA",
}

CLAIMS = {
    "every-objective": "mmalign.tinyworld.claims.zoo:CLAIM",
    "objectives-of-pictures": "mmalign.tinyworld.claims.zoo_pictures:CLAIM",
    "modpo": "mmalign.tinyworld.claims.modpo:CLAIM",
    "mia-dpo": "mmalign.tinyworld.claims.mia_dpo:CLAIM",
    "bdhs": "mmalign.tinyworld.claims.bdhs:CLAIM",
    "opa-dpo": "mmalign.tinyworld.claims.opa_dpo:CLAIM",
    "mixed-dpo": "mmalign.tinyworld.claims.mixed_dpo:CLAIM",
    "mdpo": "mmalign.tinyworld.claims.mdpo:CLAIM",
    "noisy-labels": "mmalign.tinyworld.claims.noisy_labels:CLAIM",
    "shorter": "mmalign.tinyworld.claims.shorter:CLAIM",
    "chosen-likelihood": "mmalign.tinyworld.claims.chosen_likelihood:CLAIM",
    "tdpo": "mmalign.tinyworld.claims.tdpo:CLAIM",
    "lists": "mmalign.tinyworld.claims.lists:CLAIM",
    "trees": "mmalign.tinyworld.claims.trees:CLAIM",
    "ranking-accuracy": "mmalign.tinyworld.claims.ranking_accuracy:CLAIM",
    "every-modality": "mmalign.tinyworld.claims.every_modality:CLAIM",
    "online-pictures": "mmalign.tinyworld.claims.online_pictures:CLAIM",
    "online-denoisers": "mmalign.tinyworld.claims.online_pictures:DENOISERS",
    "path-rl": "mmalign.tinyworld.claims.path_rl:CLAIM",
    "path-zoo": "mmalign.tinyworld.claims.path_zoo:CLAIM",
    "shared-noise": "mmalign.tinyworld.claims.shared_noise:CLAIM",
    "step-windows": "mmalign.tinyworld.claims.step_windows:CLAIM",
    "fifa": "mmalign.tinyworld.claims.fifa:CLAIM",
    "diffusion-dpo": "mmalign.tinyworld.claims.diffusion_dpo:CLAIM",
    "update-sparsity": "mmalign.tinyworld.claims.update_sparsity:CLAIM",
    "salsa": "mmalign.tinyworld.claims.salsa:CLAIM",
    "overoptimisation": "mmalign.tinyworld.claims.overoptimisation:CLAIM",
}

EXPERTS = {
    "endpoint": "mmalign.vision.opa.experts:EndpointExpert",
    "file": "mmalign.vision.opa.experts:FileExpert",
    "tinyworld": "mmalign.tinyworld.expert:TinyWorldExpert",
}

ASKERS = {
    "endpoint": "mmalign.endpoint:Endpoint",
    "tinyworld": "mmalign.tinyworld.reasoner:Reasoner",
}

BENCHMARKS = {
    "pope": "mmalign.vision.benchmarks.pope:POPE",
    "chair": "mmalign.vision.benchmarks.chair:CHAIR",
    "amber": "mmalign.vision.benchmarks.amber:AMBER",
    "mmhal": "mmalign.vision.benchmarks.mmhal:MMHal",
    "multi_image": "mmalign.vision.benchmarks.multi_image:MultiImage",
    "attention_on_target": "mmalign.vision.benchmarks.attention:AttentionOnTarget",
    "tinyworld_multi_image": "mmalign.tinyworld.benchmarks:TinyWorldMultiImage",
    "tinyworld_pope": "mmalign.tinyworld.benchmarks:TinyWorldPOPE",
    "tinyworld_chair": "mmalign.tinyworld.benchmarks:TinyWorldCHAIR",
}

TABLES: dict[str, dict[str, str]] = {
    "policies": POLICIES,
    "objectives": OBJECTIVES,
    "references": REFERENCES,
    "sources": SOURCES,
    "selectors": SELECTORS,
    "rewards": REWARDS,
    "diversities": DIVERSITIES,
    "data": DATA,
    "builders": BUILDERS,
    "askers": ASKERS,
    "experts": EXPERTS,
    "benchmarks": BENCHMARKS,
    "claims": CLAIMS,
}


@cache
def installed(group: str) -> EntryPoints:
    """The entry points of a group, read from the installed packages once a process.

    A config asks for the same few tables hundreds of times, and every scan opens the metadata of
    each installed package.
    """
    return entry_points(group=group)


def table(kind: str) -> dict[str, str]:
    """The names of ``kind``, ours and those of installed packages."""
    found = dict(TABLES[kind])
    for entry in installed(f"mmalign.{kind}"):
        if entry.name in found:
            raise ValueError(
                f"the entry point {entry.name!r} of {entry.dist} takes a name that mmalign's "
                f"{kind} have already"
            )
        found[entry.name] = entry.value
    return found


def resolve(kind: str, name: str) -> type:
    """The class called ``name`` in the table of ``kind``, or at the dotted path ``name``.

    Raises:
        ValueError: No such name, or nothing importable at that path.
    """
    path = name if ":" in name else table(kind).get(name)
    if path is None:
        raise ValueError(f"no {kind} called {name!r}; there are {sorted(table(kind))}")
    module, _, attribute = path.partition(":")
    try:
        found: type = getattr(import_module(module), attribute)
    except (ModuleNotFoundError, AttributeError) as error:
        raise ValueError(f"{kind} {name!r}: cannot import {path} ({error})") from error
    return found
