"""What the policy is held to: fixed, the right one, and recorded without ever being stale."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import core_parts
import pytest
import torch
from core_parts import offline, trace, training
from torch import Tensor

from mmalign import lora, references
from mmalign.fingerprints import row_keys
from mmalign.lora import LoRA
from mmalign.policy import Policy
from mmalign.protocols import Reference
from mmalign.references import Frozen, LoRAOff, NamedLoRA, Recorded, RecordedReference
from mmalign.text import TextPolicy
from mmalign.trainer import Trainer
from mmalign.types import Trajectory


def policy_of(model: str, **settings: Any) -> Policy:
    return TextPolicy(
        model=model, **{"lora": core_parts.LORA, "max_new_tokens": 40, **settings}
    ).load()


def trajectory_of(policy: Policy) -> Trajectory:
    from mmalign.tinyworld.data import TinyWorld

    pairs = TinyWorld(task="arithmetic", size=3).preferences()
    return policy.adapter.encode(
        [p.prompt for p in pairs],
        [[p.chosen, p.rejected] for p in pairs],
        generators=[torch.Generator() for _ in pairs],
    )


def scores(policy: Policy, trajectory: Trajectory) -> Tensor:
    with torch.no_grad():
        return policy.adapter.scores(policy.model, trajectory).log_probs


def disturb(policy: Policy, *, seed: int = 0) -> None:
    """Move everything that is trained."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in policy.trainable().values():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=draw))


