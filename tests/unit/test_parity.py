import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from compress_run import make_run, some_rollouts, tiny_student
from tiny_rollouts import publish_rollouts
from transformers import AutoModelForCausalLM, AutoTokenizer

from supertiny.artifacts import Artifact, make, open_artifact
from supertiny.compress import parity
from supertiny.compress.config import ParityConfig
from supertiny.compress.parity import check_passed, compare, file_problems, gap_of, kl_of_kept, prove, unlike_its_origin, within
from supertiny.config import StageConfig
from supertiny.errors import ConfigError, GateNotPassed
from supertiny.llm.chat import completion_token_ids, prompt_token_ids
from supertiny.llm.config import EngineConfig
from supertiny.records import Completion, Rollout, TopK, Usage

K = 20
CHAT_TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}<|im_start|>{# the same text #}"


def served_by_hugging_face(folder: Path, rows: list[Rollout]) -> list[Completion]:
    """What an engine would say that runs the folder as Hugging Face does."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    completions = []
    for row in rows:
        prompt = prompt_token_ids(tokenizer, row.prompt.messages, [])
        answer = completion_token_ids(tokenizer, row.completion.text)
        logprobs = model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1].log_softmax(-1).topk(K)
        top_k = TopK(ids=logprobs.indices.tolist(), logprobs=logprobs.values.tolist())
        usage = Usage(prompt_tokens=len(prompt) + len(answer))
        completions.append(Completion(text=row.completion.text, token_ids=answer, top_k=top_k, usage=usage))
    return completions


def test_a_model_has_no_gap_to_itself(tmp_path: Path):
    make_run(tmp_path, "rl", tiny_student(2))
    rows = some_rollouts(4)
    gap, problems = gap_of(tmp_path / "rl", rows, served_by_hugging_face(tmp_path / "rl", rows))
    assert (gap.greedy_agreement, problems) == (1, [])
    assert gap.kl_nats == pytest.approx(0, abs=1e-5)
    assert gap.positions == sum(len(row.completion.text) + 1 for row in rows)


def test_another_model_has_a_gap(tmp_path: Path):
    model = tiny_student(2)
    make_run(tmp_path, "rl", model)
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight *= -1
    model.save_pretrained(tmp_path / "other")
    rows = some_rollouts(4)
    gap, _ = gap_of(tmp_path / "rl", rows, served_by_hugging_face(tmp_path / "rl", rows))
    AutoTokenizer.from_pretrained(tmp_path / "rl").save_pretrained(tmp_path / "other")
    far, _ = gap_of(tmp_path / "other", rows, served_by_hugging_face(tmp_path / "rl", rows))
    assert far.kl_nats > 0.1 > gap.kl_nats
    assert far.greedy_agreement < 1


def damaged(completion: Completion, logprob: float) -> Completion:
    """As if the engine found every token but the likeliest so likely."""
    assert completion.top_k is not None
    logprobs = [[row[0], *([logprob] * (len(row) - 1))] for row in completion.top_k.logprobs]
    return completion.model_copy(update={"top_k": TopK(ids=completion.top_k.ids, logprobs=logprobs)})


def backwards(completion: Completion) -> Completion:
    """As if the engine found the least likely of the kept tokens likeliest."""
    assert completion.top_k is not None
    ids, logprobs = ([row[::-1] for row in each] for each in (completion.top_k.ids, completion.top_k.logprobs))
    return completion.model_copy(update={"top_k": TopK(ids=ids, logprobs=logprobs)})


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda row: damaged(row, -30.0), "is over max_kl_nats 0.005"),
        (lambda row: damaged(row, float("nan")), "KL nan nats a token is over max_kl_nats"),
        (backwards, "greedy agreement 0.0000 is under min_greedy_agreement 0.98"),
    ],
    ids=["another distribution", "no number", "another likeliest token"],
)
def test_an_engine_that_answers_otherwise_fails_the_proof(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Any, problem: str):
    make_run(tmp_path, "rl", tiny_student(2))
    served = [change(row) for row in served_by_hugging_face(tmp_path / "rl", some_rollouts(4))]
    monkeypatch.setattr(parity, "score_all", lambda *_: served)  # the engine is a seam here; a real one is asked in tests/local_ray
    found = compare(open_artifact("rl", str(tmp_path), "model"), some_rollouts(4), ParityConfig(run_root=str(tmp_path), model="rl"))
    assert found.verdict == "fail"
    assert [each for each in found.problems if problem in each]


def test_a_model_made_again_is_proven_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    make_run(tmp_path, "rl", tiny_student(1))
    monkeypatch.setattr(parity, "score_all", lambda folder, rows, *_: served_by_hugging_face(folder, rows))
    config = ParityConfig(run_root=str(tmp_path), model="rl")
    before = prove(config)
    assert prove(config) == before
    shutil.rmtree(tmp_path / "rl")
    make_run(tmp_path, "rl", tiny_student(2))
    again = prove(config)
    assert again.manifest.key == before.manifest.key
    assert again.manifest.parents["model"].sha256 == open_artifact("rl", str(tmp_path), "model").as_parent().sha256


def test_a_proof_fails_for_a_stray_file_and_is_kept_with_its_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    make_run(tmp_path, "rl", tiny_student(2))
    monkeypatch.setattr(parity, "score_all", lambda folder, rows, *_: served_by_hugging_face(folder, rows))
    check_passed(prove(ParityConfig(run_root=str(tmp_path), model="rl", name="before")))
    (tmp_path / "rl" / "pytorch_model.bin").write_text("x")
    proof = prove(ParityConfig(run_root=str(tmp_path), model="rl", name="after"))
    with pytest.raises(GateNotPassed, match=r"pytorch_model\.bin is no safetensors file"):
        check_passed(proof)


def made_from(origin: str, root: Path, name: str, metrics: dict[str, Any], **changed: str) -> Artifact:
    """A stage's copy of a model, with some files changed."""
    source = open_artifact(origin, str(root), "model")

    def build(folder: Path) -> dict[str, Any]:
        shutil.copytree(source.path, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("manifest.json"))
        for path, text in changed.items():
            (folder / path).write_text(text)
        return metrics

    return make(StageConfig(name=name, run_root=str(root)), "model", {"student": source}, build)


def test_a_tokenizer_or_template_that_is_not_its_origins_fails_the_proof(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    make_run(tmp_path, "rl", tiny_student(2))
    monkeypatch.setattr(parity, "score_all", lambda folder, rows, *_: served_by_hugging_face(folder, rows))
    tokenizer = (tmp_path / "rl" / "tokenizer.json").read_text()
    models = {
        "same": made_from("rl", tmp_path, "same", {}),
        "other": made_from("rl", tmp_path, "other", {}, **{"tokenizer.json": f"{tokenizer}\n", "chat_template.jinja": CHAT_TEMPLATE}),
        "cut": made_from("rl", tmp_path, "cut", {"removed_tokens": 128}, **{"tokenizer.json": f"{tokenizer}\n"}),
    }
    found = {name: compare(each, some_rollouts(4), ParityConfig(run_root=str(tmp_path), model=name)) for name, each in models.items()}
    assert {name: each.problems for name, each in found.items()} == {
        "same": [],
        "other": ["its tokenizer is not that of rl, which it was made from", "its template is not that of rl, which it was made from"],
        "cut": [],
    }
    assert found["other"].verdict == "fail"
    assert {name: each.not_compared for name, each in found.items()} == {"same": "", "other": "", "cut": "its vocabulary was cut"}


def test_what_a_model_was_made_from_may_be_gone(tmp_path: Path):
    make_run(tmp_path, "rl", tiny_student(1))
    model = made_from("rl", tmp_path, "awq", {})
    shutil.rmtree(tmp_path / "rl")
    assert unlike_its_origin(model, str(tmp_path)) == ([], "rl, which it was made from, is gone or another one now")


def test_a_model_may_have_been_made_from_none(tmp_path: Path):
    make_run(tmp_path, "rl", tiny_student(1))
    assert unlike_its_origin(open_artifact("rl", str(tmp_path), "model"), str(tmp_path)) == ([], "it was made from no other model of a run")


def test_rollouts_that_the_engine_has_no_room_for_are_left_out(tmp_path: Path):
    make_run(tmp_path, "rl", tiny_student(2))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "rl")
    rows = some_rollouts(16)
    lengths = {
        row.rollout_id: len(prompt_token_ids(tokenizer, row.prompt.messages, []))
        + len(completion_token_ids(tokenizer, row.completion.text))
        for row in rows
    }
    longest = max(lengths.values())
    assert within(longest + 1, rows, tokenizer) == rows
    assert within(longest, rows, tokenizer) == [row for row in rows if lengths[row.rollout_id] < longest]


@pytest.mark.parametrize(
    ("num_rollouts", "max_model_len", "said"),
    [(7, 4096, "and there are 7; roll more prompts out"), (16, 16, "and of 16 only 0 fit engine.max_model_len 16; raise it")],
)
def test_too_few_rollouts_for_a_proof_are_refused_before_an_engine_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_rollouts: int, max_model_len: int, said: str
):
    make_run(tmp_path, "rl", tiny_student(1))
    publish_rollouts(tmp_path, some_rollouts(num_rollouts), "few")
    monkeypatch.delattr(parity, "score_all")
    engine = EngineConfig(max_model_len=max_model_len)
    with pytest.raises(ConfigError, match=f"a proof takes rollouts of 8 prompts at least, {said}"):
        prove(ParityConfig(run_root=str(tmp_path), model="rl", rollouts="few", engine=engine))
    assert not (tmp_path / "parity").exists()


