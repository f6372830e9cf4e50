import weakref
from collections import Counter
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supertiny.compress.calibration import calibration_rows, equal_length_batches, first_rollouts
from supertiny.errors import CorruptArtifact, MissingInput
from supertiny.records import Completion, Prompt, Rollout, Verdict


class LetterTokenizer:
    """One token a letter: its code point; end of turn is 0."""

    eos_token_id = 0

    def apply_chat_template(self, messages, tools, add_generation_prompt, tokenize):
        return messages[0]["content"] + ">"

    def encode(self, text, add_special_tokens):
        return [ord(letter) for letter in text]

    def decode(self, ids):
        return decode(ids)


def rollout(prompt_id: str, index: int, text: str = "ok") -> Rollout:
    return Rollout(
        rollout_id=f"{prompt_id}/{index}",
        index=index,
        prompt=Prompt(id=prompt_id, messages=[{"role": "user", "content": prompt_id}]),
        tools=[],
        completion=Completion(text=text),
        verdict=Verdict(accepted=True, score=1),
        seconds=0,
    )


def decode(row: list[int]) -> str:
    return "".join(map(chr, row))


def test_a_row_is_the_prompt_and_its_completion_with_the_end_of_turn():
    assert [decode(row) for row in calibration_rows(LetterTokenizer(), [rollout("hi", 0)], 5, 100)] == ["hi>ok\0"]


def test_each_prompt_gives_one_row():
    rows = calibration_rows(LetterTokenizer(), [rollout(name, index) for name in "abc" for index in range(3)], 100, 100)
    assert sorted(map(decode, rows)) == ["a>ok\0", "b>ok\0", "c>ok\0"]


def test_the_same_prompts_are_drawn_whatever_the_order_of_the_table():
    table = [rollout(f"prompt {number}", 0) for number in range(50)]
    drawn = calibration_rows(LetterTokenizer(), table, 10, 100)
    assert drawn == calibration_rows(LetterTokenizer(), reversed(table), 10, 100)
    assert len(drawn) == 10


def test_the_first_prompts_of_the_table_are_not_preferred():
    table = [rollout(f"prompt {number}", 0) for number in range(100)]
    drawn = {decode(row) for row in calibration_rows(LetterTokenizer(), table, 20, 100)}
    first = {decode(row) for row in calibration_rows(LetterTokenizer(), table[:20], 20, 100)}
    assert len(drawn & first) < 15


def test_rollouts_are_drawn_while_few_are_held_and_none_of_a_prompts_later_ones_is_taken():
    alive: set[int] = set()
    held = []

    def table() -> Iterator[Rollout]:
        for at in range(600):
            row = rollout(f"prompt {at % 200}", at // 200)
            alive.add(at)
            weakref.finalize(row, alive.discard, at)
            held.append(len(alive))
            yield row

    drawn = first_rollouts(table(), 20)
    assert max(held) <= 42
    assert [row.index for row in drawn] == [0] * 20
    assert drawn == first_rollouts([rollout(f"prompt {at}", 0) for at in range(200)], 200)[:20]


def test_long_rows_are_cut():
    assert calibration_rows(LetterTokenizer(), [rollout("a", 0, "x" * 50)], 1, 8) == [[ord(letter) for letter in "a>xxxxxx"]]


def test_rollouts_of_another_tokenizer_are_refused():
    other = rollout("a", 0)
    completion = other.completion.model_copy(update={"token_ids": [7, 8, 0]})
    with pytest.raises(CorruptArtifact, match="rollout a/0: its 3 token ids are not its text under the student's tokenizer"):
        calibration_rows(LetterTokenizer(), [other.model_copy(update={"completion": completion})], 1, 100)


def test_no_accepted_rollout_is_an_error():
    with pytest.raises(MissingInput, match="no accepted row"):
        calibration_rows(LetterTokenizer(), [], 5, 100)


@given(st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=9), max_size=60), st.integers(1, 30))
def test_batches_hold_every_row_once_by_one_length_within_the_limit(rows: list[list[int]], max_tokens: int):
    batches = equal_length_batches(rows, max_tokens)
    assert Counter(tuple(row) for batch in batches for row in batch) == Counter(map(tuple, rows))
    assert all(len({len(row) for row in batch}) == 1 for batch in batches)
    assert all(len(batch) * len(batch[0]) <= max_tokens for batch in batches if len(batch) > 1)
