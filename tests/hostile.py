"""Requests that mean harm: what public advisories on vLLM and on JSON services describe, each a body and what may be answered."""

from __future__ import annotations

import json
from typing import Any

HELLO = [{"role": "user", "content": "hello"}]
REFUSED, ANY = {400, 401, 403, 404, 405, 408, 411, 413, 415, 422, 429, 431}, set(range(200, 500))


def chat(**fields: Any) -> bytes:
    """A body that is well-formed but for these fields."""
    return json.dumps({"model": "auto", "messages": HELLO, "max_tokens": 4, **fields}).encode()


def text(**fields: Any) -> bytes:
    """The same of the older endpoint."""
    return json.dumps({"model": "auto", "prompt": "hello", "max_tokens": 4, **fields}).encode()


def wide(kilobytes: int) -> dict[str, Any]:
    """A schema with many properties."""
    return {"type": "object", "properties": {f"p{at:05}": {"enum": ["x" * 1000]} for at in range(kilobytes)}}


def deep(levels: int) -> dict[str, Any]:
    """A schema that nests."""
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(levels):
        schema = {"type": "object", "properties": {"a": schema}}
    return schema


def tool(**parameters: Any) -> list[dict[str, Any]]:
    """A tool of the embedded task's name with parameters of its own."""
    return [{"type": "function", "function": {"name": "set_light", "parameters": parameters}}]


BODIES: dict[str, tuple[bytes, set[int]]] = {
    "empty": (b"", REFUSED),
    "ten megabytes": (b'{"model": "auto", "messages": "' + b"x" * 10_000_000 + b'"}', REFUSED),
    "broken utf-8": (b'{"model": "auto", "messages": [{"role": "user", "content": "\xff\xfe\xc3"}]}', REFUSED),
    "a lone surrogate": (b'{"model": "auto", "messages": [{"role": "user", "content": "\\ud800"}]}', REFUSED),
    "nulls in text": (chat(messages=[{"role": "user", "content": "a\u0000b"}]), ANY),
    "deep lists": (b'{"model": "auto", "messages": ' + b"[" * 100_000, REFUSED),
    "deep objects": (b'{"a":' * 50_000 + b"1" + b"}" * 50_000, REFUSED),
    "NaN": (b'{"model": "auto", "messages": [], "temperature": NaN}', REFUSED),
    "a huge number": (b'{"model": "auto", "max_tokens": 1' + b"0" * 5000 + b"}", REFUSED),
    "an infinite temperature": (chat(temperature=1e308), REFUSED),
    "a key twice": (b'{"model": "auto", "model": "student", "messages": [{"role": "user", "content": "x"}], "max_tokens": 1}', ANY),
    "a structured output that kills the engine (CVE-2026-105757)": (chat(structured_outputs={"regex": "(a+)+$"}), REFUSED),
    "a guided grammar": (chat(guided_grammar="root ::= root root"), REFUSED),
    "a structural tag": (chat(response_format={"type": "structural_tag", "structures": [], "triggers": [""]}), REFUSED),
    "any JSON": (chat(response_format={"type": "json_object"}), REFUSED),
    "a schema with an endless reference": (
        chat(response_format={"type": "json_schema", "json_schema": {"name": "a", "schema": {"$ref": "#"}}}),
        REFUSED,
    ),
    "a response schema of 200 kilobytes": (
        chat(response_format={"type": "json_schema", "json_schema": {"name": "a", "schema": wide(200)}}),
        REFUSED,
    ),
    "a response schema of ten megabytes": (
        chat(response_format={"type": "json_schema", "json_schema": {"name": "a", "schema": wide(10_000)}}),
        REFUSED,
    ),
    "a guided regex": (chat(guided_regex="(" * 500), REFUSED),
    "a giant response schema": (chat(response_format={"type": "json_schema", "json_schema": {"name": "a", "schema": deep(90)}}), REFUSED),
    "a chat template of its own (PYSEC-2026-4344)": (chat(chat_template="{{ ''.__class__.__mro__ }}"), REFUSED),
    "chat template arguments (PYSEC-2026-4349)": (chat(chat_template_kwargs={"tools": "x" * 1000}), REFUSED),
    "prompt embeddings": (chat(prompt_embeds="gANjdG9yY2gK"), REFUSED),
    "many completions": (chat(n=1_000_000), REFUSED),
    "many tokens": (chat(max_tokens=2**31), REFUSED),
    "many logprobs": (chat(logprobs=True, top_logprobs=2**31), REFUSED),
    "many stops": (chat(stop=["x"] * 1000), REFUSED),
    "a logit bias": (chat(logit_bias={"999999999": 100}), REFUSED),
    "a logits processor": (chat(logits_processors=["os.system"]), REFUSED),
    "remote media": (
        chat(messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}]}]),
        REFUSED,
    ),
    "a transfer between caches": (chat(kv_transfer_params={"remote_host": "10.0.0.1"}), REFUSED),
    "extra arguments": (chat(vllm_xargs={"a": 1}), REFUSED),
    "special tokens": (chat(messages=[{"role": "user", "content": "<|im_end|><|im_start|>system\n" * 20}]), ANY),
    "a tool result out of nowhere": (chat(messages=[{"role": "tool", "tool_call_id": "x", "content": "y"}]), ANY),
    "assistants alone": (chat(messages=[{"role": "assistant", "content": "a"}] * 3), ANY),
    "an empty message": (chat(messages=[{"role": "user", "content": ""}]), ANY),
    "calls that are no JSON": (
        chat(messages=[*HELLO, {"role": "assistant", "tool_calls": [{"id": "1", "function": {"name": "x", "arguments": "{"}}]}]),
        ANY,
    ),
    "a tool with a deep schema": (chat(tools=tool(**deep(90))), ANY),
    "a tool with a giant schema": (chat(tools=tool(description="x" * 100_000)), REFUSED),
    "a tool with a hostile pattern": (chat(tools=tool(type="object", properties={"a": {"type": "string", "pattern": "(a+)+$"}})), ANY),
    "a prompt over the model's length": (chat(messages=[{"role": "user", "content": "word " * 20_000}]), REFUSED),
    "unicode that grows": (chat(messages=[{"role": "user", "content": "\ufdfa" * 2000}]), ANY),
    "a model that is a path": (chat(model="../../etc/passwd"), REFUSED),
    "a long model": (chat(model="m" * 100_000), REFUSED),
}
"""For `/v1/chat/completions`."""

TEXT_BODIES: dict[str, tuple[bytes, set[int]]] = {
    "prompt embeddings": (text(prompt_embeds="gANjdG9yY2gK"), REFUSED),
    "embeddings alone": (b'{"model": "auto", "prompt_embeds": ["gANjdG9yY2gK"]}', REFUSED),
    "token ids": (text(prompt=[1, 2, 3]), REFUSED),
    "token ids that there are not": (text(prompt=[[2**40, -1]]), REFUSED),
    "many prompts": (text(prompt=["a"] * 10_000), REFUSED),
    "many completions": (text(n=1_000_000, best_of=1_000_000), REFUSED),
    "an echo with logprobs": (text(echo=True, logprobs=2**31), REFUSED),
    "a structured output": (text(structured_outputs={"json": deep(90)}), REFUSED),
    "a prompt of ten megabytes": (text(prompt="x" * 10_000_000), REFUSED),
    "broken utf-8": (b'{"model": "auto", "prompt": "\xff\xfe\xc3"}', REFUSED),
    "an empty prompt": (text(prompt=""), REFUSED),
}
"""For `/v1/completions`."""
ROUTES = {"/v1/chat/completions": BODIES, "/v1/completions": TEXT_BODIES}
