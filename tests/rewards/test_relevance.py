import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from mmalign import registry
from mmalign.assets import missing
from mmalign.rewards.relevance import MINILM, RelevanceReward
from mmalign.types import Prompt

WORDS = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "the", "lamp", "cat", "shines", "sleeps", "on", "a"]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A small random BERT with a tokenizer of one token a word."""
    folder = tmp_path_factory.mktemp("encoder")
    core = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="[PAD]", model_max_length=64
    )
    tokenizer.save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        initializer_range=0.5,
    )
    torch.manual_seed(0)
    BertModel(config).save_pretrained(folder)
    return str(folder)


def asked(noun: str) -> Prompt:
    return Prompt(content=f"on the {noun}", meta={"noun": noun})


def test_same_text_has_cosine_one(encoder: str) -> None:
    reward = RelevanceReward(model=encoder, column="noun")
    scores = reward([asked("lamp"), asked("cat")], ["lamp", "lamp"])
    assert scores[0] == pytest.approx(1.0, abs=1e-5)
    assert scores[1] < 0.999


def test_padding_and_neighbours_do_not_matter(encoder: str) -> None:
    """Mean pooling over a text's own tokens: alone, or beside a longer text in the batch."""
    reward = RelevanceReward(model=encoder, column="noun")
    alone = reward([asked("lamp")], ["the lamp shines"])
    beside = reward([asked("lamp")] * 2, ["the lamp shines", "the cat sleeps on a lamp on a cat"])
    one_by_one = RelevanceReward(model=encoder, column="noun", batch_size=1)
    torch.testing.assert_close(alone, beside[:1], atol=1e-5, rtol=0)
    single = one_by_one([asked("lamp")] * 2, ["the lamp shines", "the cat sleeps on a lamp"])
    torch.testing.assert_close(alone, single[:1], atol=1e-5, rtol=0)


def test_topic_is_the_prompt_where_no_column_is_named(encoder: str) -> None:
    scores = RelevanceReward(model=encoder)([asked("lamp")], ["on the lamp"])
    assert scores[0] == pytest.approx(1.0, abs=1e-5)


def test_missing_column_is_named(encoder: str) -> None:
    with pytest.raises(ValueError, match="'noun', and a prompt has only"):
        RelevanceReward(model=encoder, column="noun")([Prompt(content="a")], ["a"])


def test_registered() -> None:
    assert registry.resolve("rewards", "relevance") is RelevanceReward


@pytest.mark.skipif(
    bool(missing({MINILM.package: MINILM.requirement})),
    reason=f"needs the package {MINILM.requirement}, installed with --no-deps",
)
def test_minilm_knows_what_a_sentence_is_about() -> None:
    sentences = ["The kitten sleeps in its basket.", "Interest rates rose again this year."]
    scores = RelevanceReward(column="noun")([asked("cat")] * 2, sentences)
    assert scores[0] > scores[1] + 0.2
