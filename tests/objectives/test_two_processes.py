"""Two gloo processes with half of the rows each give the credit of one process with all of them."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file

from mmalign.objectives import GRPO, PPO
from mmalign.protocols import Objective
from tests import tabular

pytestmark = pytest.mark.slow

OBJECTIVES: dict[str, Objective] = {
    "grpo": GRPO(scale="batch"),
    "ppo": PPO(whiten_rewards=True),
}
REWARDS = [(1.0, 0.0, 3.0), (0.5, 2.0), (2.0, 2.0), (0.0, 1.0)]
SHARES = [[0, 1, 2], [3, 4, 5, 6, 7, 8]]


def credited(name: str, rows: list[int]) -> dict[str, torch.Tensor]:
    batch = tabular.scored(
        tabular.batch(REWARDS),
        reference=tabular.Tabular(seed=1),
        behaviour=tabular.Tabular(seed=2),
    )
    batch = OBJECTIVES[name].credit(batch.rows(torch.tensor(rows)))
    return {
        "advantage": batch.advantage.contiguous(),
        "denominator": torch.tensor(batch.denominator),
    }


def worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    for name in OBJECTIVES:
        save_file(credited(name, SHARES[rank]), f"{folder}/{name}-{rank}.safetensors")
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