@pytest.fixture(scope="module")
def sft(model: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A LoRA that an earlier stage has left, in peft's layout."""
    folder = tmp_path_factory.mktemp("sft")
    policy = policy_of(model, lora=LoRA(rank=2, alpha=8))
    disturb(policy, seed=9)
    policy.save(folder)
    return str(folder)


KINDS: Mapping[str, tuple[dict[str, Any], Any]] = {
    "frozen, full": ({"lora": None}, Frozen()),
    "frozen, LoRA": ({}, Frozen()),
    "LoRA off": ({}, LoRAOff()),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_reference_starts_at_the_policy_and_stays(kind: str, model: str) -> None:
    """Bitwise the policy's scores before training, in spite of dropout in the model's config.

    Afterwards the policy has moved and the reference has not, by a single bit.
    """
    settings, spec = KINDS[kind]
    policy = policy_of(model, **settings)
    trajectory = trajectory_of(policy)
    reference = spec.build(policy)
    before = reference.scores(trajectory)
    assert reference.starts_at_policy
    assert torch.equal(before, scores(policy, trajectory))
    assert torch.equal(before, reference.scores(trajectory))
    disturb(policy)
    assert torch.equal(before, reference.scores(trajectory))
    assert float((scores(policy, trajectory) - before).abs().max()) > 0.1
    assert not before.requires_grad


def test_a_named_lora(model: str, sft: str) -> None:
    """The reference is base + that LoRA; the policy starts at the base and trains alone."""
    expected = policy_of(model, lora=LoRA(path=sft))
    trajectory = trajectory_of(expected)
    policy = policy_of(model)
    trained = set(policy.trainable())
    reference = NamedLoRA(path=sft).build(policy)
    assert not reference.starts_at_policy
    assert torch.equal(reference.scores(trajectory), scores(expected, trajectory))
    base = scores(policy_of(model, lora=None), trajectory)
    assert torch.equal(scores(policy, trajectory), base)
    assert set(policy.trainable()) == trained and all("lora_" in name for name in trained)
    assert lora.merge_name(policy.model) == "policy"
    before = reference.scores(trajectory)
    disturb(policy)
    assert torch.equal(reference.scores(trajectory), before)
    assert not torch.equal(scores(policy, trajectory), base)


def test_weights_are_shared(model: str, sft: str) -> None:
    """LoRA off costs no weights, and a named LoRA costs its own."""
    policy = policy_of(model)
    mine = {p.data_ptr() for p in policy.model.parameters()}
    for spec, extra in ((LoRAOff(), False), (NamedLoRA(path=sft), True)):
        network = spec.build(policy).network
        others = {k for k, p in network.named_parameters() if p.data_ptr() not in mine}
        assert bool(others) is extra
        assert all(lora.belongs(key, "reference") for key in others)


def test_a_frozen_copy_copies_what_is_trained(model: str) -> None:
    """What full fine-tuning leaves alone (a vision tower; here the embedding) serves both."""
    policy = policy_of(model, lora=None)
    frozen = policy.model.get_input_embeddings().weight.requires_grad_(False)
    copied = Frozen().build(policy).network
    assert copied.get_input_embeddings().weight is frozen
    trained = policy.trainable()
    assert trained
    for name, parameter in copied.named_parameters():
        mine = trained.get(f"model.{name}")
        if mine is not None:
            assert mine.requires_grad and not parameter.requires_grad
            assert parameter.data_ptr() != mine.data_ptr() and torch.equal(parameter, mine)


def test_the_default_of_a_policy_that_starts_from_a_lora_is_that_lora(
    model: str, sft: str, tmp_path: Path
) -> None:
    """Never the base model, neither plainly nor recorded; log 2 at the start shows it."""
    run = offline(model, tmp_path / "plain")
    run = replace(run, policy=replace(run.policy, lora=LoRA(path=sft)))
    recorded = replace(
        run,
        reference=Recorded(folder=str(tmp_path / "scores")),
        output=str(tmp_path / "recorded"),
    )
    trajectory = trajectory_of(policy_of(model))
    start = scores(policy_of(model, lora=LoRA(path=sft)), trajectory)
    assert float((start - scores(policy_of(model, lora=None), trajectory)).abs().max()) > 0.1
    for settings in (run, recorded):
        trainer = settings.build()
        assert trainer.reference.starts_at_policy
        torch.testing.assert_close(trainer.reference.scores(trajectory), start)
        trainer.train()
        assert trace(settings.output)[0]["loss"] == pytest.approx(0.693147, abs=1e-5)
    assert isinstance(references.default(policy_of(model), start=sft), NamedLoRA)
    assert isinstance(references.default(policy_of(model)), LoRAOff)
    assert isinstance(references.default(policy_of(model, lora=None)), Frozen)


def test_what_is_no_fixed_reference_is_refused(model: str, sft: str) -> None:
    with pytest.raises(ValueError, match="needs a policy with a LoRA; use `type: frozen`"):
        LoRAOff().build(policy_of(model, lora=None))
    with pytest.raises(ValueError, match="needs a policy that trains a LoRA"):
        NamedLoRA(path=sft).build(policy_of(model, lora=None))
    policy = policy_of(model)
    with pytest.raises(ValueError, match="policy's LoRA is called 'policy' too"):
        NamedLoRA(path=sft, name="policy").build(policy)
    policy.model.lm_head.weight.requires_grad_(True)
    for spec in (LoRAOff(), NamedLoRA(path=sft)):
        with pytest.raises(
            ValueError, match=r"1 parameters outside the LoRA.*embed_tokens|lm_head"
        ):
            spec.build(policy)


# ---- recorded --------------------------------------------------------------------------------


class Counting:
    """The inner reference, counting the rows it is asked for."""

    def __init__(self, inner: Reference) -> None:
        self.inner, self.rows, self.starts_at_policy = inner, 0, True

    def scores(self, trajectory: Trajectory) -> Tensor:
        self.rows += len(trajectory)
        return self.inner.scores(trajectory)

    def fingerprint(self) -> str:
        return self.inner.fingerprint()


def counted(trainer: Trainer) -> Counting:
    assert isinstance(trainer.reference, RecordedReference)
    trainer.reference.inner = Counting(trainer.reference.inner)
    return trainer.reference.inner


def test_every_row_is_computed_once(model: str, tmp_path: Path) -> None:
    """Six pairs, two epochs of shuffled batches of 4 and 2: 12 rows in all, and 0 in a second run.

    The losses are those of the live reference.
    """
    live = training(offline(model, tmp_path / "live"), steps=4)
    recorded = replace(live, reference=Recorded(folder=str(tmp_path / "scores")))
    first, second = (replace(recorded, output=str(tmp_path / name)) for name in ("a", "b"))
    live.train()
    for run, rows in ((first, 12), (second, 0)):
        trainer = run.build()
        counter = counted(trainer)
        trainer.train()
        assert counter.rows == rows
        for line, expected in zip(trace(run.output), trace(live.output), strict=True):
            assert line == pytest.approx(expected, abs=1e-5)
    assert len(list((tmp_path / "scores").iterdir())) == 1


def test_only_what_a_damaged_file_held_is_computed_again(model: str, tmp_path: Path) -> None:
    """Four rows in one file and four in another, whose last byte is flipped: 4, not 8 or 0.

    The scores are those of the live reference, bit for bit where they were read.
    """
    policy = policy_of(model)
    rows = trajectory_of(policy)
    recorded = Recorded(folder=str(tmp_path)).build(policy)
    for part in (slice(0, 4), slice(4, 6)):
        recorded.scores(rows.rows(torch.arange(6)[part]))
        recorded.close()
    first, second = sorted(tmp_path.glob("*/shard-*"), key=lambda path: -path.stat().st_size)
    content = bytearray(first.read_bytes())
    content[-1] ^= 1
    first.write_bytes(content)
    again = Recorded(folder=str(tmp_path)).build(policy)
    again.inner = counter = Counting(again.inner)
    torch.testing.assert_close(again.scores(rows), LoRAOff().build(policy).scores(rows))
    assert counter.rows == 4 and second.is_file() and not first.is_file()
    again.scores(rows)
    assert counter.rows == 4


def test_equal_rows_of_a_batch_are_computed_once(model: str, tmp_path: Path) -> None:
    policy = policy_of(model)
    rows = trajectory_of(policy).rows(torch.tensor([0, 1, 0, 0]))
    recorded = Recorded(folder=str(tmp_path)).build(policy)
    recorded.inner = counter = Counting(recorded.inner)
    found = recorded.scores(rows)
    assert counter.rows == 2
    assert torch.equal(found[0], found[2]) and torch.equal(found[0], found[3])


def test_a_store_says_what_it_was_computed_by(model: str, sft: str, tmp_path: Path) -> None:
    """In plain text, so that a person sees why two folders differ."""
    for spec in (LoRAOff(), NamedLoRA(path=sft)):
        Recorded(folder=str(tmp_path), of=spec).build(policy_of(model))
    said = [json.loads(path.read_text()) for path in tmp_path.glob("*/fingerprint.json")]
    assert len(said) == 2
    assert {about["lora"] for about in said} == {"none", "reference"}
    for about in said:
        assert about["network"] == "LlamaForCausalLM" and about["dtype"] == "float32"
        assert "temperature=1.0" in about["adapter"] and "torch 2." in about["code"]


def test_another_tokenizer_or_template_is_another_key(model: str, tmp_path: Path) -> None:
    """Both act through the ids of a row alone, and those are its key."""
    policy = policy_of(model)
    rows = trajectory_of(policy)
    plain = row_keys(rows)
    tokenizer = policy.adapter.tokenizer
    tokenizer.chat_template = "{{ messages[0]['content'] }} ."
    assert not set(row_keys(trajectory_of(policy))) & set(plain)


def test_an_interrupted_run_keeps_what_it_computed(model: str, tmp_path: Path) -> None:
    from mmalign.trainer import Interrupted

    run = replace(
        offline(model, tmp_path / "run"), reference=Recorded(folder=str(tmp_path / "scores"))
    )
    trainer = run.build()
    core_parts.stop_after(trainer, 1)
    with pytest.raises(Interrupted):
        trainer.train()
    again = run.build()
    assert len(again.reference.store) == 8
    counter = counted(again)
    again.train(resume=True)
    assert counter.rows == 4


def test_another_reference_never_reads_the_store(model: str, sft: str, tmp_path: Path) -> None:
    """Weights, LoRA scale, temperature: each has a fingerprint of its own, hence a folder."""
    policies = {
        "as it is": policy_of(model),
        "another temperature": policy_of(model, temperature=0.7),
    }
    moved = policy_of(model)
    with torch.no_grad():
        moved.model.get_input_embeddings().weight[3, 5] += 1e-6
    policies["a weight moved by a hair"] = moved
    policies["another dtype"] = policy_of(model, dtype="bfloat16")
    found = {name: LoRAOff().build(policy).fingerprint() for name, policy in policies.items()}
    found["a LoRA"] = NamedLoRA(path=sft).build(policy_of(model)).fingerprint()
    louder = tmp_path / "louder"
    policy = policy_of(model, lora=LoRA(path=sft))
    policy.save(louder)
    config = louder / "adapter_config.json"
    text = config.read_text()
    assert '"lora_alpha": 8' in text
    config.write_text(text.replace('"lora_alpha": 8', '"lora_alpha": 16'))
    found["the same LoRA, louder"] = (
        NamedLoRA(path=str(louder)).build(policy_of(model)).fingerprint()
    )
    assert len(set(found.values())) == len(found)
    trained = policy_of(model)
    reference = LoRAOff().build(trained)
    disturb(trained)
    assert reference.fingerprint() == found["as it is"]


def test_a_fingerprint_holds_no_address(model: str) -> None:
    """It names a folder that later processes must find again: two objects, one fingerprint."""
    first, second = policy_of(model), policy_of(model)
    assert repr(first.adapter) != repr(second.adapter)
    assert LoRAOff().build(first).fingerprint() == LoRAOff().build(second).fingerprint()
    assert " at 0x" not in first.adapter.describe()


def test_another_precision_is_another_score(model: str, tmp_path: Path) -> None:
    """Scores computed under autocast are not what a float32 run reads."""
    policy = policy_of(model)
    trajectory = trajectory_of(policy)
    recorded = Recorded(folder=str(tmp_path)).build(policy)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        coarse = recorded.scores(trajectory)
    fine = recorded.scores(trajectory)
    assert not torch.equal(coarse, fine)
    torch.testing.assert_close(fine, LoRAOff().build(policy).scores(trajectory))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(recorded.scores(trajectory), coarse)


def made(**changes: Any) -> Trajectory:
    """Two rows of one prompt; the first has a masked step between two of the policy's."""
    values: dict[str, Any] = {
        "mask": torch.tensor([[True, False, True], [True, True, False]]),
        "prompt_of": torch.tensor([0, 0]),
        "static": {"prompt_ids": [torch.tensor([5, 8])]},
        "stepwise": {"token": torch.tensor([[4, 7, 2], [9, 2, 0]])},
        "outputs": ["a", "b"],
    }
    return Trajectory(**{**values, **changes})


def test_a_key_is_the_row_alone() -> None:
    """Neighbours, their order and the padding do not count."""
    whole = made()
    keys = row_keys(whole)
    assert len(set(keys)) == 2
    assert row_keys(whole.rows(torch.tensor([1, 0]))) == keys[::-1]
    other = made(static={"prompt_ids": [torch.tensor([1])]})
    assert row_keys(Trajectory.concatenate([other, whole]))[2:] == keys
    garbage = made(stepwise={"token": torch.tensor([[4, 7, 2], [9, 2, 3]])})
    assert row_keys(garbage) == keys
    assert row_keys(made(log_probs=torch.randn(2, 3))) == keys
    longer = Trajectory.concatenate([whole, made(mask=torch.ones(2, 3, dtype=torch.bool))])
    assert row_keys(longer)[:2] == keys


@pytest.mark.parametrize(
    "changes",
    [
        {"stepwise": {"token": torch.tensor([[4, 7, 3], [9, 2, 0]])}},
        # A step that is not the policy's own, but that the next one answers to.
        {"stepwise": {"token": torch.tensor([[4, 6, 2], [9, 2, 0]])}},
        {"mask": torch.tensor([[False, True, True], [True, True, False]])},
        {"static": {"prompt_ids": [torch.tensor([5, 9])]}},
        {"static": {"prompt_ids": [torch.tensor([[5, 8]])]}},
        {"static": {"prompt_ids": [torch.tensor([5, 8], dtype=torch.int32)]}},
        {"static": {"pixels": [torch.tensor([5, 8])]}},
        {"static": {"prompt_ids": [{"nested": [torch.tensor([5, 8])]}]}},
    ],
)
def test_a_key_is_everything_a_score_depends_on(changes: dict[str, Any]) -> None:
    assert row_keys(made(**changes))[0] != row_keys(made())[0]
