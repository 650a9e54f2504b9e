"""The head read from a model against the model's own logits, in the families that differ."""

from collections.abc import Callable

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn
from transformers import (
    CLIPVisionConfig,
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GraniteConfig,
    GraniteForCausalLM,
    HyperCLOVAXConfig,
    HyperCLOVAXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    ModernBertDecoderConfig,
    ModernBertDecoderForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PhiConfig,
    PhiForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
)

from mmalign import lora, tokens
from mmalign.head import head_scores
from mmalign.text.lm_head import check_head, language_head

IDS = torch.tensor([[5, 9, 33, 7, 12]])
TINY = {
    "vocab_size": 64, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 64,
    "initializer_range": 0.5, "pad_token_id": None, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
SHORT = {"vocab_size": 64, "bos_token_id": 1, "eos_token_id": 2}


def llava() -> PreTrainedModel:
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        image_size=8, patch_size=4,
    )  # fmt: skip
    # The picture's id is one of the first, which the check of the head must leave out.
    text = LlamaConfig(**TINY)
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=3)
    return LlavaForConditionalGeneration(config)


def qwen2_vl() -> PreTrainedModel:
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4}
    text = {**TINY, "rope_parameters": rope}
    vision = {"depth": 1, "embed_dim": 16, "num_heads": 2, "hidden_size": 16, "patch_size": 4}
    config = Qwen2VLConfig(text_config=text, vision_config=vision, image_token_id=0)
    return Qwen2VLForConditionalGeneration(config)


def opt() -> PreTrainedModel:
    """Its last states are projected down to the width of the embedding."""
    config = OPTConfig(
        **SHORT, hidden_size=16, word_embed_proj_dim=8, ffn_dim=16, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=64, init_std=0.5,
    )  # fmt: skip
    return OPTForCausalLM(config)


def gpt2() -> PreTrainedModel:
    return GPT2LMHeadModel(GPT2Config(**SHORT, n_positions=32, n_embd=16, n_layer=2, n_head=2))


MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**TINY)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**TINY)),
    "gpt2, tied": gpt2,
    "gemma2, cap": lambda: Gemma2ForCausalLM(
        Gemma2Config(**TINY, head_dim=8, final_logit_softcapping=3.0)
    ),
    "cohere, multiplied": lambda: CohereForCausalLM(CohereConfig(**TINY, logit_scale=0.3)),
    "granite, divided": lambda: GraniteForCausalLM(GraniteConfig(**TINY, logits_scaling=3.0)),
    "hyperclovax, multiplied": lambda: HyperCLOVAXForCausalLM(
        HyperCLOVAXConfig(**TINY, logits_scaling=3.0)
    ),
    "opt": opt,
    "phi, bias": lambda: PhiForCausalLM(PhiConfig(**TINY)),
    "llava": llava,
    "qwen2-vl": qwen2_vl,
}


def made(name: str) -> PreTrainedModel:
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    head = model.get_output_embeddings()
    if head.bias is not None:
        nn.init.normal_(head.bias)
    return model


def states_of(model: PreTrainedModel) -> Tensor:
    return model.get_decoder()(input_ids=IDS, use_cache=False).last_hidden_state[0]


@pytest.mark.parametrize("name", MODELS)
def test_the_head_gives_what_the_model_gives(name: str) -> None:
    """Log-probs of every symbol after every token, under temperature and bans, within 1e-5."""
    model = made(name)
    check_head(model)
    with torch.no_grad():
        logits = model(input_ids=IDS, use_cache=False).logits[0]
        expected = tokens.step_logits(logits, temperature=0.8, banned=(4,)).log_softmax(-1)
        head = language_head(model, temperature=0.8, banned=(4,))
        states = states_of(model)
        for symbol in range(logits.shape[-1]):
            chosen = torch.full((IDS.shape[1],), symbol)
            found = head_scores(states, chosen, head)["log_probs"]
            torch.testing.assert_close(found, expected[:, symbol], rtol=1e-5, atol=1e-5)


