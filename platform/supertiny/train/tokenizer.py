"""A tokenizer for tiny models: a value has the same tokens in a prompt as in a call, and the JSON around it few."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any

END_OF_TEXT, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
WHOLE = (
    *("<tool_call>", "</tool_call>"),
    *('\n{"name": "', '", "arguments": {"', '", "arguments": {', '"}}\n', "}}\n"),  # a call, as tasks.calls.render writes it
    *('": "', '": ["', '": ', '", "', ', "', '"], "', '"]}}\n', '{"', '"}', "}", '"'),  # between its values
    " ",
)
"""Texts that are one token each wherever they occur. Qwen2's own cutting would join a word with the space or quote before it, so that
a value looked different in a prompt and in a call; a space that is a token of its own keeps them alike, and copying is easy to learn."""

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
    """A byte-level BPE tokenizer trained on texts, lossless on any text in Unicode's composed form (NFC), with a chat template.

    It is a `Qwen2Tokenizer`, because every loader takes that class for a Qwen2 model, whatever the folder says.
    """
    from tokenizers import AddedToken
    from transformers import Qwen2Tokenizer

    model = _train(texts, vocabulary_size - len(WHOLE))
    tokenizer = Qwen2Tokenizer(
        vocab=model["vocab"],
        merges=model["merges"],
        eos_token=TURN_END,
        pad_token=END_OF_TEXT,
        additional_special_tokens=[TURN_START],
        model_max_length=1024,
    )
    tokenizer.add_tokens([AddedToken(text, normalized=False, special=False) for text in WHOLE])
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def _train(texts: Iterable[str], vocabulary_size: int) -> dict[str, Any]:
    """A byte-level BPE's `vocab` and `merges` from what lies between the whole tokens."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import Qwen2Tokenizer

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = Qwen2Tokenizer().backend_tokenizer.pre_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        special_tokens=[END_OF_TEXT, TURN_START, TURN_END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    whole = re.compile("|".join(re.escape(text) for text in sorted(WHOLE, key=len, reverse=True)))
    bpe.train_from_iterator((piece for text in texts for piece in whole.split(text) if piece), trainer)
    model = json.loads(bpe.to_str())["model"]
    return {"vocab": model["vocab"], "merges": [tuple(pair) for pair in model["merges"]]}
