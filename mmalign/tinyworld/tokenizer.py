"""The tokenizer of the tiny world: one token a word, with a chat template."""

from typing import TYPE_CHECKING

from mmalign.tinyworld.language import WORDS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SPECIALS = (
    "<pad>", "<bos>", "<eos>", "<unk>", "<image>", "<user>", "<assistant>", "<boi>", "<eoi>",
)  # fmt: skip
MODEL_MAX_LENGTH = 128

# The generation block marks what the model itself says, for masks over the reply.
CHAT_TEMPLATE = """\
{{- bos_token -}}
{%- for message in messages -%}
{%- if message['role'] not in ('user', 'assistant') -%}
{{- raise_exception('a message must have the role user or assistant') -}}
{%- endif -%}
{%- set ns = namespace(text='') -%}
{%- if message['content'] is string -%}
{%- set ns.text = message['content'] -%}
{%- else -%}
{%- for part in message['content'] -%}
{%- if part['type'] == 'image' -%}
{%- set ns.text = ns.text + '<image> ' -%}
{%- elif part['type'] == 'text' -%}
{%- set ns.text = ns.text + part['text'] + ' ' -%}
{%- else -%}
{{- raise_exception('a part of a message must have the type image or text') -}}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{%- if message['role'] == 'user' -%}
{{- '<user> ' + ns.text.strip() + ' ' -}}
{%- else -%}
{{- '<assistant> ' -}}
{%- generation -%}
{{- ns.text.strip() + ' ' + eos_token -}}
{%- endgeneration -%}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<assistant>' -}}
{%- endif -%}
"""


def build_tokenizer() -> "PreTrainedTokenizerFast":
    """Build the whole-word tokenizer.

    Returns:
        A fast tokenizer whose ids are the `SPECIALS` and then the words of the language. It
        adds no special tokens by itself (the chat template writes them), pads on the left,
        decodes to words joined by single spaces, and knows `image_token`, `boi_token` and
        `eoi_token`.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: index for index, word in enumerate((*SPECIALS, *WORDS))}
    core = Tokenizer(models.WordLevel(vocab=vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    # No word starts with "##", so this decoder does nothing but join by spaces.
    core.decoder = decoders.WordPiece(prefix="##", cleanup=False)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        model_max_length=MODEL_MAX_LENGTH,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        extra_special_tokens={
            "image_token": "<image>",
            "user_token": "<user>",
            "assistant_token": "<assistant>",
            "boi_token": "<boi>",
            "eoi_token": "<eoi>",
        },
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer
