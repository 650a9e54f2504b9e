"""Records of two views: rows, pairs, weights, and what is trained on them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

from mmalign import distributed
from mmalign.lora import LoRA
from mmalign.objectives import DPO, OPADPO, SFT
from mmalign.policy import Policy
from mmalign.references import LoRAOff
from mmalign.text import TextPolicy
from mmalign.tinyworld.data import TinyWorld
from mmalign.types import Batch, Output, Preference, Prompt
from mmalign.vision import LVLMPolicy
from mmalign.vision.distortion import Distortion
from mmalign.vision.views import Views
from tests.vision.lvlm_models import FAMILIES, adapter_of
from tests.vision.test_lvlm import asked

DATA = TinyWorld(task="describe", size=6, seed=3)


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """Preferences as they are handed over."""

    pairs: tuple[Preference, ...]

    def preferences(self) -> Sequence[Preference]:
        return self.pairs

    def prompts(self) -> Sequence[Prompt]:
        return [pair.prompt for pair in self.pairs]

    def demonstrations(self) -> Sequence[tuple[Prompt, Output]]:
        return []


@pytest.fixture(scope="module")
def policy() -> Policy:
    spec = LVLMPolicy(model="tinyworld/lvlm", lora=LoRA(rank=4, alpha=8), max_new_tokens=48)
    return spec.load()


def corrected(number: int = 0, **meta: Any) -> Preference:
    """Chosen "a red circle and a blue square", rejected "a red circle and one", with weights."""
    prompt = DATA.prompts()[number]
    columns = {
        "ground_truth": "a circle",
        "weights_chosen": [[0, 16, 1.0, 1.0], [17, 30, 2.0, 3.0]],
        "weights_rejected": [[0, 16, 1.0, 1.0], [17, 20, 2.0, 3.0]],
    }
    return Preference(
        prompt=prompt,
        chosen="a red circle and a blue square",
        rejected="a red circle and one",
        meta={**columns, **meta},
    )


OPA = Views(
    data=Given(pairs=(corrected(0), corrected(1))),
    batch_size=2,
    shuffle=False,
    ground_truth="ground_truth",
    weights="spans",
)


def first(spec: Views, policy: Policy, seed: int = 0) -> Batch:
    return next(iter(spec.build(policy, seed=seed)))


def test_a_record_of_mdpo(policy: Policy) -> None:
    """Three rows, the third being the chosen answer once more; two pairs, no weights of tokens."""
    batch = first(Views(data=DATA, batch_size=2, image_weight=1.0), policy)
    assert batch.group.tolist() == [0, 0, 0, 1, 1, 1]
    assert batch.reward.tolist() == [1.0, 0.0, 0.0] * 2
    assert batch.pairs.tolist() == [[0, 1], [0, 2], [3, 4], [3, 5]]
    assert batch.coefficient.tolist() == [1.0] * 4 and batch.pair_weight is None
    assert batch.trajectory.prompt_of.tolist() == [0, 0, 1, 2, 2, 3]
    assert batch.trajectory.outputs[0] == batch.trajectory.outputs[2]
    assert torch.equal(batch.trajectory.stepwise["token"][0], batch.trajectory.stepwise["token"][2])


def test_views_alone(policy: Policy) -> None:
    """CoPO: an answer against itself under another view; DPO of that scores no rejected answer."""
    spec = Views(data=DATA, batch_size=2, image_weight=1.0, answer_weight=0.0)
    batch = first(spec, policy)
    assert batch.pairs.tolist() == [[0, 2], [3, 5]] and batch.coefficient.tolist() == [1.0, 1.0]
    credited = DPO().credit(batch)
    assert credited.reward.tolist() == [1.0, 0.0] * 2 and credited.denominator == 2.0
    assert credited.trajectory.prompt_of.tolist() == [0, 1, 2, 3]


def test_a_record_of_opa_dpo(policy: Policy) -> None:
    """Five rows, four pairs: truth and revision over the sample, and each over its other view."""
    batch = first(OPA, policy)
    assert batch.group.tolist() == [0] * 5 + [1] * 5
    assert batch.reward[:5].tolist() == [1.0, 0.0, 2.0, 0.0, 0.0]
    texts = batch.trajectory.outputs
    assert [[texts[w], texts[r]] for w, r in batch.pairs[:4].tolist()] == [
        ["a circle", "a red circle and one"],
        ["a red circle and a blue square", "a red circle and one"],
        ["a red circle and a blue square"] * 2,
        ["a circle"] * 2,
    ]
    assert batch.coefficient[:4].tolist() == pytest.approx([1.0, 1.0, 0.2, 0.2])
    views = batch.trajectory.prompt_of[batch.pairs[:4]]
    assert views.tolist() == [[0, 0], [0, 0], [0, 1], [0, 1]]


def test_weights_of_sentences_reach_their_tokens(policy: Policy) -> None:
    """One token a word. Revision: "a red circle and" 1, "a blue square" 2, and 2 on its end.

    The sample: "a red circle and" 1, "one" 2, and 1 on its end. Between views the revision has 3 on
    the second sentence and its end, on both sides; the truth has 1 everywhere.
    """
    batch = first(OPA, policy)
    assert batch.pair_weight is not None
    truth, revision, views, truths = batch.pair_weight[:4].tolist()
    ones = [1.0, 1.0, 1.0, 1.0]
    assert truth == [[1.0] * 3 + [0.0] * 5, [1.0] * 6 + [0.0] * 2]
    assert revision == [[*ones, 2.0, 2.0, 2.0, 2.0], [*ones, 2.0, 1.0, 0.0, 0.0]]
    assert views == [[*ones, 3.0, 3.0, 3.0, 3.0]] * 2
    assert truths == [[1.0] * 3 + [0.0] * 5] * 2


def test_changed_tokens(policy: Policy) -> None:
    """Three tokens against one weigh 5 ("a blue square", "one"), in the pair of answers alone."""
    spec = replace(OPA, weights="changed", ground_truth=None)
    batch = first(spec, policy)
    answers, views = batch.pair_weight[:2].tolist()
    ones = [1.0, 1.0, 1.0, 1.0]
    assert answers == [[*ones, 5.0, 5.0, 5.0, 1.0], [*ones, 5.0, 1.0, 0.0, 0.0]]
    assert views == [[1.0] * 8] * 2


def test_other_pictures_same_words(policy: Policy) -> None:
    """The distorted prompt has the same ids, and 30 % of the processed pixels at their mean."""
    batch = first(Views(data=DATA, batch_size=1, shuffle=False), policy)
    static = batch.trajectory.static
    assert torch.equal(*static["prompt_ids"])
    before, after = (one["pixel_values"][0] for one in static["per_image"])
    changed = (before != after).any(0)
    assert int(changed.sum()) == int(0.3 * changed.numel())
    assert torch.all(after[:, changed] == before.mean())
    assert static["image_keys"][0] != static["image_keys"][1]
    with torch.no_grad():
        scores = policy.scores(batch.trajectory).log_probs
    assert not torch.allclose(scores[0], scores[2])


def test_distortions_are_drawn_by_row_and_epoch(policy: Policy) -> None:
    """The same seed gives the same views in any batch; the next epoch gives others."""

    def pixels(batch: Batch) -> list[torch.Tensor]:
        return [one["pixel_values"] for one in batch.trajectory.static["per_image"]][1::2]

    spec = Views(data=DATA, batch_size=6, shuffle=False)
    batches = iter(spec.build(policy, seed=0))
    whole, later = pixels(next(batches)), pixels(next(batches))
    small = iter(replace(spec, batch_size=2).build(policy, seed=0))
    parts = [p for _ in range(3) for p in pixels(next(small))]
    assert all(torch.equal(a, b) for a, b in zip(whole, parts, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(whole, later, strict=True))
    fixed = iter(replace(spec, fixed_views=True).build(policy, seed=0))
    first_time, second_time = pixels(next(fixed)), pixels(next(fixed))
    assert all(torch.equal(a, b) for a, b in zip(first_time, second_time, strict=True))


def test_one_view_twice(policy: Policy) -> None:
    """Nothing distorted: L_IF is 2 log 2 exactly, with no gradient, on the real model."""
    spec = replace(OPA, distortion=Distortion(share=0.0))
    batch = first(spec, policy)
    batch = replace(batch, reference=torch.zeros_like(batch.weight))
    batch = OPADPO().credit(batch)
    only = replace(batch, coefficient=torch.tensor([0.0, 0.0, 1.0, 1.0] * 2))
    loss = OPADPO(anchor_weight=0.0).loss(policy.scores(only.trajectory), only).total
    assert float(loss.detach()) / 2 == pytest.approx(2 * math.log(2), abs=1e-5)
    policy.scorer.zero_grad()
    loss.backward()
    norms = [float(p.grad.norm()) for p in policy.trainable().values() if p.grad is not None]
    policy.scorer.zero_grad()
    assert max(norms) < 1e-4


def test_the_landmark_on_the_real_model(policy: Policy) -> None:
    """Fresh LoRA: 2 log 2 (1 + 0.2 + 1) = 3.049848 a record, in one piece and in two."""
    batch = first(OPA, policy)
    batch = replace(batch, reference=LoRAOff().build(policy).scores(batch.trajectory))
    batch = OPADPO().credit(batch)
    with torch.no_grad():
        for rows in (None, 5):
            pieces = batch.microbatches(rows=rows, steps=None, additive_over="group")
            losses = [OPADPO().loss(policy.scores(p.trajectory), p).total for p in pieces]
            assert float(sum(losses)) / batch.denominator == pytest.approx(3.049848, abs=1e-4)


def test_any_pairwise_objective_takes_the_pairs(policy: Policy) -> None:
    """DPO: its denominator is the sum of the coefficients, 2.4 a record."""
    batch = first(OPA, policy)
    batch = replace(batch, reference=LoRAOff().build(policy).scores(batch.trajectory))
    batch = DPO().credit(batch)
    assert batch.denominator == pytest.approx(4.8)
    with torch.no_grad():
        loss = DPO().loss(policy.scores(batch.trajectory), batch).total
    assert float(loss) / batch.denominator == pytest.approx(math.log(2), abs=1e-5)


def test_the_supervised_stage_imitates_both_right_answers(policy: Policy) -> None:
    batch = SFT().credit(first(replace(OPA, image_weight=0.0, weights="none"), policy))
    assert batch.trajectory.outputs == ["a red circle and a blue square", "a circle"] * 2
    assert batch.denominator == 2 * (8 + 3)


def test_a_process_without_a_record_counts_nothing(
    policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One record and two processes: the second scores it too, with loss and denominator 0."""
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    shares = []
    for rank in (0, 1):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        shares.append(first(replace(OPA, data=Given(pairs=(corrected(),))), policy))
    mine, other = (OPADPO().credit(replace(b, reference=b.weight * 0)) for b in shares)
    assert (mine.denominator, other.denominator) == (1.0, 0.0)
    assert len(mine) == len(other) == 5
    with torch.no_grad():
        loss = OPADPO().loss(policy.scores(other.trajectory), other).total
    assert float(loss) == 0.0


