"""A tokenizer for tiny models: a value has the same tokens in a prompt as in a call, and the JSON around it few."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

END_OF_TEXT, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
CALL_START, CALL_END = "<tool_call>", "</tool_call>"

_PIECES = "|".join(
    (
        r'\n\{"name": "|", "arguments": \{"?',  # a call's beginning, as tasks.calls.render writes it
        r'": \{"|": \["|": "|": |"\}\}\n|"\]\}\}\n|\]\}\}\n|\}\}\n|", "|, "|"\], "|\], "|\{"|"\}',  # between its values
        r"[\p{L}\p{M}_]+",  # a word, without the space before it
        r"\p{N}",  # one digit
        r"\s|[^\s\p{L}\p{M}\p{N}_]",  # any other character by itself
    )
)
"""Where a text may be cut into tokens; a token never crosses a cut, and every character is in one piece."""

CHAT_TEMPLATE = """\
{%- macro call_text(call) -%}
{%- set function = call.function if call.function is defined else call -%}
{%- set arguments = function.arguments if function.arguments is string else function.arguments | tojson -%}
{{- '<tool_call>\\n{"name": "' + function.name + '", "arguments": ' + arguments + '}\\n</tool_call>' -}}
{%- endmacro -%}
{%- for message in messages -%}
{{- '<|im_start|>' + message.role + '\\n' -}}
{%- if message.content -%}
{%- if message.content is string -%}
{{- message.content -}}
{%- else -%}
{%- for part in message.content -%}{{- part.text -}}{%- endfor -%}
{%- endif -%}
{%- endif -%}
{%- for call in message.tool_calls or [] -%}
{%- if message.content or not loop.first -%}{{- '\\n' -}}{%- endif -%}
{{- call_text(call) -}}
{%- endfor -%}
{{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant\\n' -}}
{%- endif -%}
"""
"""ChatML that leaves the tools out: a tiny model knows them by heart, and they would be most of its prompt."""


def make_tokenizer(texts: Iterable[str], vocabulary_size: int) -> Any:
    """A byte-level BPE tokenizer trained on texts, lossless on any Unicode, as a transformers fast tokenizer with a chat template."""
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    cut = pre_tokenizers.Split(Regex(_PIECES), behavior="isolated")
    bpe.pre_tokenizer = pre_tokenizers.Sequence([cut, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    bpe.decoder = decoders.ByteLevel()
    special = [END_OF_TEXT, TURN_START, TURN_END]
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size - 2,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    bpe.add_tokens([AddedToken(token, normalized=False, special=False) for token in (CALL_START, CALL_END)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token=TURN_END, pad_token=END_OF_TEXT, clean_up_tokenization_spaces=False, model_max_length=1024
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer
