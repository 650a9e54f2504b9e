"""Two gloo processes with a part of the rows each give the credit and the gradient of one process
with all of them."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file

from mmalign.objectives import (
    AOT,
    BCO,
    DDPO,
    GRPO,
    KTO,
    MPO,
    PPO,
    PRO,
    TRPA,
    AOTUnpaired,
    BCOUnpaired,
    LambdaDPO,
    LatentEM,
)
from mmalign.protocols import Objective
from tests import tabular

pytestmark = pytest.mark.slow

OBJECTIVES: dict[str, Objective] = {
    "grpo": GRPO(scale="batch"),
    "ppo": PPO(whiten_rewards=True),
    "ddpo": DDPO(min_count=4),
}
REWARDS = [(1.0, 0.0, 3.0), (0.5, 2.0), (2.0, 2.0), (0.0, 1.0)]
COUPLED: dict[str, Objective] = {
    "aot": AOT(beta=0.5),
    "aot_unpaired": AOTUnpaired(beta=0.5, label_smoothing=0.1),
    "bco_pair": BCO(beta=0.5),
    "kto": KTO(beta=0.5),
    "bco_unpaired": BCOUnpaired(beta=0.5),
    "kto_matched": KTO(beta=0.5, kl_point="matched"),
    "mpo": MPO(),
}
LISTS: dict[str, Objective] = {
    "pro": PRO(),
    "lambda_dpo": LambdaDPO(beta=0.5),
    "trpa": TRPA(beta=0.5, best_level=2.0, kl_weight=1.0),
}
SEED = 5  # Of a batch in which a process alone ranks its margins otherwise.
SHARES = [[0, 1, 2], [3, 4, 5, 6, 7, 8]]


def credited(name: str, rows: list[int]) -> dict[str, torch.Tensor]:
    batch = tabular.scored(
        tabular.batch(REWARDS),
        reference=tabular.Tabular(seed=1),
        behaviour=tabular.Tabular(seed=2),
    )
    objective, batch = OBJECTIVES[name], replace(batch, prompt_id=batch.group)
    batch = objective.credit(batch.rows(torch.tensor(rows)))
    if isinstance(objective, DDPO):
        # With what is remembered of it, the last prompt has statistics of its own.
        batch, _ = objective.remember(batch, {"3/0": 7.0, "3/1": 2.0})
    return {
        "advantage": batch.advantage.contiguous(),
        "denominator": torch.tensor(batch.denominator),
    }


def compared(name: str, rows: list[int]) -> dict[str, torch.Tensor]:
    """What the rows are compared with, value and gradient of their loss, and its denominator."""
    objective, policy = COUPLED[name], tabular.Tabular(seed=2)
    batch = tabular.batch(REWARDS, seed=SEED)
    if name == "kto":
        # The rows that earned 2 or more are outputs of another prompt.
        reward = torch.where(batch.reward >= 2.0, torch.nan, batch.reward)
        batch = replace(batch, reward=reward, label=batch.reward > 0)
    batch = tabular.scored(batch, reference=tabular.Tabular(seed=1), behaviour=policy)
    if name.startswith("kto"):
        # The policy finds everything likelier than the reference does, so the KL point is not 0.
        batch = replace(batch, reference=batch.reference - 0.5 * batch.weight)
    batch = objective.credit(batch.rows(torch.tensor(rows)))
    loss = objective.loss(policy.scores(batch.trajectory), batch).total
    loss.backward()
    # Of MPO's terms the second, BCO, has a statistic.
    stated = batch.parts[1] if batch.parts else batch
    anchor = stated.anchor if stated.pair_anchor is None else stated.pair_anchor
    return {
        "anchor": anchor.contiguous(),
        "loss": loss.detach(),
        "gradient": policy.logits.grad,
        "denominator": torch.tensor(batch.denominator),
    }


def listed(name: str, rows: list[int]) -> dict[str, torch.Tensor]:
    """Value and gradient of the rows' loss, and its denominator."""
    objective, policy = LISTS[name], tabular.Tabular(seed=3)
    batch = tabular.scored(
        tabular.batch(REWARDS, seed=SEED),
        reference=tabular.Tabular(seed=1),
        behaviour=tabular.Tabular(seed=2),
    )
    batch = objective.credit(batch.rows(torch.tensor(rows)))
    loss = objective.loss(policy.scores(batch.trajectory), batch).total
    loss.backward()
    return {
        "loss": loss.detach(),
        "gradient": policy.logits.grad,
        "denominator": torch.tensor(batch.denominator),
    }