def test_it_goes_on_where_it_was(policy: Policy) -> None:
    spec = Views(data=DATA, batch_size=4)
    source = spec.build(policy, seed=1)
    batches = iter(source)
    next(batches)
    state = source.state_dict()
    wanted = next(batches)
    restored = spec.build(policy, seed=1)
    restored.load_state_dict(state)
    found = next(iter(restored))
    assert found.trajectory.outputs == wanted.trajectory.outputs
    assert torch.equal(
        found.trajectory.static["per_image"][1]["pixel_values"],
        wanted.trajectory.static["per_image"][1]["pixel_values"],
    )


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_sees_the_distorted_picture(family: str, plain: bool) -> None:
    """The same tokens, other pixels in the same layout, other scores; with and without sharing."""
    torch.manual_seed(0)
    model, processor = FAMILIES[family]()
    policy = Policy(adapter=adapter_of(model, processor, plain=plain), model=model)
    pair = Preference(
        prompt=asked("describe the picture", "red"), chosen="a red", rejected="a blue"
    )
    noise = Distortion(kind="noise", share=0.9)
    spec = Views(data=Given(pairs=(pair,)), batch_size=1, image_weight=1.0, distortion=noise)
    batch = first(spec, policy)
    static = batch.trajectory.static
    assert torch.equal(*static["prompt_ids"])
    before, after = static["per_image"]
    assert {k: v.shape for k, v in before.items()} == {k: v.shape for k, v in after.items()}
    with torch.no_grad():
        scores = policy.scores(batch.trajectory).log_probs
    assert float((scores[0] - scores[2]).abs().max()) > 1e-5


