import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from mmalign.lora import LoRA
from mmalign.text import TextPolicy
from mmalign.types import Prompt
from tests.text.conftest import generators, llama

PROMPTS = [Prompt(content="compute 3 + 4"), Prompt(content="describe the picture")]


@pytest.fixture
def folder(tmp_path, words):
    """A model in the layout of `from_pretrained`."""
    llama(len(words)).save_pretrained(str(tmp_path / "base"))
    words.save_pretrained(str(tmp_path / "base"))
    return str(tmp_path / "base")


def moved(policy):
    """The policy after a step of some training."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in policy.trainable().values():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return policy


@pytest.mark.parametrize("lora", [None, LoRA(rank=4)])
def test_what_is_saved_is_what_plain_libraries_load(folder, tmp_path, lora, words):
    """Greedy answers and logits of transformers (+ peft) on the saved folder are the policy's."""
    policy = moved(TextPolicy(model=folder, lora=lora, max_new_tokens=8).load())
    policy.save(tmp_path / "out")
    if lora is None:
        plain = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    else:
        plain = PeftModel.from_pretrained(
            AutoModelForCausalLM.from_pretrained(folder), tmp_path / "out"
        ).eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    asked = [{"role": "user", "content": PROMPTS[0].content}]
    inputs = tokenizer.apply_chat_template(
        asked, add_generation_prompt=True, return_dict=True, return_tensors="pt"
    )
    with torch.no_grad():
        torch.testing.assert_close(plain(**inputs).logits, policy.model(**inputs).logits)
    trajectory = policy.sample(PROMPTS[:1], group_size=1, generators=generators(1))
    torch.testing.assert_close(
        inputs["input_ids"][0], trajectory.static["prompt_ids"][0].to(torch.int64)
    )


def test_only_the_lora_trains(folder):
    policy = TextPolicy(model=folder, lora=LoRA(rank=2)).load()
    assert policy.trainable() and all("lora_" in name for name in policy.trainable())
    whole = TextPolicy(model=folder).load()
    assert len(whole.trainable()) == len(list(whole.model.parameters()))


def test_settings_are_checked(folder):
    with pytest.raises(ValueError, match="temperature must be greater than 0"):
        TextPolicy(model=folder, temperature=0.0).load()
    with pytest.raises(ValueError, match="max_new_tokens must be at least 1"):
        TextPolicy(model=folder, max_new_tokens=0).load()


def test_half_precision_scores_are_float32(folder):
    policy = TextPolicy(model=folder, dtype="bfloat16", max_new_tokens=6).load()
    assert policy.model.dtype == torch.bfloat16
    trajectory = policy.sample(PROMPTS, group_size=2, generators=generators(2))
    scores = policy.scores(trajectory, want=frozenset({"features", "entropy"}))
    assert {scores.log_probs.dtype, scores.features.dtype, scores.entropy.dtype} == {torch.float32}
