"""Write the objective x modality table of README.md from the code: `make docs-table`.

With --check nothing is written, and the exit status says whether the table is current.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import cast

from torch import nn

from mmalign.invariants import parts_fit
from mmalign.objectives import (
    AOT,
    D3PO,
    DPO,
    DPOK,
    GRPO,
    IPO,
    KTO,
    MODPO,
    NCA,
    OPADPO,
    ORPO,
    PRO,
    SFT,
    TDPO1,
    TRPA,
    XPO,
    Anchored,
    MaPO,
    RobustDPO,
    SimPO,
)
from mmalign.protocols import Likelihood, Objective, Reference
from mmalign.registry import resolve

README = Path(__file__).resolve().parent.parent / "README.md"
START, END = "<!-- objectives:start -->", "<!-- objectives:end -->"


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """A kind of policy.

    Attributes:
        adapter: Its adapter's class.
        reads_recorded: Whether recorded outputs have a likelihood: a recorded picture does not say
            by which path it was drawn.
    """

    adapter: str
    reads_recorded: bool = True

    @property
    def likelihood(self) -> Likelihood:
        """As the adapter declares it."""
        found: Likelihood = resolve("policies", self.adapter).__dict__["likelihood"]
        return found


COLUMNS = {
    "text LLM": Column(adapter="mmalign.text:CausalAdapter"),
    "LVLM": Column(adapter="mmalign.vision:LVLMAdapter"),
    "AR image": Column(adapter="mmalign.vision:ARImageAdapter"),
    "diffusion, path": Column(adapter="mmalign.diffusion.path:PathAdapter", reads_recorded=False),
    "diffusion, ELBO": Column(adapter="mmalign.diffusion.elbo:ElboAdapter"),
    "flow, path": Column(adapter="mmalign.diffusion.path:PathAdapter", reads_recorded=False),
    "flow, ELBO": Column(adapter="mmalign.diffusion.elbo:ElboAdapter"),
}
OFFLINE = "recorded pairs"
LABELLED = "labelled outputs, or recorded pairs"
SHOWN = "recorded demonstrations"
LISTS = "ranked lists"
ONLINE = "rollouts"
ROWS: list[tuple[str, str, Objective]] = [
    ("DPO", OFFLINE, DPO()),
    ("IPO", OFFLINE, IPO()),
    ("cdpo, rdpo, ln_dpo, hinge, exo, discopop, f_dpo, ld_dpo, dpo_sft", OFFLINE, RobustDPO()),
    ("nca, apo_zero, apo_down, sppo", OFFLINE, NCA()),
    ("simpo, alphapo, cpo", OFFLINE, SimPO()),
    ("orpo, logic", OFFLINE, ORPO()),
    ("mapo", OFFLINE, MaPO()),
    ("opa_dpo: OPA-DPO and mDPO with views of pictures, for LVLMs", OFFLINE, OPADPO()),
    ("tdpo1, tdpo2, wpo, cdpo_critical", OFFLINE, TDPO1()),
    ("mpo (objectives weighed and added up), anchored", OFFLINE, Anchored()),
    ("modpo", OFFLINE + " with the margins of other rewards", MODPO()),
    ("pro, lambda_dpo, tpo_tree", LISTS, PRO()),
    ("SFT", SHOWN, SFT()),
    ("aot, aot_unpaired, bco, latent_em", OFFLINE, AOT()),
    (
        "kto, apo_zero_unpaired, bco_unpaired; Diffusion-KTO",
        LABELLED,
        KTO(),
    ),
    ("online DPO, online IPO", ONLINE, DPO()),
    ("mixed DPO, mixed IPO", OFFLINE + " and " + ONLINE, DPO()),
    ("pro, lambda_dpo, xpo, inpo", ONLINE, XPO()),
    ("tdpo1, tdpo2, wpo, trpa", ONLINE, TRPA()),
    ("d3po; spo for moves, with a source of its own", ONLINE, D3PO()),
    ("GRPO: DAPO, Dr. GRPO; for moves Flow-GRPO, DanceGRPO, MixGRPO", ONLINE, GRPO()),
    ("PPO, ddpo; dpok for moves", ONLINE, DPOK()),
]


def cell(objective: Objective, source: str, column: Column) -> str:
    """Whether a run of these is accepted, reference and critic being supplied."""
    if not column.reads_recorded and any(kind in source for kind in (OFFLINE, SHOWN, LISTS)):
        return "no: not recorded"
    try:
        parts_fit(
            objective,
            likelihood=column.likelihood,
            reference=cast(Reference, SimpleNamespace(network=nn.Identity())),
            critic=nn.Identity(),
        )
    except ValueError:
        return "no: bound" if column.likelihood == "bound" else "no: not a bound"
    return "yes"


def table() -> str:
    """The table in Markdown."""
    lines = [
        "| method | batches from | " + " | ".join(COLUMNS) + " |",
        "|---|---|" + "---|" * len(COLUMNS),
        "| *likelihood* | | " + " | ".join(f"*{c.likelihood}*" for c in COLUMNS.values()) + " |",
    ]
    for name, source, objective in ROWS:
        cells = [cell(objective, source, column) for column in COLUMNS.values()]
        lines.append(f"| {name} | {source} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Rewrite the part of README.md between the markers, or compare it."""
    text = README.read_text("utf-8")
    head, _, rest = text.partition(START)
    _, _, tail = rest.partition(END)
    wanted = f"{head}{START}\n{table()}\n{END}{tail}"
    if "--check" in sys.argv[1:]:
        sys.exit(0 if wanted == text else "the table of README.md is old: run `make docs-table`")
    README.write_text(wanted, "utf-8")


if __name__ == "__main__":
    main()
