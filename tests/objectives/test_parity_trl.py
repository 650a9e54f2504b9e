"""The same numbers as TRL's own loss code, on the same real model and tokens.

TRL's trainers are built as a user builds them and their `_compute_loss` is called on one batch. Our
side reads log-probs off the model's logits in plain torch and hands them to the objective.
"""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from mmalign import functional
from mmalign.objectives import DPO, GRPO, IPO
from mmalign.types import Batch, Scores, Trajectory

trl = pytest.importorskip("trl", reason="parity with TRL needs trl (extra `test-peers`)")
datasets = pytest.importorskip("datasets")
transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

WORDS = ["<pad>", "<eos>", *"abcdefghij"]


def a_tokenizer() -> object:
    """Twelve words, split at spaces."""
    vocabulary = {word: i for i, word in enumerate(WORDS)}
    plain = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<pad>"))
    plain.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=plain, pad_token="<pad>", eos_token="<eos>"
    )


def a_llama(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=len(WORDS), hidden_size=16, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=64,
        pad_token_id=0, eos_token_id=1, bos_token_id=1, initializer_range=0.5,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config).eval()


def settings(folder: Path) -> dict[str, object]:
    return {
        "output_dir": str(folder), "report_to": [], "use_cpu": True, "bf16": False,
        "disable_tqdm": True,
    }  # fmt: skip


def completion_log_probs(model: nn.Module, ids: Tensor, attention: Tensor, mask: Tensor) -> Tensor:
    """``[B, L - 1]`` log-prob of each token after the first, 0 where ``mask`` is."""
    logits = model(input_ids=ids, attention_mask=attention).logits[:, :-1].float()
    taken = logits.log_softmax(-1).gather(2, ids[:, 1:, None]).squeeze(2)
    return torch.where(mask[:, 1:].bool(), taken, 0.0)


def rows_of(mask: Tensor, group: Tensor, reward: Tensor) -> Batch:
    made = Trajectory(
        mask=mask.bool(),
        prompt_of=group,
        static={},
        stepwise={"row": torch.arange(len(mask))[:, None].expand(mask.shape)},
        outputs=[None] * len(mask),
    )
    return Batch(trajectory=made, group=group, reward=reward, weight=mask.float())


PAIRS = {
    "prompt": ["a b c", "d e", "f"],
    "chosen": [" d e f g", " a", " b c a"],
    "rejected": [" h", " i j a b c", " d d"],
}
PAIRWISE = [
    ({"loss_type": ["sigmoid"], "beta": 0.5}, DPO(beta=0.5)),
    ({"loss_type": ["ipo"], "beta": 0.2}, IPO(beta=0.2)),
]


def dpo_trainer(folder: Path, **loss: object) -> object:
    """A trainer whose policy differs from its reference, and one of its batches."""
    trainer = trl.DPOTrainer(
        model=a_llama(1),
        ref_model=a_llama(2),
        args=trl.DPOConfig(per_device_train_batch_size=3, **settings(folder), **loss),
        train_dataset=datasets.Dataset.from_dict(PAIRS),
        processing_class=a_tokenizer(),
    )
    trainer.model.eval()
    return trainer


def pairs_of(trainer: object, inputs: dict[str, Tensor]) -> tuple[Batch, Scores]:
    """Our batch of TRL's ``[all chosen; all rejected]`` rows."""
    ids, attention = inputs["input_ids"], inputs["attention_mask"]
    mask = inputs["completion_mask"]
    count = len(ids) // 2
    pair = torch.arange(count).repeat(2)
    reward = torch.tensor([1.0, 0.0]).repeat_interleave(count)
    with torch.no_grad():
        reference = completion_log_probs(trainer.ref_model, ids, attention, mask)
    batch = replace(rows_of(mask[:, 1:], pair, reward), reference=reference)
    return batch, Scores(log_probs=completion_log_probs(trainer.model, ids, attention, mask))


