"""Sizes and templates that the tiny vision-language models share."""

WIDTH = 32
IDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
LANGUAGE = {
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
    **IDS,
}
TOWER = {
    "hidden_size": 24,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 8,
    "initializer_range": 0.3,
}
SQUARE = {"height": 16, "width": 16}
TILES = [[16, 32], [32, 16], [32, 32]]


def template(picture: str) -> str:
    """A chat template that writes ``picture`` where a picture belongs."""
    return (
        "{{- bos_token -}}"
        "{%- for message in messages -%}"
        "{{- '<' + message['role'] + '> ' -}}"
        "{%- for part in message['content'] -%}"
        "{%- if part['type'] == 'image' -%}{{- '" + picture + " ' -}}"
        "{%- else -%}{{- part['text'] + ' ' -}}{%- endif -%}"
        "{%- endfor -%}"
        "{%- if message['role'] == 'assistant' -%}{{- eos_token -}}{%- endif -%}"
        "{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{- '<assistant>' -}}{%- endif -%}"
    )
