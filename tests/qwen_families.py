"""Tokenizers with the shape of two model families: their special tokens, and what their chat templates write.

The templates here are shorter than the originals (no images, no code) and write the same text for what our tasks send.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tiny_model import write_manifest

_TOOLS = """\
{%- if tools -%}
{{- '<|im_start|>system\\n' -}}
{{- (messages[0].content if messages[0].role == 'system' else default_system) -}}
{{- separator + '# Tools\\n\\nYou may call one or more functions to assist with the user query.\\n\\n' -}}
{{- 'You are provided with function signatures within <tools></tools> XML tags:\\n<tools>' -}}
{%- for tool in tools -%}{{- '\\n' + (tool | tojson) -}}{%- endfor -%}
{{- '\\n</tools>\\n\\nFor each function call, return a json object with function name and arguments within ' -}}
{{- '<tool_call></tool_call> XML tags:\\n<tool_call>\\n{"name": <function-name>, "arguments": <args-json-object>}\\n</tool_call>' -}}
{{- '<|im_end|>\\n' -}}
{%- elif messages[0].role == 'system' -%}
{{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' -}}
{%- elif default_system -%}
{{- '<|im_start|>system\\n' + default_system + '<|im_end|>\\n' -}}
{%- endif -%}
{%- for message in messages -%}
{%- if message.role == 'user' -%}
{{- '<|im_start|>user\\n' + message.content + '<|im_end|>\\n' -}}
{%- elif message.role == 'assistant' -%}
{{- '<|im_start|>assistant\\n' + (message.content or '') -}}
{%- for call in message.tool_calls or [] -%}
{%- set function = call.function if call.function is defined else call -%}
{{- ('\\n' if message.content or not loop.first else '') + '<tool_call>\\n{"name": "' + function.name + '", "arguments": ' -}}
{{- (function.arguments if function.arguments is string else function.arguments | tojson) + '}\\n</tool_call>' -}}
{%- endfor -%}
{{- '<|im_end|>\\n' -}}
{%- elif message.role == 'tool' -%}
{{- '<|im_start|>user\\n<tool_response>\\n' + message.content + '\\n</tool_response><|im_end|>\\n' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""
_SYSTEM = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."
_NO_THOUGHT = "{%- if add_generation_prompt and enable_thinking is defined and enable_thinking is false -%}"
TEMPLATES = {
    "qwen2.5": f"{{%- set default_system = '{_SYSTEM}' -%}}{{%- set separator = '\\n\\n' -%}}\n{_TOOLS}",
    "qwen3": "{%- set default_system = '' -%}{%- set separator = '\\n\\n' if messages[0].role == 'system' else '' -%}\n"
    + _TOOLS
    + _NO_THOUGHT
    + "{{- '<think>\\n\\n</think>\\n\\n' -}}{%- endif -%}",
}
SPECIAL = {"qwen2.5": ["<tool_call>", "</tool_call>"], "qwen3": ["<tool_call>", "</tool_call>", "<think>", "</think>"]}


def make_family_tokenizer(family: str) -> Any:
    """A small tokenizer of `qwen2.5` or `qwen3`: ends a turn with `<|im_end|>`, and knows the family's tags as one token each."""
    from supertiny.train.tokenizer import make_tokenizer

    tokenizer = make_tokenizer([template[:400] for template in TEMPLATES.values()], 512)
    tokenizer.add_tokens([token for token in SPECIAL[family] if token not in tokenizer.get_vocab()])
    tokenizer.chat_template = TEMPLATES[family]
    return tokenizer


def make_family_model(folder: Path, family: str) -> Path:
    """A folder as `hf download` leaves it, of a model of that family with 2 tiny layers."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

    tokenizer = make_family_tokenizer(family)
    shape = {"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
    kinds: dict[str, tuple[Any, Any]] = {"qwen2.5": (Qwen2Config, Qwen2ForCausalLM), "qwen3": (Qwen3Config, Qwen3ForCausalLM)}
    config, model = kinds[family]
    path = folder / family
    tokenizer.save_pretrained(path)
    model(config(vocab_size=640, head_dim=64, tie_word_embeddings=True, **shape)).to(torch.bfloat16).save_pretrained(path)
    write_manifest(path)
    return path
