"""Completions: what is drawn, from where, what it ends at, and what stays out of sight."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from mmalign import rng
from mmalign.policy import Policy
from mmalign.text.ids import answer_ids
from mmalign.tokens import narrowed
from mmalign.types import Prompt
from mmalign.vision.completing import Completed, Decoding, beginning_ids, complete
from tests.text.conftest import adapter_of as text_adapter
from tests.text.conftest import bpe, gpt2
from tests.vision.lvlm_models import FAMILIES, adapter_of, generators
from tests.vision.test_lvlm import asked

WORDS = "a small red circle at the top left and a large blue square"


def policy_of(family: str, *, plain: bool = False) -> Policy:
    torch.manual_seed(2)
    model, processor = FAMILIES[family]()
    return Policy(adapter=adapter_of(model, processor, plain=plain), model=model)


def prompts() -> list[Prompt]:
    """Three lengths, one with two pictures."""
    return [
        asked("describe the picture", "red"),
        asked("which picture has a red circle ?", "blue", "red"),
        asked("how many", "blue"),
    ]


def taken(found: Completed) -> list[int]:
    tokens: list[int] = found.tokens.tolist()
    return tokens


@torch.no_grad()
def longhand(
    policy: Policy, prompt: Prompt, begun: str, *, numbers: Tensor, hidden: Sequence[int] = ()
) -> list[int]:
    """One completion on its own: no cache, no padding, the whole row through the model each time.

    Positions are those of the unmasked row, which the model counts itself.
    """
    adapter, model = policy.adapter, policy.model
    (static,) = [adapter.static_of([prompt])]
    row = [*static["prompt_ids"][0].tolist(), *beginning_ids(adapter.tokenizer, begun)]
    start = len(row)
    for number in numbers:
        ids = torch.tensor([row])
        inputs = {"input_ids": ids, **static["per_image"][0]}
        for key, value in static["per_token"][0].items():
            inputs[key] = torch.nn.functional.pad(value, (0, len(row) - len(value)))[None]
        mask = torch.ones_like(ids)
        positions = model._prepare_position_ids_for_generation(
            ids, {**inputs, "attention_mask": mask}
        )
        mask[0, list(hidden)] = 0
        logits = (
            model(**inputs, attention_mask=mask, position_ids=positions, use_cache=False)
            .logits[0, -1]
            .float()
        )
        logits[list(adapter.sampling.banned)] = float("-inf")
        cumulative = logits.softmax(-1).double().cumsum(-1)
        row.append(int((cumulative > number * cumulative[-1]).nonzero()[0]))
        if row[-1] in adapter.sampling.stop_ids:
            break
    return row[start:]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_row_is_what_it_is_on_its_own(family: str) -> None:
    """Three ragged prompts with beginnings of 0, 2 and 5 words, the pictures of two of them hidden
    in part: against the whole row through the model for every token, at the same positions."""
    policy, steps = policy_of(family), 5
    ids = policy.adapter.static_of(prompts())["prompt_ids"]
    image = policy.adapter.sampling.banned[0]
    visible = [torch.ones(len(row), dtype=torch.bool) for row in ids]
    places = [(row == image).nonzero()[:, 0].tolist() for row in ids]
    hidden = [places[0], places[1][::2], []]
    for shown, out in zip(visible, hidden, strict=True):
        shown[out] = False
    begun = ["", "a small", "a large blue square at"]
    found = complete(
        policy,
        prompts(),
        decoding=Decoding(max_new_tokens=steps),
        generators=generators(3),
        beginnings=begun,
        visible=visible,
        batch_size=2,
    )
    for row, one in enumerate(found):
        numbers = torch.rand(steps, generator=torch.Generator().manual_seed(row))
        expected = longhand(policy, prompts()[row], begun[row], numbers=numbers, hidden=hidden[row])
        assert taken(one) == expected


@pytest.mark.parametrize("plain", [False, True])
def test_no_row_depends_on_its_neighbours(plain: bool) -> None:
    policy = policy_of("qwen2_vl", plain=plain)

    def run(rows: Sequence[int], batch_size: int) -> list[list[int]]:
        found = complete(
            policy,
            [prompts()[i] for i in rows],
            decoding=Decoding(max_new_tokens=6, top_k=20, top_p=0.9),
            generators=[rng.generator(0, i) for i in rows],
            beginnings=[("", "a red", "the circle is at")[i] for i in rows],
            batch_size=batch_size,
        )
        return [taken(one) for one in found]

    together = run([0, 1, 2], 3)
    assert [run([i], 1)[0] for i in range(3)] == together
    assert run([2, 0, 1], 2) == [together[i] for i in (2, 0, 1)]


def test_everything_visible_is_a_plain_run_and_a_hidden_picture_does_not_matter() -> None:
    """With every picture token hidden, pictures of one size say nothing: red and blue agree."""
    policy = policy_of("llava")
    image = policy.adapter.sampling.banned[0]
    shared = {"decoding": Decoding(max_new_tokens=6), "batch_size": 4}

    def run(colour: str, visible: bool | None) -> list[int]:
        prompt = asked("describe the picture", colour)
        ids = policy.adapter.static_of([prompt])["prompt_ids"][0]
        shown = None if visible is None else [(ids != image) | visible]
        (found,) = complete(policy, [prompt], generators=generators(1), visible=shown, **shared)
        return taken(found)

    assert run("red", True) == run("red", None) != run("blue", None)
    assert run("red", False) == run("blue", False)


def test_a_beginning_has_the_ids_that_a_recorded_answer_begins_with() -> None:
    """Of words, of byte pairs whose merges would swallow a boundary, and where a BOS is written."""
    _, processor = FAMILIES["llava"]()
    for tokenizer in (processor.tokenizer, bpe()):
        whole = answer_ids(tokenizer, "the cat sat", stop_ids=(2,), max_new_tokens=99)
        begun = beginning_ids(tokenizer, "the cat")
        assert begun == whole[: len(begun)] and len(begun) >= 2
        assert tokenizer.bos_token_id not in begun


def test_the_new_text_behind_a_beginning_is_the_text_behind_it() -> None:
    """Byte pairs carry their space; the pieces put together are what the ids say."""
    tokenizer = bpe()
    torch.manual_seed(4)
    model = gpt2(len(tokenizer))
    adapter = text_adapter(model, tokenizer)
    policy = Policy(adapter=adapter, model=model)
    begun = ["the cat", "the cat sat on", ""]
    found = complete(
        policy,
        [Prompt(content=text) for text in ("answer: ", "the", "cat cat")],
        decoding=Decoding(max_new_tokens=12),
        generators=generators(3),
        beginnings=begun,
    )
    for text, one in zip(begun, found, strict=True):
        ids = [*beginning_ids(tokenizer, text), *taken(one)]
        assert text + one.text == tokenizer.decode(ids, skip_special_tokens=True)


def test_a_stop_string_ends_a_row_and_is_kept() -> None:
    """A row up to the mark is that of the run without one."""
    policy = policy_of("llava")

    def run(stop: tuple[str, ...]) -> list[Completed]:
        decoding = Decoding(temperature=3.0, max_new_tokens=40, stop=stop)
        return complete(policy, prompts(), decoding=decoding, generators=generators(3))

    free = run(())
    words = [one.text.split() for one in free]
    mark = next(w for w in words[0][3:] if words[0].index(w) >= 3)
    stopped = run((mark,))
    assert mark in words[0]
    for before, after in zip(free, stopped, strict=True):
        length = len(after.tokens)
        assert taken(after) == taken(before)[:length]
        assert after.text == before.text[: len(after.text)]
        if mark in before.text:
            assert after.text.endswith(mark) and after.text.count(mark) == 1 and after.ended
    assert len(stopped[0].tokens) < len(free[0].tokens)


def test_a_cut_row_says_so() -> None:
    policy = policy_of("llava")
    (found,) = complete(
        policy, prompts()[:1], decoding=Decoding(max_new_tokens=1), generators=generators(1)
    )
    assert len(found.tokens) == 1
    assert found.ended == (taken(found)[0] in policy.adapter.sampling.stop_ids)


def test_the_likeliest_tokens_are_those_of_transformers() -> None:
    """Greedy, whatever the generator, against the model's own generation."""
    policy = policy_of("qwen2_5_vl")
    model: PreTrainedModel = policy.model
    prompt = prompts()[0]
    static = policy.adapter.static_of([prompt])
    expected = model.generate(
        input_ids=static["prompt_ids"][0][None],
        **{k: v[None] for k, v in static["per_token"][0].items()},
        **static["per_image"][0],
        do_sample=False,
        max_new_tokens=8,
        suppress_tokens=list(policy.adapter.sampling.banned),
        eos_token_id=list(policy.adapter.sampling.stop_ids),
    )[0, len(static["prompt_ids"][0]) :]
    for seed in range(2):
        (found,) = complete(
            policy,
            [prompt],
            decoding=Decoding(temperature=0, max_new_tokens=8),
            generators=[torch.Generator().manual_seed(seed)],
        )
        assert taken(found) == expected.tolist()


