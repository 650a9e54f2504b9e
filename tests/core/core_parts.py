"""What the tests of the core share: a tiny text model, small runs, and their state and trace."""

from __future__ import annotations

import os
import signal
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmalign.log import TIMING, RunFolder
from mmalign.lora import LoRA
from mmalign.objectives import DPO, GRPO, PPO
from mmalign.run import Run, Training
from mmalign.selectors import BestWorst
from mmalign.sources import Preferences, Rollouts
from mmalign.text import TextPolicy
from mmalign.tinyworld.data import TinyWorld
from mmalign.trainer import Trainer
from mmalign.types import Output, Prompt


def write_model(folder: Path) -> str:
    """A random Llama of two layers, width 32, that speaks the tiny world's words."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from mmalign.tinyworld.tokenizer import build_tokenizer

    tokenizer = build_tokenizer()
    torch.manual_seed(5)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=256,
        attention_dropout=0.5,
        initializer_range=0.3,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@dataclass(frozen=True, slots=True, kw_only=True)
class EarlyLetters:
    """A reward with few ties: the mean place in the alphabet of the first letters, from the end."""

    def __call__(self, prompts: Sequence[Prompt], outputs: Sequence[Output]) -> Tensor:
        return torch.tensor([self._of(str(output)) for output in outputs])

    def _of(self, output: str) -> float:
        letters = [ord("z") - ord(word[0]) for word in output.split()]
        return sum(letters) / (26 * len(letters)) if letters else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Constant:
    """A reward that ties every group."""

    def __call__(self, prompts: Sequence[Prompt], outputs: Sequence[Output]) -> Tensor:
        return torch.ones(len(outputs))


@dataclass(frozen=True, slots=True, kw_only=True)
class Failing:
    """A reward that works for ``calls`` calls and then fails."""

    calls: int = 0

    def __call__(self, prompts: Sequence[Prompt], outputs: Sequence[Output]) -> Tensor:
        if CALLS["failing"] >= self.calls:
            raise RuntimeError("the judge is out of order")
        CALLS["failing"] += 1
        return EarlyLetters()(prompts, outputs)


CALLS = {"failing": 0}
TRAINING = Training(steps=3, learning_rate=1e-2, max_grad_norm=1.0)
LORA = LoRA(rank=4, alpha=8)


def offline(model: str, output: Path, *, size: int = 6, batch_size: int = 4) -> Run:
    """DPO on recorded pairs whose answers differ in length."""
    return Run(
        policy=TextPolicy(model=model, lora=LORA, max_new_tokens=40),
        objective=DPO(beta=0.5),
        source=Preferences(data=TinyWorld(task="arithmetic", size=size), batch_size=batch_size),
        training=TRAINING,
        output=str(output),
    )


def rollouts(**changes: Any) -> Rollouts:
    settings: dict[str, Any] = {
        "data": TinyWorld(task="arithmetic", size=6),
        "reward": EarlyLetters(),
        "num_generations": 4,
        "batch_size": 2,
    }
    return Rollouts(**{**settings, **changes})


def online(model: str, output: Path) -> Run:
    """The same DPO, fed by the policy's own samples."""
    policy = TextPolicy(model=model, lora=LORA, max_new_tokens=6)
    source = rollouts(selector=BestWorst())
    return replace(offline(model, output), policy=policy, source=source)


def grpo(model: str, output: Path) -> Run:
    return replace(online(model, output), objective=GRPO(beta=0.1), source=rollouts())


def ppo(model: str, output: Path) -> Run:
    return replace(online(model, output), objective=PPO(), source=rollouts(num_generations=2))


RUNS = {"offline": offline, "online": online, "grpo": grpo, "ppo": ppo}


def training(run: Run, **changes: Any) -> Run:
    """The run with other settings of the loop."""
    return replace(run, training=replace(run.training, **changes))


def tensors_of(trainer: Trainer) -> dict[str, Tensor]:
    """Copies of everything an update moves: parameters, moments, step counters, followers."""
    found = {name: p.detach().clone() for name, p in trainer.parameters.items()}
    for name, parameter in trainer.parameters.items():
        for key, value in trainer.optimizer.state.get(parameter, {}).items():
            found[f"{name}|{key}"] = value.clone()
    for part, follower in trainer.followers.items():
        found |= {f"{part}|{name}": value.clone() for name, value in follower.tensors().items()}
    return found


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    """Bitwise equality of two states."""
    return first.keys() == second.keys() and all(
        torch.equal(first[name], second[name]) for name in first
    )


def trace(output: str | Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl without timings."""
    lines = RunFolder(Path(output)).read("metrics.jsonl")
    return [{k: v for k, v in line.items() if not k.startswith(TIMING)} for line in lines]


def forked(body: Callable[[], int]) -> int:
    """Run ``body`` in a copy of this process; its number. ``body``'s result is the exit code.

    For plain file operations only: threads, and the locks they hold, do not survive a fork.
    """
    process = os.fork()
    if process:
        return process
    code = 99
    try:
        code = body()
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def exit_code(process: int) -> int:
    """Wait for a forked process: its exit code, or minus the signal that ended it.

    One that does not end within a minute is killed: a fork that hangs must fail, not hang us.
    """
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        found, status = os.waitpid(process, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    raise TimeoutError(f"the forked process {process} did not end")


def stop_after(trainer: Trainer, step: int) -> None:
    """Send this process SIGTERM while update ``step`` is being made."""
    update = trainer.update

    def interrupted(batch: Any) -> dict[str, float]:
        if trainer.progress.step + 1 == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return update(batch)

    trainer.update = interrupted  # type: ignore[method-assign]
