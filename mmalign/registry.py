"""What can be named in a config: literal tables from a short name to a class.

Values are dotted paths, so that reading a table imports nothing. Packages outside mmalign add to a
table through the entry-point group of its name; ``type: package.module:Class`` always works.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import entry_points

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
}
REFERENCES = {
    "frozen": "mmalign.references:Frozen",
    "lora_off": "mmalign.references:LoRAOff",
    "named_lora": "mmalign.references:NamedLoRA",
    "recorded": "mmalign.references:Recorded",
}
SOURCES = {
    "preferences": "mmalign.sources:Preferences",
    "rollouts": "mmalign.sources:Rollouts",
    "mixed": "mmalign.sources:Mixed",
}
SELECTORS = {
    "best_worst": "mmalign.selectors:BestWorst",
    "best_random": "mmalign.selectors:BestRandom",
    "keep_all": "mmalign.selectors:KeepAll",
}
REWARDS = {
    "tinyworld": "mmalign.tinyworld.data:TaskJudge",
    "clip": "mmalign.rewards.clip:ClipReward",
    "function": "mmalign.rewards.function:FunctionReward",
    "length": "mmalign.rewards.text:LengthReward",
    "relevance": "mmalign.rewards.relevance:RelevanceReward",
    "sentiment": "mmalign.rewards.sentiment:SentimentReward",
}
DATA = {
    "tinyworld": "mmalign.tinyworld.data:TinyWorld",
    "file": "mmalign.data.files:File",
}

BUILDERS: dict[str, str] = {}

CLAIMS: dict[str, str] = {}

TABLES: dict[str, dict[str, str]] = {
    "policies": POLICIES,
    "objectives": OBJECTIVES,
    "references": REFERENCES,
    "sources": SOURCES,
    "selectors": SELECTORS,
    "rewards": REWARDS,
    "data": DATA,
    "builders": BUILDERS,
    "claims": CLAIMS,
}


def table(kind: str) -> dict[str, str]:
    """The names of ``kind``, ours and those of installed packages."""
    found = dict(TABLES[kind])
    for entry in entry_points(group=f"mmalign.{kind}"):
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
