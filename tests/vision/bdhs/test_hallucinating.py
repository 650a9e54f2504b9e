"""The whole procedure on tiny random models, whose inputs are recorded as they read them."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from PIL import Image

from mmalign import rng
from mmalign.data.building import construct
from mmalign.policy import Policy
from mmalign.tinyworld.data import TinyWorld
from mmalign.types import Prompt
from mmalign.vision.bdhs import BDHS, Recipe, hallucinate, hallucinating
from mmalign.vision.bdhs.pieces import cut
from mmalign.vision.completing import Completed, Decoding, complete
from mmalign.vision.lvlm_policy import LVLMPolicy
from tests.text.conftest import adapter_of as text_adapter
from tests.text.conftest import gpt2
from tests.vision.lvlm_models import FAMILIES, adapter_of
from tests.vision.test_lvlm import asked

RIGHT = "a small red circle at the top left , a large blue square at the top right , a green square"
RECIPE = Recipe(mark=",", similarity="words", decoding=Decoding(temperature=2.0, max_new_tokens=60))


def policy_of(family: str) -> Policy:
    torch.manual_seed(3)
    model, processor = FAMILIES[family]()
    return Policy(adapter=adapter_of(model, processor), model=model)


def shipped() -> Policy:
    """A model whose completions end."""
    return LVLMPolicy(max_new_tokens=48).load()


def rows(count: int = 3) -> list[tuple[Prompt, str]]:
    texts = [RIGHT, "a red circle", "two large circles , one square"]
    colours = ["red", "blue", "green"]
    return [
        (asked("describe the picture", colour), text)
        for colour, text in zip(colours[:count], texts, strict=False)
    ]


def keys(count: int = 3) -> list[tuple[rng.Key, ...]]:
    return [(7, "row", number) for number in range(count)]


@contextmanager
def recording(policy: Policy) -> Iterator[list[tuple[list[list[int]], list[list[int]]]]]:
    """Ids and attention masks of every prefill, padding taken off the ids by the positions."""
    seen: list[tuple[list[list[int]], list[list[int]]]] = []
    ids: list[torch.Tensor] = []
    embedding = policy.model.get_input_embeddings().register_forward_pre_hook(
        lambda _, args: ids.append(args[0])
    )

    def before(module: object, args: tuple[object, ...], kwargs: dict[str, torch.Tensor]) -> None:
        mask = kwargs["attention_mask"]
        if kwargs.get("input_ids") is None:
            seen.append((ids[-1].tolist(), mask.tolist()))

    forward = policy.model.register_forward_pre_hook(before, with_kwargs=True)
    try:
        yield seen
    finally:
        embedding.remove()
        forward.remove()


@contextmanager
def counting(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[list[str]]]:
    """The beginnings that each try completes."""
    found: list[list[str]] = []

    def counted(policy: Policy, prompts: Sequence[Prompt], **given: object) -> list[Completed]:
        found.append(list(given["beginnings"]))
        return complete(policy, prompts, **given)

    with monkeypatch.context() as patch:
        patch.setattr(hallucinating, "complete", counted)
        yield found


def test_the_model_reads_right_text_before_every_cut_and_never_its_own() -> None:
    """Prompt, right pieces, kept words; nothing generated. All pieces of all rows at once."""
    policy, recipe = policy_of("llava"), replace(RECIPE, tries=1, batch_size=64)
    tokenizer = policy.adapter.tokenizer
    with recording(policy) as seen:
        hallucinate(policy, rows(), recipe, keys=keys())
    ((ids, _),) = seen
    expected = []
    for (prompt, right), key in zip(rows(), keys(), strict=True):
        (asked_ids,) = policy.adapter.static_of([prompt])["prompt_ids"]
        for k, piece in enumerate(cut(right, ",", generator=rng.generator(*key, 1, "cut"))):
            context = " , ".join(right.split(" , ")[:k])
            assert piece.beginning.startswith(context) and right.startswith(piece.beginning)
            begun = tokenizer(piece.beginning, add_special_tokens=False)["input_ids"]
            expected.append([*asked_ids.tolist(), *begun])
    assert len(ids) == len(expected) == 3 + 1 + 2
    image = policy.adapter.sampling.banned[0]
    for row, wanted in zip(ids, expected, strict=True):
        read = row[len(row) - len(wanted) :]
        assert read[:2] == wanted[:2] and len(wanted) > 8
        assert [r for r, w in zip(read, wanted, strict=True) if w != image] == [
            w for w in wanted if w != image
        ]


@pytest.mark.parametrize("family", ["llava", "qwen2_vl"])
def test_what_is_hidden_are_picture_tokens_alone_and_one_mask_serves_a_row(family: str) -> None:
    """Half of the picture tokens: the mask is 0 there only, and equal for the pieces of a row."""
    policy = policy_of(family)
    with recording(policy) as seen:
        hallucinate(policy, rows(1), replace(RECIPE, tries=1, mask_threshold=0.5), keys=keys(1))
    ((ids, masks),) = seen
    (asked_ids,) = policy.adapter.static_of([rows(1)[0][0]])["prompt_ids"]
    places = (asked_ids == policy.adapter.sampling.banned[0]).nonzero()[:, 0].tolist()
    hidden = []
    for row, mask in zip(ids, masks, strict=True):
        begin = row.index(1)  # the beginning-of-text token; padding stands before it
        assert sum(mask[:begin]) == 0
        real = mask[begin:]
        assert all(m == 1 for place, m in enumerate(real) if place not in places)
        hidden.append(tuple(real[place] for place in places))
    assert len(ids) == 3 and len(set(hidden)) == 1
    assert 0 in hidden[0]


@pytest.mark.parametrize(("threshold", "same"), [(0.0, True), (1.0, False)])
def test_with_nothing_hidden_it_is_an_unmasked_run(threshold: float, same: bool) -> None:
    """Likeliest tokens; the cuts are made again by hand and completed with the picture in sight."""
    policy = policy_of("llava")
    greedy = Decoding(temperature=0, max_new_tokens=12)
    recipe = replace(RECIPE, tries=1, mask_threshold=threshold, decoding=greedy)
    found = hallucinate(policy, rows(), recipe, keys=keys())
    for (prompt, right), key, made in zip(rows(), keys(), found, strict=True):
        pieces = cut(right, ",", generator=rng.generator(*key, 1, "cut"))
        plain = complete(
            policy,
            [prompt] * len(pieces),
            decoding=replace(greedy, stop=(",",)),
            generators=[rng.generator(0)] * len(pieces),
            beginnings=[piece.beginning for piece in pieces],
        )
        texts = [p.with_completion(c.text, mark=",") for p, c in zip(pieces, plain, strict=True)]
        assert (made.text == "".join(texts).strip()) == same


def test_at_a_similarity_that_never_falls_five_tries_are_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """0.99 always: the fifth has no right text before it, and it is returned."""
    policy = shipped()
    monkeypatch.setattr(
        hallucinating,
        "similarity_of",
        lambda _: lambda a, b: [0.99 for _ in zip(a, b, strict=True)],
    )
    with counting(monkeypatch) as tries:
        (found,) = hallucinate(policy, rows(1), RECIPE, keys=keys(1))
    assert [len(beginnings) for beginnings in tries] == [3, 3, 3, 3, 1]
    assert tries[4] == [""] and any(tries[0])
    assert len({tuple(beginnings) for beginnings in tries[:4]}) > 1
    assert (found.tries, found.guided, found.accepted, found.similarity) == (5, False, False, 0.99)


@pytest.mark.parametrize(
    ("similarities", "expected"),
    [([0.96], 1), ([0.97, 0.96], 2), ([0.99, 0.98, 0.1], 3)],
)
def test_the_first_answer_that_differs_enough_is_taken(
    monkeypatch: pytest.MonkeyPatch, similarities: list[float], expected: int
) -> None:
    """The bound itself is not below the bound."""
    policy, numbers = shipped(), iter(similarities)
    monkeypatch.setattr(
        hallucinating, "similarity_of", lambda _: lambda a, b: [next(numbers) for _ in a]
    )
    with counting(monkeypatch) as tries:
        (found,) = hallucinate(policy, rows(1), RECIPE, keys=keys(1))
    assert len(tries) == expected == found.tries
    assert found.accepted and found.guided and found.similarity == similarities[-1]


def test_a_single_try_is_guided(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = shipped()
    monkeypatch.setattr(hallucinating, "similarity_of", lambda _: lambda a, b: [1.0])
    with counting(monkeypatch) as tries:
        (found,) = hallucinate(policy, rows(1), replace(RECIPE, tries=1), keys=keys(1))
    assert len(tries) == 1 and len(tries[0]) == 3 and any(tries[0])
    assert found.guided and not found.accepted and found.text


@pytest.mark.parametrize("corruption", ["mask", "noise"])
@pytest.mark.parametrize("family", ["llava_next", "qwen2_5_vl"])
def test_a_row_is_what_it_is_on_its_own(corruption: str, family: str) -> None:
    """Pictures of several sizes, hence prompts with several numbers of picture tokens."""
    policy = policy_of(family)
    recipe = replace(RECIPE, corruption=corruption, mask_threshold=0.5, batch_size=4)
    several = [
        (replace(prompt, images=(Image.new("RGB", size, "red"),)), right)
        for (prompt, right), size in zip(rows(), [(16, 16), (24, 16), (32, 32)], strict=True)
    ]
    together = hallucinate(policy, several, recipe, keys=keys())
    alone = [
        hallucinate(policy, [row], recipe, keys=[key])[0]
        for row, key in zip(several, keys(), strict=True)
    ]
    assert together == alone


def test_noise_is_another_picture_in_another_try_and_one_in_one_try() -> None:
    """Three pieces read one noised picture; with no steps to speak of it is the picture itself."""
    policy = policy_of("llava")
    seen: list[torch.Tensor] = []
    tower = policy.model.base_model.vision_tower.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(args[0] if args else kwargs["pixel_values"]),
        with_kwargs=True,
    )
    recipe = replace(RECIPE, corruption="noise", tries=2, max_similarity=-2.0)
    hallucinate(policy, rows(1), recipe, keys=keys(1))
    tower.remove()
    (clean,) = policy.adapter.static_of([rows(1)[0][0]])["per_image"]
    assert [len(pixels) for pixels in seen] == [1, 1]
    assert not torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[0], clean["pixel_values"])


def test_what_cannot_be_done_says_why() -> None:
    """No right answer, no picture, and a completion that is cut: every row is accounted for."""
    policy = shipped()
    (prompt, right), bare = rows(1)[0], asked("describe the picture")
    short = replace(RECIPE, decoding=Decoding(max_new_tokens=1), tries=2)
    found = hallucinate(
        policy, [(prompt, " \n"), (bare, right), (prompt, right)], short, keys=keys()
    )
    assert [one.dropped for one in found] == ["no answer", "no picture", "cut short"]
    assert [one.tries for one in found] == [0, 0, 2]


def test_wrong_settings_and_wrong_models_are_refused() -> None:
    for settings, message in (
        ({"mask_threshold": 1.5}, "mask_threshold must be 0 to 1"),
        ({"tries": 0}, "tries must be at least 1"),
        ({"mark": " "}, "mark must be more than white space"),
        ({"decoding": Decoding(stop=(".",))}, "`mark` says where a piece ends"),
    ):
        with pytest.raises(ValueError, match=message):
            Recipe(**settings)
    nowhere = Recipe(similarity="nobody/no-such-encoder")
    with pytest.raises(ValueError, match="no-such-encoder' cannot be loaded"):
        BDHS(data=TinyWorld(task="describe", size=1), recipe=nowhere).prepare(seed=0)
    policy = policy_of("llava")
    picture = Image.new("RGB", (4, 4))
    with pytest.raises(ValueError, match="only texts can be hallucinated"):
        hallucinate(policy, [(rows(1)[0][0], picture)], RECIPE, keys=keys(1))
    tokenizer = policy.adapter.tokenizer
    model = gpt2(len(tokenizer))
    blind = Policy(adapter=text_adapter(model, tokenizer), model=model)
    with pytest.raises(ValueError, match="looks at no pictures"):
        hallucinate(blind, rows(1), RECIPE, keys=keys(1))


def test_the_builder_goes_on_where_it_was_and_writes_where_a_pair_comes_from(tmp_path) -> None:
    """The shipped model; rows from the third on are those of the whole, at other batch borders."""
    builder = BDHS(
        data=TinyWorld(task="describe", size=6, seed=1),
        policy=LVLMPolicy(max_new_tokens=48),
        recipe=replace(RECIPE, decoding=Decoding(max_new_tokens=48)),
        rows_at_a_time=4,
    )
    construction = builder.prepare(seed=5)
    whole = list(construction.candidates())
    assert [candidate.row for candidate in whole] == list(range(6)) and len(construction) == 6
    for candidate, again in zip(whole[3:], construction.candidates(3), strict=True):
        assert again.preference.rejected == candidate.preference.rejected
        assert again.preference.meta == candidate.preference.meta
    meta = whole[0].preference.meta
    assert meta["builder"] == "bdhs" and meta["row"] == 0 and 1 <= meta["attempt"] <= 5
    counts = construct(builder, tmp_path / "pairs.jsonl", seed=5, settings="")
    assert counts.total() == 6 and counts["kept"] >= 5