@pytest.mark.parametrize(("loss", "objective"), PAIRWISE)
def test_dpo_and_ipo(loss, objective, tmp_path):
    """Loss, gradient of every parameter, and the logged rewards."""
    trainer = dpo_trainer(tmp_path, **loss)
    inputs = next(iter(trainer.get_train_dataloader()))
    parameters = list(trainer.model.parameters())
    theirs = trainer._compute_loss(trainer.model, dict(inputs), False)
    expected = torch.autograd.grad(theirs, parameters)

    batch, scores = pairs_of(trainer, inputs)
    batch = objective.credit(batch)
    assert batch.denominator == 3.0 and len({int(n) for n in batch.trajectory.mask.sum(1)}) > 1
    ours = objective.loss(scores, batch)
    mean = ours.total / batch.denominator
    torch.testing.assert_close(mean, theirs, rtol=1e-5, atol=1e-6)
    for got, wanted in zip(torch.autograd.grad(mean, parameters), expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-6)
    logged = trainer._metrics["eval"]
    for name, (total, count) in ours.metrics.items():
        if name in logged:
            assert float(total) / float(count) == pytest.approx(logged[name][-1], abs=1e-4), name
    assert set(ours.metrics) - {"loss"} <= set(logged)


FUNCTIONS = [
    ("hinge", "hinge", {}, {}),
    ("exo_pair", "exo_pair", {"label_smoothing": 0.01}, {"label_smoothing": 0.01}),
    ("nca_pair", "nca_pair", {}, {}),
    ("robust", "rdpo", {"label_smoothing": 0.1}, {"label_smoothing": 0.1}),
    ("bco_pair", "bco", {}, {}),
    ("sppo_hard", "sppo_hard", {}, {}),
    ("aot", "aot", {"label_smoothing": 0.1}, {"label_smoothing": 0.1}),
    ("aot_unpaired", "aot_unpaired", {}, {}),
    ("apo_zero", "apo_zero", {}, {}),
    ("apo_down", "apo_down", {}, {}),
    ("discopop", "discopop", {}, {}),
    ("sigmoid_norm", "ln_dpo", {}, {}),
    ("sigmoid", "f_dpo", {"f_divergence_type": "forward_kl"}, {"divergence": "forward_kl"}),
    ("sigmoid", "f_dpo", {"f_divergence_type": "js_divergence"}, {"divergence": "js"}),
    ("sigmoid", "f_dpo", {"f_divergence_type": "alpha_divergence"}, {"divergence": "alpha"}),
]


def test_every_pairwise_function(tmp_path):
    """TRL's loss types by our keys: means over one batch, beta 0.5."""
    trainer = dpo_trainer(tmp_path, beta=0.5)
    inputs = next(iter(trainer.get_train_dataloader()))
    batch, scores = pairs_of(trainer, inputs)
    s, ref = scores.log_probs.sum(1).detach(), batch.reference.sum(1)
    n = batch.trajectory.mask.sum(1)
    six = (s[:3], s[3:], ref[:3], ref[3:], n[:3], n[3:])
    for their_type, our_key, their_settings, ours in FUNCTIONS:
        trainer.loss_types, trainer.loss_weights = [their_type], [1.0]
        trainer.label_smoothing = their_settings.get("label_smoothing", 0.0)
        trainer.f_divergence_type = their_settings.get("f_divergence_type", "reverse_kl")
        trainer.f_alpha_divergence_coef = 0.5
        with torch.no_grad():
            theirs = trainer._compute_loss(trainer.model, dict(inputs), False)
        got = functional.PAIRWISE[our_key](*six, beta=0.5, **ours).mean()
        torch.testing.assert_close(got, theirs, rtol=1e-5, atol=1e-5, msg=our_key)


