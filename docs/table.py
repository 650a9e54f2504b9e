"""Write the objective x modality table of README.md from the code: `make docs-table`.

With --check nothing is written, and the exit status says whether the table is current.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from torch import nn

from mmalign.invariants import parts_fit
from mmalign.objectives import (
    AOT,
    DPO,
    GRPO,
    IPO,
    KTO,
    NCA,
    OPADPO,
    ORPO,
    PPO,
    SFT,
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
SHOWN = "recorded demonstrations"
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
    ("SFT", SHOWN, SFT()),
    ("aot, aot_unpaired, bco, latent_em", OFFLINE, AOT()),
    ("kto, apo_zero_unpaired; Diffusion-KTO", "labelled outputs, or " + OFFLINE, KTO()),
    ("online DPO, online IPO", ONLINE, DPO()),
    ("mixed DPO, mixed IPO", OFFLINE + " and " + ONLINE, DPO()),
    ("GRPO: for tokens also DAPO, Dr. GRPO; for moves DDPO, Flow-GRPO", ONLINE, GRPO()),
    ("PPO", ONLINE, PPO()),
]


def cell(objective: Objective, source: str, column: Column) -> str:
    """Whether a run of these is accepted, reference and critic being supplied."""
    if (OFFLINE in source or SHOWN in source) and not column.reads_recorded:
        return "no: not recorded"
    try:
        parts_fit(
            objective,
            likelihood=column.likelihood,
            reference=cast(Reference, object()),
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
