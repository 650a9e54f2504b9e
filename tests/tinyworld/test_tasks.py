"""Tasks: disjoint splits, determinism, correct labels; and the tokenizer over all they say."""

import json

import pytest
from PIL import Image

from mmalign.tinyworld.language import WORDS
from mmalign.tinyworld.tasks import TASKS, Task
from mmalign.tinyworld.tokenizer import SPECIALS, build_tokenizer
from mmalign.types import Prompt

EVERY = pytest.mark.parametrize("task", list(TASKS.values()), ids=list(TASKS))


def _bytes(value: str | Image.Image) -> bytes:
    return value.encode() if isinstance(value, str) else value.tobytes()


def _print(prompt: Prompt) -> tuple:
    """Everything about a prompt, comparable."""
    pictures = tuple(image.tobytes() for image in prompt.images)
    return json.dumps(prompt.content), pictures, json.dumps(dict(prompt.meta), sort_keys=True)


@EVERY
def test_splits_are_disjoint(task: Task) -> None:
    keys = {
        split: {e.key for e in task.examples(split=split, size=n, seed=0, purpose="test")}
        for split, n in (("train", 2000), ("heldout", 256))
    }
    assert not keys["train"] & keys["heldout"]
    assert len(keys["heldout"]) == 256


@pytest.mark.parametrize("name", ["describe", "vqa", "multi_image"])
def test_held_out_scenes_are_never_shown_in_training(name: str) -> None:
    def shown(split: str, size: int) -> set[str]:
        prompts = TASKS[name].prompts(split=split, size=size, seed=0)
        scenes = [p.meta["scenes"] if "scenes" in p.meta else [p.meta["scene"]] for p in prompts]
        return {json.dumps(scene) for row in scenes for scene in row}

    assert not shown("train", 1000) & shown("heldout", 200)


@EVERY
def test_same_seed_same_data(task: Task) -> None:
    def everything(seed: int) -> list:
        prompts = task.prompts(split="train", size=10, seed=seed)
        preferences = task.preferences(size=10, seed=seed, flip_rate=0.3)
        shown = task.demonstrations(size=10, seed=seed, corruption=0.3)
        return [
            [_print(prompt) for prompt in prompts],
            [(_print(p.prompt), _bytes(p.chosen), _bytes(p.rejected)) for p in preferences],
            [(_print(prompt), _bytes(output)) for prompt, output in shown],
        ]

    assert everything(0) == everything(0)
    assert everything(0) != everything(1)


@EVERY
def test_chosen_is_right_and_rejected_wrong(task: Task) -> None:
    made = task.preferences(size=200, seed=0)
    prompts = [item.prompt for item in made]
    assert task.judge(prompts, [item.chosen for item in made]).min() == 1.0
    assert task.judge(prompts, [item.rejected for item in made]).max() < 1.0
    assert {prompt.meta["task"] for prompt in prompts} == {task.name}


@EVERY
def test_flips_and_corruptions_happen_at_their_rate(task: Task) -> None:
    """Of 500 draws at rate 0.3 the standard deviation is 0.0205; the tolerance is four."""
    made = task.preferences(size=500, seed=0, flip_rate=0.3)
    wrong = task.judge([m.prompt for m in made], [m.chosen for m in made]) < 1.0
    assert wrong.tolist() == [m.meta["flipped"] for m in made]
    assert wrong.float().mean().item() == pytest.approx(0.3, abs=0.082)
    prompts, outputs = zip(*task.demonstrations(size=500, seed=0, corruption=0.3), strict=True)
    wrong = task.judge(prompts, outputs) < 1.0
    assert wrong.float().mean().item() == pytest.approx(0.3, abs=0.082)


def test_images_match_the_parts_that_ask_for_them() -> None:
    for name, numbers in (("describe", {1}), ("vqa", {1}), ("multi_image", {2, 3})):
        prompts = TASKS[name].prompts(split="train", size=50, seed=0)
        for prompt in prompts:
            parts = [part["type"] for part in prompt.content[0]["content"]]
            assert parts == ["image"] * len(prompt.images) + ["text"]
        assert {len(prompt.images) for prompt in prompts} == numbers


def test_tasks_refuse_bad_requests() -> None:
    task = TASKS["draw"]
    with pytest.raises(ValueError, match="split"):
        task.prompts(split="validation", size=1, seed=0)
    with pytest.raises(ValueError, match="only"):
        task.prompts(split="heldout", size=100000, seed=0)
    with pytest.raises(ValueError, match="flip_rate"):
        task.preferences(size=1, seed=0, flip_rate=2.0)
    with pytest.raises(ValueError, match="corruption"):
        task.demonstrations(size=1, seed=0, corruption=-0.1)


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


@EVERY
def test_every_text_round_trips(task: Task, tokenizer) -> None:
    """Prompts and outputs of both splits: no unknown word, and decoding gives the text back."""
    for split in ("train", "heldout"):
        for item in task.preferences(size=200, seed=0, split=split):
            content = item.prompt.content
            said = content if isinstance(content, str) else content[0]["content"][-1]["text"]
            texts = [said, *(t for t in (item.chosen, item.rejected) if isinstance(t, str))]
            for text in texts:
                ids = tokenizer(text)["input_ids"]
                assert tokenizer.unk_token_id not in ids
                assert len(ids) == len(text.split())
                assert tokenizer.decode(ids) == text


def test_vocabulary_is_specials_then_words(tokenizer) -> None:
    assert tokenizer.convert_ids_to_tokens(range(len(tokenizer))) == [*SPECIALS, *WORDS]
    assert tokenizer.padding_side == "left"
    assert tokenizer.model_max_length == 128
    assert tokenizer.convert_tokens_to_ids(tokenizer.image_token) == SPECIALS.index("<image>")


def test_specials_split_out_of_glued_text(tokenizer) -> None:
    ids = tokenizer("a red<image>circle<eos>")["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids) == ["a", "red", "<image>", "circle", "<eos>"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "a red circle"
    assert tokenizer("unheard")["input_ids"] == [tokenizer.unk_token_id]


def test_chat_template(tokenizer) -> None:
    user = TASKS["multi_image"].prompts(split="train", size=1, seed=0)[0]
    text = user.content[0]["content"][-1]["text"]
    images = "<image> " * len(user.images)
    asked = tokenizer.apply_chat_template(
        list(user.content), tokenize=False, add_generation_prompt=True
    )
    assert asked == f"<bos><user> {images}{text} <assistant>"
    messages = [*user.content, {"role": "assistant", "content": "picture two"}]
    whole = tokenizer.apply_chat_template(
        messages, return_dict=True, return_assistant_tokens_mask=True
    )
    ids = whole["input_ids"]
    prefix = tokenizer(asked)["input_ids"]
    assert ids[: len(prefix)] == prefix
    # The mask marks what the model says itself: the reply and the end of it.
    mask = whole["assistant_masks"]
    reply = [token for token, own in zip(ids, mask, strict=True) if own]
    assert tokenizer.convert_ids_to_tokens(reply) == ["picture", "two", "<eos>"]
    with pytest.raises(Exception, match="role"):
        tokenizer.apply_chat_template([{"role": "system", "content": "a"}], tokenize=False)


def test_tokenizer_survives_saving(tokenizer, tmp_path) -> None:
    from transformers import AutoTokenizer

    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    text = "a red circle , a blue square and two triangles"
    assert loaded(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert loaded.decode(loaded(text)["input_ids"]) == text
    assert loaded.chat_template == tokenizer.chat_template
    assert (loaded.padding_side, loaded.image_token) == ("left", "<image>")