@pytest.mark.parametrize(
    ("pair", "settings", "message"),
    [
        (corrected(ground_truth=" "), {}, "row 0 has no text in the column 'ground_truth'"),
        (corrected(weights_chosen=[[0, 99, 1, 1]]), {}, "row 0, column 'weights_chosen'"),
        (replace(corrected(), meta={"ground_truth": "x"}), {}, "'weights_chosen' is missing"),
        (replace(corrected(), prompt=Prompt(content="describe")), {}, "no picture"),
        (replace(corrected(), rejected_prompt=DATA.prompts()[1]), {}, "different pictures already"),
    ],
)
def test_rows_are_checked(
    pair: Preference, settings: dict[str, Any], message: str, policy: Policy
) -> None:
    with pytest.raises(ValueError, match=message):
        first(replace(OPA, data=Given(pairs=(pair,)), **settings), policy)


@pytest.mark.parametrize(
    "settings",
    [
        {"image_weight": -0.1},
        {"answer_weight": -0.1},
        {"changed_weight": 0.0},
        {"image_weight": 0.0, "answer_weight": 0.0},
    ],
)
def test_settings_are_checked(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="weight"):
        Views(data=DATA, **settings)


def test_a_text_model_sees_no_pictures() -> None:
    text = TextPolicy(model="tinyworld/text").load()
    with pytest.raises(ValueError, match="looks at pictures"):
        Views(data=DATA).build(text, seed=0)