def test_narrowed_logits_by_hand() -> None:
    """Probabilities 0.1, 0.4, 0.2, 0.3.

    The two likeliest are 1 and 3. 0.4 is below 0.5 and 0.4 + 0.3 reaches it, so top_p 0.5 keeps the
    same two; 0.4 keeps the first alone. Of three by top_k the shares are 4/9, 3/9, 2/9, and 0.75
    lies between 7/9 and 4/9, so two stay.
    """
    logits = torch.tensor([[0.1, 0.4, 0.2, 0.3]]).log()

    def kept(found: Tensor) -> list[int]:
        assert torch.equal(found[~found.isneginf()], logits[~found.isneginf()])
        places: list[int] = (~found[0].isneginf()).nonzero()[:, 0].tolist()
        return places

    assert kept(narrowed(logits, top_k=2)) == kept(narrowed(logits, top_p=0.5)) == [1, 3]
    assert kept(narrowed(logits, top_p=0.39)) == kept(narrowed(logits, top_k=1)) == [1]
    assert kept(narrowed(logits, top_k=3, top_p=0.75)) == [1, 3]
    assert narrowed(logits) is logits
    assert kept(narrowed(logits, top_k=9, top_p=1.0)) == [0, 1, 2, 3]


def test_pictures_are_altered_after_the_processor() -> None:
    """Red pixels in place of blue ones answer as the red picture does, also behind a warm cache."""
    policy = policy_of("llava")
    red, blue = (asked("describe the picture", colour) for colour in ("red", "blue"))
    (pixels,) = policy.adapter.static_of([red])["per_image"]
    shared = {"decoding": Decoding(max_new_tokens=6), "generators": generators(1)}
    (expected,) = complete(policy, [red], decoding=shared["decoding"], generators=generators(1))
    (other,) = complete(policy, [blue], decoding=shared["decoding"], generators=generators(1))
    (found,) = complete(policy, [blue], **shared, altered=[lambda _: pixels])
    assert taken(found) == taken(expected) != taken(other)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": -1.0}, "temperature must be at least 0"),
        ({"top_k": 0}, "top_k must be at least 1"),
        ({"top_p": 0.0}, "top_p must be above 0"),
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1"),
        ({"stop": ("",)}, "stop holds an empty string"),
    ],
)
def test_settings_without_sense_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Decoding(**settings)


def test_arguments_that_do_not_fit_are_refused() -> None:
    policy = policy_of("llava")
    decoding = Decoding(max_new_tokens=2)
    with pytest.raises(ValueError, match="3 prompts and 2 generators"):
        complete(policy, prompts(), decoding=decoding, generators=generators(2))
    with pytest.raises(ValueError, match="visible of prompt 0 has shape"):
        complete(
            policy,
            prompts()[:1],
            decoding=decoding,
            generators=generators(1),
            visible=[torch.ones(2, dtype=torch.bool)],
        )