def test_an_engine_with_another_tokenizer_or_template_is_found(tmp_path: Path):
    make_run(tmp_path, "rl", tiny_student(2))
    rows = some_rollouts(2)
    served = served_by_hugging_face(tmp_path / "rl", rows)
    longer = served[0].model_copy(update={"usage": Usage(prompt_tokens=served[0].usage.prompt_tokens + 1)})
    gap, problems = gap_of(tmp_path / "rl", rows, [longer, served[1]])
    assert problems == [f"rollout {rows[0].rollout_id}: vLLM and Hugging Face make different tokens of it"]
    assert gap.positions == len(rows[1].completion.text) + 1


def test_the_gap_over_kept_tokens_is_computed_by_hand():
    p_TK, q_TK = torch.tensor([[0.5, 0.25]]).log(), torch.tensor([[0.25, 0.25]]).log()
    expected = 0.5 * torch.tensor(2.0).log() + 0.25 * torch.tensor(0.5).log()
    torch.testing.assert_close(kl_of_kept(p_TK, q_TK), expected[None])


def test_files_that_are_no_safetensors_or_in_no_manifest_are_problems(tmp_path: Path):
    make_run(tmp_path, "rl", tiny_student(1))
    model = open_artifact("rl", str(tmp_path), "model")
    assert file_problems(model) == []
    for name in ("pytorch_model.bin", "modeling.py", "more.safetensors"):
        (model.path / name).write_text("x")
    assert file_problems(model) == [
        "modeling.py is no safetensors file",
        "pytorch_model.bin is no safetensors file",
        "more.safetensors has no sha256 in the manifest",
    ]
