"""Write the table of vision-language families of docs/guides/models.md from the code.

With --check nothing is written, and the exit status says whether the table is current.
"""

from __future__ import annotations

import sys
from pathlib import Path

from mmalign.vision.families import FAMILIES, Family
from mmalign.vision.spans import BOXES

GUIDE = Path(__file__).resolve().parent / "guides" / "models.md"
START, END = "<!-- families:start -->", "<!-- families:end -->"
NAMES = {
    "llava": "LLaVA 1.5",
    "llava_next": "LLaVA-NeXT",
    "llava_onevision": "LLaVA-OneVision",
    "qwen2_vl": "Qwen2-VL",
    "qwen2_5_vl": "Qwen2.5-VL",
    "qwen3_vl": "Qwen3-VL",
    "internvl": "InternVL",
    "idefics3": "Idefics3",
    "smolvlm": "SmolVLM",
    "gemma3": "Gemma 3",
}
"""What people call transformers' ``model_type``."""
COLUMNS = (
    "family", "scoring", "sampling", "shared prompts", "features kept",
    "LoRA leaves tower frozen", "several images", "text-only rows", "spans",
)  # fmt: skip


def row(kind: str, family: Family) -> list[str]:
    """The cells of one family.

    Those that no setting of a family decides are "yes": `tests/vision` runs every family through
    them.
    """
    return [
        f"{NAMES[kind]} (`{kind}`)",
        "yes",
        "yes",
        "no: a picture's tokens see each other" if family.blocks else "yes",
        "yes" if family.projector is None else "yes, under a trained projector too",
        "yes",
        "yes" if family.number is None else "yes, each more coarsely than one alone",
        "yes",
        "yes" if kind in BOXES else "no",
    ]


def table() -> str:
    """The table in Markdown."""
    rows = [list(COLUMNS), ["---"] * len(COLUMNS), *[row(k, f) for k, f in FAMILIES.items()]]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows)


def main() -> None:
    """Rewrite the part of the guide between the markers, or compare it."""
    text = GUIDE.read_text("utf-8")
    head, _, rest = text.partition(START)
    _, _, tail = rest.partition(END)
    wanted = f"{head}{START}\n{table()}\n{END}{tail}"
    if "--check" in sys.argv[1:]:
        sys.exit(0 if wanted == text else "the table of models.md is old: run docs/families.py")
    GUIDE.write_text(wanted, "utf-8")


if __name__ == "__main__":
    main()
