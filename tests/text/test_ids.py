import pytest

from mmalign.text.ids import answer_ids, prompt_ids, renderer, stop_ids_of
from mmalign.types import Prompt
from tests.text.conftest import bpe, llama

TURNS = "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}<end>{% endfor %}"
ASKED = "{% if add_generation_prompt %}[assistant]{% endif %}"


def test_fed_ids_are_those_of_prompt_and_answer_for_500_pairs():
    """A merge across the boundary, spaces and bytes of an emoji stay on their own side.

    "the" + "the" is one token when tokenised together (the corpus holds "thethe"), so joining the
    texts first would give other ids.
    """
    tokenizer = bpe(bos=False)
    pieces = ["the", " the", "thethe", "cat", "  ", "\N{CAT FACE}", "mat\n", "answer:", " sat", "é"]
    joined_differently = 0
    for i in range(500):
        asked = "the " + pieces[i % 10] + pieces[(i // 10) % 10]
        said = pieces[(i // 50) % 10] + pieces[(7 * i) % 10]
        before = prompt_ids(tokenizer, Prompt(content=asked))
        after = answer_ids(tokenizer, said, stop_ids=(1,), max_new_tokens=64)
        assert tokenizer.decode(before) == asked
        assert after[-1] == 1 and tokenizer.decode(after[:-1]) == said
        joined_differently += tokenizer(asked + said)["input_ids"] != before + after[:-1]
    assert joined_differently > 50


@pytest.mark.parametrize("writes_bos", [True, False])
@pytest.mark.parametrize("template", [None, TURNS + ASKED])
def test_bos_stands_once_or_where_the_tokenizer_has_none_not_at_all(writes_bos, template):
    """A literal BOS in the template and one from the tokenizer never add up to two."""
    tokenizer = bpe(bos=writes_bos)
    tokenizer.chat_template = template
    ids = prompt_ids(tokenizer, Prompt(content="the cat"))
    expected = 1 if writes_bos or template is not None else 0
    assert ids.count(tokenizer.bos_token_id) == expected
    said = answer_ids(tokenizer, "the cat", stop_ids=(1,), max_new_tokens=8)
    assert tokenizer.bos_token_id not in said


def test_a_string_is_one_turn_of_the_user(words):
    turns = ({"role": "user", "content": [{"type": "text", "text": "describe the picture"}]},)
    assert prompt_ids(words, Prompt(content="describe the picture")) == prompt_ids(
        words, Prompt(content=turns)
    )


def test_an_answer_is_cut_without_a_stop_id():
    """Three words and a stop id: a limit of 4 keeps all, of 3 cuts the stop."""
    from mmalign.tinyworld.tokenizer import build_tokenizer

    words = build_tokenizer()
    whole = answer_ids(words, "one two three", stop_ids=(2,), max_new_tokens=4)
    assert len(whole) == 4 and whole[-1] == 2
    assert answer_ids(words, "one two three", stop_ids=(2,), max_new_tokens=3) == whole[:3]
    assert answer_ids(words, "one two three", stop_ids=(2,), max_new_tokens=1) == whole[:1]
    assert answer_ids(words, "", stop_ids=(2,), max_new_tokens=3) == [2]


def test_a_stop_id_is_written_once_and_refused_inside(words):
    assert answer_ids(words, "one <eos>", stop_ids=(2,), max_new_tokens=9).count(2) == 1
    with pytest.raises(ValueError, match="before its end"):
        answer_ids(words, "one <eos> two", stop_ids=(2,), max_new_tokens=9)


def test_the_stop_id_is_the_one_the_template_writes():
    """The tokenizer ends texts with </s>, the template ends turns with <end>."""
    tokenizer = bpe(bos=False)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<end>"]})
    end = tokenizer.convert_tokens_to_ids("<end>")
    model = llama(len(tokenizer))
    model.generation_config.eos_token_id = [end, tokenizer.eos_token_id]
    assert stop_ids_of(model, tokenizer, render=renderer(tokenizer)) == (
        tokenizer.eos_token_id,
        end,
    )
    tokenizer.chat_template = TURNS + ASKED
    assert stop_ids_of(model, tokenizer, render=renderer(tokenizer)) == (
        end,
        tokenizer.eos_token_id,
    )


def test_pictures_and_empty_prompts_are_refused(words):
    from PIL import Image

    with pytest.raises(ValueError, match="1 images"):
        prompt_ids(words, Prompt(content="one", images=(Image.new("RGB", (4, 4)),)))
    with pytest.raises(ValueError, match="part of type 'image'"):
        prompt_ids(words, Prompt(content=({"role": "user", "content": [{"type": "image"}]},)))
    with pytest.raises(ValueError, match="empty prompt"):
        prompt_ids(bpe(bos=False), Prompt(content=""))
