"""The task from files: reading, splitting, judging, and the teacher pipeline."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from supertiny.config import TaskConfig
from supertiny.errors import ConfigError, CorruptArtifact, MissingInput
from supertiny.llm.base import GREEDY, Sampling
from supertiny.llm.scripted import ScriptedLlm
from supertiny.records import Call, Completion, Message, Prompt, Tool
from supertiny.tasks.base import Pretrainable, load_task
from supertiny.tasks.calls import render
from supertiny.tasks.files.task import FileTask
from supertiny.tasks.files.teacher import REFUSAL

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "play",
            "description": "Play music.",
            "parameters": {
                "type": "object",
                "additionalProperties": False,
                "properties": {
                    "artist": {"type": "string"},
                    "track": {"type": "string"},
                    "service": {"type": "string", "enum": ["Deezer", "Spotify"]},
                },
            },
        },
    }
]


def labelled(number: int) -> dict[str, Any]:
    arguments = {"artist": f"singer {number}", "service": "Deezer"}
    return {"id": f"in-{number}", "prompt": f"play singer {number} on Deezer", "calls": [{"name": "play", "arguments": arguments}]}


def write(path: Path, rows: Sequence[Any]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def options(tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "tools.json").write_text(json.dumps(TOOLS))
    write(tmp_path / "prompts.jsonl", [labelled(number) for number in range(200)])
    write(tmp_path / "other.jsonl", [{"id": f"out-{number}", "prompt": f"what is {number} squared"} for number in range(40)])
    return {
        "root": str(tmp_path),
        "tools": "tools.json",
        "prompts": "prompts.jsonl",
        "out_of_scope": ["other.jsonl"],
        "holdout_fraction": 0.25,
        "gold_fraction": 0.5,
    }


def ids(prompts: Sequence[Prompt]) -> set[str]:
    return {prompt.id for prompt in prompts}


def first_examples(task: FileTask, count: int, role: Any = "teacher") -> list[tuple[list[Message], str]]:
    return list(itertools.islice(task.pretraining_examples(role, seed=0), count))


def play(**arguments: Any) -> str:
    return render([Call(name="play", arguments=arguments)])


def asked(text: str, reference: list[Call] | None = None) -> Prompt:
    return Prompt(id="p", messages=[{"role": "user", "content": text}], reference=reference)


def test_it_loads_by_its_import_path_and_can_be_pretrained(options: dict[str, Any]) -> None:
    task = load_task(TaskConfig(path="supertiny.tasks.files.task:FileTask", options=options))
    assert isinstance(task, Pretrainable)
    assert task.tools == TOOLS


def test_heldout_prompts_carry_their_calls_and_train_prompts_none(options: dict[str, Any]) -> None:
    task = FileTask(**options)
    train, heldout = task.prompts("train"), task.prompts("heldout")
    assert all(prompt.reference is None for prompt in train)
    assert all(prompt.reference is not None for prompt in heldout)
    assert [prompt.reference for prompt in heldout if prompt.slice == "out_of_scope"].count([]) > 0
    assert {prompt.slice for prompt in train} == {"in_scope", "out_of_scope"}


def test_a_narrower_task_keeps_some_tools_and_the_prompts_that_call_no_other(options: dict[str, Any], tmp_path: Path) -> None:
    stop = {"type": "function", "function": {"name": "stop", "description": "Stop.", "parameters": {"type": "object", "properties": {}}}}
    (tmp_path / "tools.json").write_text(json.dumps([*TOOLS, stop]))
    stops = [{"id": f"stop-{at}", "prompt": f"stop it {at}", "calls": [{"name": "stop", "arguments": {}}]} for at in range(40)]
    write(tmp_path / "prompts.jsonl", [*(labelled(number) for number in range(200)), *stops])
    every, narrow = FileTask(**options), FileTask(**options, functions=["play"])
    assert [tool["function"]["name"] for tool in narrow.tools] == ["play"]
    for split in ("train", "heldout"):
        assert ids(narrow.prompts(split)) == {name for name in ids(every.prompts(split)) if not name.startswith("stop")}
        assert len(ids(narrow.prompts(split))) < len(ids(every.prompts(split)))
    with pytest.raises(ConfigError, match=r"functions: no tool pause in tools\.json"):
        FileTask(**options, functions=["pause"])


def test_splits_share_no_prompt_and_keep_their_shares(options: dict[str, Any]) -> None:
    task = FileTask(**options)
    train, heldout = ids(task.prompts("train")), ids(task.prompts("heldout"))
    assert not train & heldout
    assert 40 <= len(heldout) <= 80  # a quarter of 240
    assert 60 <= len(train) <= 120  # half of the rest


def test_pretraining_sees_no_prompt_of_train_or_heldout(options: dict[str, Any], tmp_path: Path) -> None:
    write(
        tmp_path / "prompts.jsonl",
        [{**labelled(number), "prompt": f"Number{number}x play singer {number} on Deezer"} for number in range(200)],
    )
    task = FileTask(**options)
    seen = {messages[0]["content"].split()[0].lower() for messages, _ in first_examples(task, 2000)}
    others = {prompt.messages[0]["content"].split()[0].lower() for split in ("train", "heldout") for prompt in task.prompts(split)}
    assert not (seen & others) - {"what"}  # "what" begins every out-of-scope prompt
    assert len(seen) > 40


def test_the_calls_of_train_change_nothing(options: dict[str, Any], tmp_path: Path) -> None:
    rows = [labelled(number) for number in range(200)]
    before = FileTask(**options)
    train = ids(before.prompts("train"))
    write(tmp_path / "prompts.jsonl", [{**row, "calls": "stolen"} if row["id"] in train else row for row in rows])
    after = FileTask(**options)
    for split in ("train", "heldout"):
        assert after.prompts(split) == before.prompts(split)
    assert first_examples(after, 500) == first_examples(before, 500)
    assert "stolen" not in str(after._rows)


def test_unlabelled_prompts_all_go_to_train(options: dict[str, Any], tmp_path: Path) -> None:
    write(tmp_path / "prompts.jsonl", [{"id": f"in-{number}", "prompt": f"play singer {number}"} for number in range(50)])
    task = FileTask(**{**options, "out_of_scope": []})
    assert len(task.prompts("train")) == 50
    with pytest.raises(ConfigError, match=r"heldout split .* is empty"):
        task.prompts("heldout")
    with pytest.raises(ConfigError, match="gold_fraction"):
        first_examples(task, 1)


def test_a_text_may_have_line_separators_that_json_does_not_escape(options: dict[str, Any], tmp_path: Path) -> None:
    rows = [{"id": f"u{at}", "prompt": f"play{separator}jazz"} for at, separator in enumerate(("\u2028", "\u2029", "\x85"))]
    (tmp_path / "prompts.jsonl").write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), "utf-8")
    found = FileTask(**{**options, "out_of_scope": ()}).prompts("train")
    assert {prompt.messages[0]["content"] for prompt in found} == {row["prompt"] for row in rows}


def test_a_text_that_comes_twice_is_in_one_split(options: dict[str, Any], tmp_path: Path) -> None:
    rows = [labelled(number) for number in range(200)]
    write(tmp_path / "prompts.jsonl", [*rows, *({**row, "id": row["id"] + "-again", "prompt": row["prompt"].upper()} for row in rows)])
    task = FileTask(**options)
    assert not any(prompt.id.endswith("again") for split in ("train", "heldout") for prompt in task.prompts(split))


def test_the_front_of_a_split_is_a_fair_sample(options: dict[str, Any]) -> None:
    assert {prompt.slice for prompt in FileTask(**options).prompts("heldout")[:20]} == {"in_scope", "out_of_scope"}


def test_the_base_sees_part_of_the_gold(options: dict[str, Any]) -> None:
    task = FileTask(**options, base_fraction=0.3)
    answers_of = {role: {answer for _, answer in first_examples(task, 1500, role)} for role in ("teacher", "base")}
    singers = {role: sum(f'"singer {number}"' in str(answers) for number in range(200)) for role, answers in answers_of.items()}
    assert singers["teacher"] > 60  # of the 75 or so that are gold
    assert 10 < singers["base"] < 40


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"prompts": "nowhere.jsonl"}, MissingInput, r"task.options.prompts: no file at .*nowhere.jsonl"),
        ({"out_of_scope": ["nowhere.jsonl"]}, MissingInput, "task.options.out_of_scope: no file"),
        ({"root": None}, ConfigError, "task.options.prompts: prompts.jsonl is relative"),
        ({"holdout": 0.5}, ConfigError, "task.options: holdout: Extra inputs"),
        ({"gold_fraction": 2}, ConfigError, "task.options: gold_fraction: Input should be less"),
    ],
)
def test_wrong_options_are_named(options: dict[str, Any], changes: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        FileTask(**{**options, **changes})


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "not JSONL"),
        ('{"prompt": "x"}', r"prompts.jsonl:1: expected"),
        ('{"id": "in-0", "prompt": "x", "calls": [{"nom": "play"}]}', r"prompts.jsonl:1: calls: expected a list"),
    ],
)
def test_a_bad_line_is_named(options: dict[str, Any], tmp_path: Path, line: str, words: str) -> None:
    (tmp_path / "prompts.jsonl").write_text(line)
    with pytest.raises(CorruptArtifact, match=words):
        FileTask(**{**options, "gold_fraction": 1}).prompts("heldout")


def test_an_id_that_comes_twice_is_an_error(options: dict[str, Any], tmp_path: Path) -> None:
    write(tmp_path / "prompts.jsonl", [labelled(1), labelled(1)])
    with pytest.raises(CorruptArtifact, match="id in-1 came before"):
        FileTask(**options).prompts("train")


def test_tools_that_are_no_tools_are_an_error(options: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "tools.json").write_text('[{"name": "play"}]')
    with pytest.raises(CorruptArtifact, match="not an OpenAI-style list of tools"):
        FileTask(**options)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (play(artist="Björk", service="Deezer"), ""),
        (play(artist="björk"), ""),
        (REFUSAL, ""),
        (play(artist="Bj"), "ungrounded"),
        (play(artist="Prince"), "ungrounded"),
        (play(artist=""), "ungrounded"),
        (play(singer="Björk"), "schema"),
        (play(artist=3), "schema"),
        (render([Call(name="stop")]), "no_such_tool"),
        ("<tool_call>\n{", "malformed"),
        ("", "malformed"),
    ],
)
def test_without_a_reference_the_schema_and_the_prompt_decide(options: dict[str, Any], text: str, reason: str) -> None:
    verdict = FileTask(**options).verify(asked("Play Björk on Deezer"), text)
    assert (verdict.accepted, verdict.reason) == (not reason, reason)


def test_grounding_can_be_switched_off(options: dict[str, Any]) -> None:
    assert FileTask(**options, grounded=False).verify(asked("play something"), play(artist="Prince")).accepted


@pytest.mark.parametrize(
    ("text", "reason", "score"),
    [
        (play(service="Deezer", artist="BJÖRK "), "", 1),
        (play(artist="Björk"), "wrong_arguments", 2 * (2 / 3) - 1),
        (play(artist="on", service="Spotify"), "wrong_arguments", -0.8),
        (REFUSAL, "no_call", -0.8),
    ],
)
def test_with_a_reference_the_score_is_graded(options: dict[str, Any], text: str, reason: str, score: float) -> None:
    reference = [Call(name="play", arguments={"artist": "Björk", "service": "Deezer"})]
    verdict = FileTask(**options).verify(asked("Play Björk on Deezer", reference), text)
    assert verdict.reason == reason
    assert verdict.score == pytest.approx(score)


def test_a_call_where_none_is_right_is_out_of_scope(options: dict[str, Any]) -> None:
    verdict = FileTask(**options).verify(asked("what is Björk", []), play(artist="Björk"))
    assert (verdict.reason, verdict.score) == ("call_out_of_scope", -0.8)


class SequenceLlm(ScriptedLlm):
    """Answers each draft with the next text of a list, and remembers what it was asked."""

    def __init__(self, texts: Sequence[str]) -> None:
        self._texts = list(texts)
        self.samplings: list[Sampling] = []
        super().__init__(lambda messages: self._texts.pop(0))

    async def complete(
        self, messages: Sequence[Message], *, tools: Sequence[Tool] = (), n: int = 1, sampling: Sampling = GREEDY, logprobs: int = 0
    ) -> list[Completion]:
        self.samplings.append(sampling)
        return await super().complete(messages, tools=tools, n=n, sampling=sampling, logprobs=logprobs)

    async def score(self, messages: Sequence[Message], text: str, *, tools: Sequence[Tool] = (), logprobs: int = 1) -> Completion:
        return self._completion(messages, text)


def taught(options: dict[str, Any], texts: Sequence[str]) -> tuple[Completion, SequenceLlm]:
    llm = SequenceLlm(texts)
    return asyncio.run(FileTask(**options).teach(asked("Play Björk on Deezer"), llm)), llm


def test_a_sound_draft_is_scored_as_it_is(options: dict[str, Any]) -> None:
    answer, llm = taught(options, [play(artist="Björk")])
    assert answer.text == play(artist="Björk")
    assert answer.usage.calls == 2
    assert [sampling.temperature for sampling in llm.samplings] == [0]


def test_an_unsound_draft_is_drafted_again(options: dict[str, Any]) -> None:
    wrong = play(artist="Prince")
    answer, llm = taught({**options, "redrafts": 3}, [wrong, wrong, play(artist="Björk"), wrong])
    assert answer.text == play(artist="Björk")
    assert answer.usage.calls == 5
    assert llm.samplings[1].temperature > 0
    assert llm.samplings[1].seed == 0  # the pipeline stays deterministic


def test_the_first_draft_stays_where_none_is_sound(options: dict[str, Any]) -> None:
    answer, _ = taught({**options, "redrafts": 1}, [play(artist="Prince"), play(artist="Queen")])
    assert answer.text == play(artist="Prince")


def test_votes_keep_what_most_sound_drafts_say(options: dict[str, Any]) -> None:
    texts = [play(artist="on"), play(artist="Björk"), play(artist="Prince"), play(artist="björk"), play(artist="Prince")]
    answer, _ = taught({**options, "votes": 5, "temperature": 0.5}, texts)
    assert answer.text == play(artist="Björk")
