"""Pre-train one tiny model: `python -m mmalign.tinyworld.pretrain NAME [--out DIR]`."""

from __future__ import annotations

import argparse
from importlib import import_module
from pathlib import Path

from mmalign.tinyworld.pretrain.common import WEIGHTS

# Name on the command line -> (module with a `main(out)`, default folder under the weights).
MODELS = {
    "text": ("mmalign.tinyworld.pretrain.text", "text"),
    "lvlm": ("mmalign.tinyworld.pretrain.lvlm", "lvlm"),
    "ar_image": ("mmalign.tinyworld.pretrain.ar_image", "ar_image"),
    "clip": ("mmalign.tinyworld.pretrain.clip", "clip"),
    "vae": ("mmalign.tinyworld.pretrain.vae", "diffusion/vae"),
    "diffusion": ("mmalign.tinyworld.pretrain.diffusion", "diffusion"),
    "flow": ("mmalign.tinyworld.pretrain.flow", "flow"),
}


def main() -> None:
    """Read the command line and run the one recipe."""
    program = "python -m mmalign.tinyworld.pretrain"
    parser = argparse.ArgumentParser(prog=program, description=__doc__)
    parser.add_argument("name", choices=sorted(MODELS))
    parser.add_argument("--out", type=Path, help="where to write; the package's weights by default")
    arguments = parser.parse_args()
    module, folder = MODELS[arguments.name]
    import_module(module).main(arguments.out or WEIGHTS / folder)


if __name__ == "__main__":
    main()