def test_gradients_reach_the_models_own_parameters() -> None:
    """Tied weights: the head's part and the embedding's add up to the plain gradient."""
    gradients = []
    for plain in (True, False):
        model = made("gpt2, tied")
        if plain:
            table = model(input_ids=IDS, use_cache=False).logits[0].log_softmax(-1)
            values = table[torch.arange(5), IDS[0]]
        else:
            values = head_scores(states_of(model), IDS[0], language_head(model))["log_probs"]
        values.sum().backward()
        gradients.append({key: p.grad for key, p in model.named_parameters()})
    for key, expected in gradients[0].items():
        torch.testing.assert_close(gradients[1][key], expected, rtol=1e-4, atol=1e-5)


def with_lora(**options: object) -> PreTrainedModel:
    """A model with two LoRAs on its output layer, neither of them zero; the first is in use."""
    model = made("phi, bias")
    for name in ("first", "second"):
        config = LoraConfig(r=2, lora_alpha=6, target_modules=["lm_head"], **options)
        inject_adapter_in_model(config, model, adapter_name=name)
    for key, parameter in model.named_parameters():
        if "lora_B" in key:
            nn.init.normal_(parameter)
        parameter.requires_grad_(lora.belongs(key, "first"))
    lora.activate(model, "first")
    return model


def test_lora_on_the_output_layer_is_scored_as_it_is_set() -> None:
    model = with_lora()
    seen = []
    for setting in (
        lora.active(model, "first"),
        lora.active(model, "second"),
        lora.disabled(model),
    ):
        with setting:
            check_head(model)
            head = language_head(model)
            logits = model(input_ids=IDS, use_cache=False).logits[0]
            found = head_scores(states_of(model), IDS[0], head)["log_probs"]
            expected = logits.log_softmax(-1)[torch.arange(5), IDS[0]]
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
            seen.append(found)
    assert all((seen[i] - seen[j]).abs().max() > 0.1 for i, j in ((0, 1), (0, 2), (1, 2)))


def test_lora_on_the_output_layer_is_trained() -> None:
    gradients = []
    for plain in (True, False):
        model = with_lora()
        if plain:
            table = model(input_ids=IDS, use_cache=False).logits[0].log_softmax(-1)
            values = table[torch.arange(5), IDS[0]]
        else:
            values = head_scores(states_of(model), IDS[0], language_head(model))["log_probs"]
        values.sum().backward()
        gradients.append({k: p.grad for k, p in model.named_parameters() if p.grad is not None})
    assert len(gradients[0]) == 2
    for key, expected in gradients[0].items():
        torch.testing.assert_close(gradients[1][key], expected, rtol=1e-4, atol=1e-5)


def test_lora_of_another_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="LoRA 'first' on the output layer of PhiForCausalLM"):
        language_head(with_lora(use_dora=True))


def test_an_output_layer_that_is_not_linear_is_refused() -> None:
    model = made("llama")
    model.set_output_embeddings(nn.Conv1d(16, 64, 1))
    with pytest.raises(ValueError, match="output layer of LlamaForCausalLM is Conv1d"):
        language_head(model)


def test_a_model_that_does_more_is_refused() -> None:
    """A hook adds 1 to one symbol's logits; a head twice as large; a decoder that is not one."""
    model = made("llama")
    hook = model.lm_head.register_forward_hook(
        lambda layer, states, logits: logits + torch.eye(64)[0]
    )
    with pytest.raises(ValueError, match="LlamaForCausalLM does more to its logits"):
        check_head(model)
    hook.remove()
    model.lm_head.register_forward_hook(lambda layer, states, logits: logits[..., :60])
    with pytest.raises(ValueError, match="has 64 symbols and its logits have 60"):
        check_head(model)
    config = ModernBertDecoderConfig(
        **SHORT, pad_token_id=0, cls_token_id=1, sep_token_id=2, hidden_size=16,
        intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
    )  # fmt: skip
    with pytest.raises(ValueError, match="decoder of ModernBertDecoderForCausalLM is Linear"):
        check_head(ModernBertDecoderForCausalLM(config))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bit_models_pass_the_check(dtype: torch.dtype) -> None:
    for name in ("llama", "gemma2, cap", "granite, divided"):
        check_head(made(name).to(dtype))