POLICY_GRADIENT = [
    ({"loss_type": "grpo"}, GRPO()),
    # By default TRL multiplies the KL by the ratio, which the published k3 term does not.
    ({"loss_type": "grpo", "use_bias_correction_kl": False}, GRPO(beta=0.1)),
    (
        {"loss_type": "dapo", "epsilon_high": 0.28},
        GRPO(aggregate="token", epsilon_high=0.28),
    ),
    (
        {"loss_type": "dr_grpo", "scale_rewards": "none", "max_completion_length": 8},
        GRPO(aggregate="constant", max_length=8, scale="none"),
    ),
]


@pytest.mark.parametrize(("loss", "objective"), POLICY_GRADIENT)
@pytest.mark.parametrize("on_policy", [True, False])
def test_grpo(loss, objective, on_policy, tmp_path):
    """Loss, gradient and clip shares on two groups of two; padding on both sides of a row."""
    trainer = trl.GRPOTrainer(
        model=a_llama(1),
        reward_funcs=lambda completions, **columns: [0.0] * len(completions),
        args=trl.GRPOConfig(
            per_device_train_batch_size=4, num_generations=2, **settings(tmp_path), **loss
        ),
        train_dataset=datasets.Dataset.from_dict({"prompt": ["a", "b", "c", "d"]}),
        processing_class=a_tokenizer(),
    )
    # Its constructor would fetch a reference model by name; the loss reads the coefficient alone.
    trainer.beta = objective.beta
    model = trainer.model.eval()
    prompt_mask = torch.tensor([[0, 1, 1]] * 2 + [[1, 1, 1]] * 2)
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0], [1, 1, 1, 0]])
    prompts = torch.randint(2, 12, (2, 3)).repeat_interleave(2, 0) * prompt_mask
    completions = torch.randint(2, 12, (4, 4)) * mask
    ids = torch.cat([prompts, completions], dim=1)
    attention = torch.cat([prompt_mask, mask], dim=1)

    def log_probs(of: nn.Module) -> Tensor:
        position = (attention.cumsum(1) - 1).clamp(min=0)
        logits = of(input_ids=ids, attention_mask=attention, position_ids=position).logits
        taken = logits[:, 2:-1].float().log_softmax(-1).gather(2, completions[..., None])
        return torch.where(mask.bool(), taken.squeeze(2), 0.0)

    with torch.no_grad():
        reference, behaviour = log_probs(a_llama(2)), log_probs(model)
        behaviour = behaviour + 0.4 * torch.randn_like(behaviour) * mask
    reward = torch.tensor([1.0, 0.0, 0.2, 0.9])
    batch = rows_of(mask, torch.tensor([0, 0, 1, 1]), reward)
    batch = replace(batch, reference=reference, behaviour=None if on_policy else behaviour)
    batch = objective.credit(batch)
    inputs = {
        "prompt_ids": prompts, "prompt_mask": prompt_mask,
        "completion_ids": completions, "completion_mask": mask,
        "advantages": batch.advantage[:, 0], "ref_per_token_logps": reference,
        "old_per_token_logps": None if on_policy else behaviour,
        "num_items_in_batch": mask.sum(),
    }  # fmt: skip
    parameters = list(model.parameters())
    theirs = trainer._compute_loss(model, inputs)
    expected = torch.autograd.grad(theirs, parameters)
    ours = objective.loss(Scores(log_probs=log_probs(model)), batch)
    mean = ours.total / batch.denominator
    torch.testing.assert_close(mean, theirs, rtol=1e-5, atol=1e-6)
    for got, wanted in zip(torch.autograd.grad(mean, parameters), expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-6)
    logged = trainer._metrics["eval"]
    for mine, other in [("clip_ratio/low", "low_mean"), ("clip_ratio/high", "high_mean")]:
        total, count = ours.metrics[mine]
        assert float(total) / float(count) == pytest.approx(logged[f"clip_ratio/{other}"][-1])
    if objective.beta:
        total, count = ours.metrics["kl"]
        assert float(total) / float(count) == pytest.approx(logged["kl"][-1], rel=1e-4)
