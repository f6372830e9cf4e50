import asyncio
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from supertiny.compress import speed
from supertiny.errors import NoAnswer, PromptRefused
from supertiny.llm.config import EngineConfig
from supertiny.records import Completion, Prompt, Usage

PROMPTS = [Prompt(id=text, messages=[{"role": "user", "content": text}]) for text in ("dim the lamp", "wake me", "too long")]


class FakeLlm:
    """`tokens_of` an answer, one a second."""

    def __init__(self, tokens_of: Callable[[str, int], int]) -> None:
        self.tokens_of = tokens_of
        self.closed = False
        self.seconds = self.most_together = self._together = 0

    async def complete(self, messages, *, tools=(), sampling):
        self._together += 1
        self.most_together = max(self.most_together, self._together)
        await asyncio.sleep(0)
        self._together -= 1
        self.seconds += 1
        number = self.tokens_of(messages[0]["content"], sampling.max_tokens)
        return [Completion(text="", usage=Usage(completion_tokens=number))]

    def close(self) -> None:
        self.closed = True


def measure(monkeypatch: pytest.MonkeyPatch, tokens_of: Callable[[str, int], int]) -> tuple[speed.Speed, FakeLlm]:
    llm = FakeLlm(tokens_of)
    monkeypatch.setattr(speed, "VllmLlm", lambda folder, engine: llm)
    monkeypatch.setattr(speed, "time", SimpleNamespace(monotonic=lambda: llm.seconds))
    try:
        return speed.measure_speed(Path("w8a8"), PROMPTS, [], EngineConfig(), 20, (1, 4)), llm
    finally:
        assert llm.closed


def refuse_long(text: str, most: int) -> int:
    if text == "too long":
        raise PromptRefused("too long")
    return most


def test_as_many_requests_as_said_are_in_flight_and_tokens_counted(monkeypatch: pytest.MonkeyPatch):
    found, llm = measure(monkeypatch, lambda text, most: min(most, len(text)))  # 12, 7 and 8 tokens
    assert llm.most_together == 4
    assert found == speed.Speed(seconds_per_token=1 / 8, tokens_per_second={1: 27 / 3, 4: (3 * 12 + 3 * 7 + 2 * 8) / 8})


def test_a_prompt_that_does_not_fit_has_no_answer_and_stops_nothing(monkeypatch: pytest.MonkeyPatch):
    found, _ = measure(monkeypatch, refuse_long)
    assert found == speed.Speed(seconds_per_token=1 / 20, tokens_per_second={1: 2 * 20 / 3, 4: 6 * 20 / 8})


@pytest.mark.parametrize("tokens_of", [lambda *_: 0, lambda text, most: refuse_long("too long", most)])
def test_a_model_that_answers_nothing_has_no_speed(monkeypatch: pytest.MonkeyPatch, tokens_of: Callable[[str, int], int]):
    with pytest.raises(NoAnswer, match="no prompt got a token in answer"):
        measure(monkeypatch, tokens_of)
