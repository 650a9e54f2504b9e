"""KTO and its anchored kin against TRL's own loss code, on the same real model and tokens."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from mmalign.objectives import KTO, APOZeroUnpaired
from mmalign.types import Batch, Scores
from tests.objectives import test_parity_trl as parity

trl = parity.trl
ROWS = {
    "prompt": ["a b c", "d e", "f", "g h a"],
    "completion": [" d e f g", " a", " b c a", " c"],
    "label": [True, False, True, False],
}
LOSSES = [
    (
        {"loss_type": "kto", "desirable_weight": 1.3, "undesirable_weight": 0.7},
        KTO(beta=0.5, desirable_weight=1.3, undesirable_weight=0.7),
    ),
    ({"loss_type": "apo_zero_unpaired"}, APOZeroUnpaired(beta=0.5)),
]


def wide(inputs: dict[str, Tensor], name: str) -> Tensor:
    """The labelled rows of an input, then the mismatched ones where there are any."""
    parts = [inputs[name], *([inputs[f"KL_{name}"]] if f"KL_{name}" in inputs else [])]
    longest = max(part.shape[1] for part in parts)
    return torch.cat([pad(part, (0, longest - part.shape[1])) for part in parts])


def rows_of(trainer: object, model: nn.Module, inputs: dict[str, Tensor]) -> tuple[Batch, Scores]:
    """Our batch of TRL's rows."""
    three = [wide(inputs, name) for name in ("input_ids", "attention_mask", "completion_mask")]
    label = inputs["label"].bool()
    mismatched = len(three[0]) - len(label)
    reward = torch.cat([label.float(), torch.full((mismatched,), torch.nan)])
    made = parity.rows_of(three[2][:, 1:], torch.arange(len(reward)), reward)
    scores = Scores(log_probs=parity.completion_log_probs(model, *three))
    with torch.no_grad():
        reference = parity.completion_log_probs(trainer.ref_model, *three)
    batch = replace(
        made,
        label=torch.cat([label, torch.zeros(mismatched, dtype=torch.bool)]),
        reference=reference,
        behaviour=scores.log_probs.detach(),
    )
    return batch, scores


@pytest.mark.parametrize(("loss", "objective"), LOSSES)
@pytest.mark.parametrize("towards", [1, -1])
def test_kto(loss, objective, towards, tmp_path):
    """Loss and gradient of every parameter. The KL point is above 0 with one of two policies, each
    the other's reference, and clamped with the other.
    """
    seeds = (2, 1)[::towards]
    trainer = trl.KTOTrainer(
        model=parity.a_llama(seeds[0]),
        ref_model=parity.a_llama(seeds[1]),
        args=trl.KTOConfig(
            per_device_train_batch_size=4, beta=0.5, **parity.settings(tmp_path), **loss
        ),
        train_dataset=parity.datasets.Dataset.from_dict(ROWS),
        processing_class=parity.a_tokenizer(),
    )
    trainer.model.eval()
    inputs = next(iter(trainer.get_train_dataloader()))
    parameters = list(trainer.model.parameters())
    theirs = trainer._compute_loss(trainer.model, dict(inputs), False)
    expected = torch.autograd.grad(theirs, parameters)

    batch, scores = rows_of(trainer, trainer.model, inputs)
    batch = objective.credit(batch)
    assert batch.denominator == 4.0
    if isinstance(objective, KTO):
        assert (float(batch.anchor[0]) > 0.01) == (towards == 1)
    ours = objective.loss(Scores(log_probs=scores.log_probs[:4]), batch).total / 4
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    for got, wanted in zip(torch.autograd.grad(ours, parameters), expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-6)