def learned(rows: list[int]) -> dict[str, torch.Tensor]:
    """What two batches teach about two annotators."""
    batch = tabular.batch(REWARDS, seed=SEED)
    batch = replace(batch, annotator=torch.tensor([1, 1, 1, 2, 2, 1, 1, 2, 2]))
    batch = tabular.scored(
        batch, reference=tabular.Tabular(seed=1), behaviour=tabular.Tabular(seed=2)
    )
    batch = LatentEM().credit(batch.rows(torch.tensor(rows)))
    memory: Mapping[str, float] = {}
    for _ in range(2):
        batch, memory = LatentEM().remember(batch, memory)
    return {key: torch.tensor(value) for key, value in memory.items()}


def worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    for name in OBJECTIVES:
        save_file(credited(name, SHARES[rank]), f"{folder}/{name}-{rank}.safetensors")
    for name in COUPLED:
        save_file(compared(name, SHARES[rank]), f"{folder}/{name}-{rank}.safetensors")
    for name in LISTS:
        save_file(listed(name, SHARES[rank]), f"{folder}/{name}-{rank}.safetensors")
    save_file(learned(SHARES[rank]), f"{folder}/learned-{rank}.safetensors")
    # One process without a pair: it must neither wait for ever nor change the other's statistic.
    tied_or_not = [[5, 6], [0, 1, 2]][rank]
    save_file(compared("aot", tied_or_not), f"{folder}/alone-{rank}.safetensors")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("two")
    torch.multiprocessing.spawn(worker, args=(str(where),), nprocs=2)
    return where


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_statistics_are_those_of_the_whole_batch(name, folder):
    """Unequal shares of three and six rows."""
    whole = credited(name, [*range(9)])
    parts = [load_file(folder / f"{name}-{rank}.safetensors") for rank in range(2)]
    together = torch.cat([p["advantage"] for p in parts])
    torch.testing.assert_close(together, whole["advantage"], rtol=1e-12, atol=1e-12)
    assert sum(float(p["denominator"]) for p in parts) == float(whole["denominator"])
    alone = credited(name, SHARES[0])["advantage"]
    assert (alone - parts[0]["advantage"]).abs().max() > 1e-3


@pytest.mark.parametrize("name", sorted(COUPLED))
def test_coupled_rows_have_the_gradient_of_the_whole_batch(name, folder):
    """Unequal shares; a process alone would have compared its rows with something else."""
    whole = compared(name, [*range(9)])
    parts = [load_file(folder / f"{name}-{rank}.safetensors") for rank in range(2)]
    together = torch.cat([p["anchor"] for p in parts])
    torch.testing.assert_close(together, whole["anchor"], rtol=1e-12, atol=1e-12)
    for key in ("loss", "gradient", "denominator"):
        found = parts[0][key] + parts[1][key]
        torch.testing.assert_close(found, whole[key], rtol=1e-12, atol=1e-12)
    alone = compared(name, SHARES[1])["gradient"]
    assert (alone - parts[1]["gradient"]).abs().max() > 1e-4


@pytest.mark.parametrize("name", sorted(LISTS))
def test_lists_have_the_gradient_of_the_whole_batch(name, folder):
    """Groups divided one to three; one of those is tied and counts nowhere. TRPA's estimate, whose
    mean is over the steps of all processes, would weigh otherwise on one alone.
    """
    whole = listed(name, [*range(9)])
    parts = [load_file(folder / f"{name}-{rank}.safetensors") for rank in range(2)]
    for key in ("loss", "gradient", "denominator"):
        found = parts[0][key] + parts[1][key]
        torch.testing.assert_close(found, whole[key], rtol=1e-12, atol=1e-12)
    alone = listed(name, SHARES[1])["gradient"]
    assert ((alone - parts[1]["gradient"]).abs().max() > 1e-4) == (name == "trpa")


def test_a_process_without_pairs_takes_part(folder):
    whole = compared("aot", [0, 1, 2])
    parts = [load_file(folder / f"alone-{rank}.safetensors") for rank in range(2)]
    assert float(parts[0]["denominator"]) == 0.0 == float(parts[0]["gradient"].abs().max())
    torch.testing.assert_close(parts[1]["anchor"], whole["anchor"], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(parts[1]["gradient"], whole["gradient"], rtol=1e-12, atol=1e-12)


def test_both_processes_learn_the_same_of_the_annotators(folder):
    """The first process has pairs of annotator 1 alone and learns of annotator 2 all the same."""
    whole = learned([*range(9)])
    assert whole.keys() == {"1", "2"} and learned(SHARES[0]).keys() == {"1"}
    for rank in range(2):
        found = load_file(folder / f"learned-{rank}.safetensors")
        torch.testing.assert_close(found, whole, rtol=1e-6, atol=1e-6)
