"""What is decided once every completion of a prompt is there, layer by layer: agreement, pass rate, the student's likelihood,
duplicates, near-duplicates.

The pass rate comes before the duplicates, which would change it, and near-duplicates come last, so that a prompt that is dropped stands in
no other's way.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from supertiny.records import Call, Prompt, Rollout
from supertiny.rollout.config import FiltersConfig, LikelihoodConfig
from supertiny.rollout.likelihood import Score, likely
from supertiny.rollout.similarity import near_duplicates
from supertiny.tasks.calls import matches, meaning, parse

Layer = Callable[[list[Rollout]], list[Rollout]]
"""From one prompt's rollouts to the same ones, some of them rejected now."""

_LAYERS = {
    **dict.fromkeys(("timed_out", "failed", "crashed"), "pipeline"),
    **dict.fromkeys(("malformed", "cut_off"), "parse"),
    "schema": "schema",
}
"""Of reasons that are not the task's own, or mean the same in any task."""


@dataclass(frozen=True)
class Filtered:
    """The same rollouts in the same order, and what the layers did to them."""

    rollouts: list[Rollout]
    rejected_by_layer: dict[str, int]
    """In the order of the layers; together all rejected rollouts."""
    pass_rates: dict[str, int]
    """Number of prompts by the completions accepted before `pass_rate`: `{"0/4": 3, "4/4": 20}`."""


def filter_groups(rollouts: Sequence[Rollout], filters: FiltersConfig, scores: Mapping[str, Score] | None = None) -> Filtered:
    """Every layer in turn, and prompts without a reference given their majority's.

    Args:
        rollouts: whole groups, each prompt's completions next to each other, as the verifier and the judge left them.
        scores: the student's, by id of every rollout that they accepted; only with `filters.likelihood`.
    """
    judged = list(rollouts)
    agreed = _by_group(judged, lambda group: _agree(group, filters.min_agreement))
    solved = _by_group(agreed, lambda group: _by_pass_rate(group, filters.min_pass_rate, filters.max_pass_rate))
    suited = solved if filters.likelihood is None else _by_likelihood(solved, scores or {}, filters.likelihood)
    unique = _by_group(suited, _without_duplicates) if filters.drop_duplicates else suited
    distinct = _without_near_duplicates(unique, filters.max_similarity) if filters.max_similarity is not None else unique
    left = [_accepted(stage) for stage in (judged, agreed, solved, suited, unique, distinct)]
    layers = ("agreement", "pass_rate", "likelihood", "duplicate", "near_duplicate")
    counts = _by_first_layers(judged) | {layer: before - after for layer, before, after in zip(layers, left, left[1:], strict=False)}
    return Filtered(distinct, counts, pass_rates(agreed))


def majority(answers: Sequence[list[Call]]) -> tuple[list[Call], int]:
    """The calls that most answers make, the earliest such on a tie, and how many make them; `answers` is not empty."""
    counts = [sum(matches(other, answer) for other in answers) for answer in answers]
    best = max(range(len(answers)), key=lambda at: (counts[at], -at))
    return answers[best], counts[best]


def pass_rates(rollouts: Sequence[Rollout]) -> dict[str, int]:
    """Number of prompts by `accepted/completions`, from the smallest share to the largest."""
    groups = [list(members) for _, members in groupby(rollouts, key=_prompt_id)]
    counts = Counter((_accepted(group), len(group)) for group in groups)
    return {f"{solved}/{size}": counts[solved, size] for solved, size in sorted(counts, key=lambda pair: (pair[0] / pair[1], pair))}


def _by_group(rollouts: list[Rollout], layer: Layer) -> list[Rollout]:
    return [rollout for _, members in groupby(rollouts, key=_prompt_id) for rollout in layer(list(members))]


def _agree(group: list[Rollout], min_agreement: float | None) -> list[Rollout]:
    answers = {at: parse(rollout.completion.text) for at, rollout in enumerate(group) if rollout.verdict.accepted}
    if not answers:
        return group
    calls, count = majority(list(answers.values()))
    if min_agreement is not None and count / len(group) < min_agreement:
        evidence = f"{count} of {len(group)} completions are accepted and make the same calls; min_agreement is {min_agreement}"
        return _reject_all(group, "no_agreement", evidence)
    if group[0].prompt.reference is not None:
        return group
    prompt = group[0].prompt.model_copy(update={"reference": calls})
    group = [rollout.model_copy(update={"prompt": prompt}) for rollout in group]
    evidence = f"{count} of {len(answers)} accepted completions make other calls"
    return [_reject(r, "minority", evidence) if at in answers and not matches(answers[at], calls) else r for at, r in enumerate(group)]


def _by_pass_rate(group: list[Rollout], least: float | None, most: float | None) -> list[Rollout]:
    solved = _accepted(group)
    rate, evidence = solved / len(group), f"{solved} of the prompt's {len(group)} completions were accepted"
    if least is not None and rate < least:
        return _reject_all(group, "seldom_solved", f"{evidence}; min_pass_rate is {least}")
    if most is not None and rate > most:
        return _reject_all(group, "often_solved", f"{evidence}; max_pass_rate is {most}")
    return group


def _by_likelihood(rollouts: list[Rollout], scores: Mapping[str, Score], config: LikelihoodConfig) -> list[Rollout]:
    logprobs = {name: score.logprob for name, score in scores.items() if score.logprob is not None}
    scored = [rollout for rollout in rollouts if rollout.rollout_id in logprobs]
    kept = likely(scored, logprobs, config)
    result = []
    for rollout in rollouts:
        name = rollout.rollout_id
        if rollout.verdict.accepted and name not in logprobs:
            rollout = _reject(rollout, "not_scored", scores[name].evidence)
        elif rollout.verdict.accepted and name not in kept:
            rollout = _reject(rollout, "unlikely", _why_unlikely(logprobs[name], config))
        result.append(rollout)
    return result


def _why_unlikely(logprob: float, config: LikelihoodConfig) -> str:
    said = f"the student gives it {logprob:.4g} nats a token"
    if config.min_logprob is not None and logprob < config.min_logprob:
        return f"{said}; min_logprob is {config.min_logprob:g}"
    return f"{said}, and {config.keep_per_prompt} other texts of the prompt more"


def _without_duplicates(group: list[Rollout]) -> list[Rollout]:
    seen: Counter[str] = Counter()
    result = []
    for rollout in group:
        if rollout.verdict.accepted:
            seen[rollout.completion.text] += 1
            if seen[rollout.completion.text] > 1:
                rollout = _reject(rollout, "duplicate", "an earlier completion of the prompt has the same text")
        result.append(rollout)
    return result


def _without_near_duplicates(rollouts: list[Rollout], max_similarity: float) -> list[Rollout]:
    """Accepted rollouts that make the same calls are compared by what their prompts say; completions of one prompt are never."""
    blocks: defaultdict[str, dict[str, str]] = defaultdict(dict)
    for rollout in rollouts:
        if rollout.verdict.accepted:
            blocks[meaning(rollout.completion.text)][rollout.prompt.id] = _said(rollout.prompt)
    found = {calls: near_duplicates(texts, max_similarity) for calls, texts in blocks.items()}
    return [_judged_by(rollout, found) if rollout.verdict.accepted else rollout for rollout in rollouts]


def _judged_by(rollout: Rollout, found: dict[str, dict[str, tuple[str, float]]]) -> Rollout:
    closest = found[meaning(rollout.completion.text)].get(rollout.prompt.id)
    if closest is None:
        return rollout
    return _reject(rollout, "near_duplicate", f"the same calls as prompt {closest[0]}, whose text has a similarity of {closest[1]:.2f}")


def _said(prompt: Prompt) -> str:
    """What was said in a conversation, but for system messages: many prompts share theirs."""
    return "\n".join(str(message.get("content") or "") for message in prompt.messages if message.get("role") != "system")


def _by_first_layers(rollouts: Sequence[Rollout]) -> dict[str, int]:
    """How many were rejected before whole groups were there: by the pipeline's process, parser, schemas, verifier and judge."""
    counts = dict.fromkeys(("pipeline", "parse", "schema", "verdict", "judge"), 0)
    for rollout in rollouts:
        if not rollout.verdict.accepted:
            judged = rollout.verdict.judgement is not None
            counts["judge" if judged else _LAYERS.get(rollout.verdict.reason, "verdict")] += 1
    return counts


def _accepted(rollouts: Sequence[Rollout]) -> int:
    return sum(rollout.verdict.accepted for rollout in rollouts)


def _prompt_id(rollout: Rollout) -> str:
    return rollout.prompt.id


def _reject_all(group: list[Rollout], reason: str, evidence: str) -> list[Rollout]:
    """The group with its accepted members rejected; the others keep their own reason."""
    return [_reject(rollout, reason, evidence) if rollout.verdict.accepted else rollout for rollout in group]


def _reject(rollout: Rollout, reason: str, evidence: str) -> Rollout:
    verdict = rollout.verdict.model_copy(update={"accepted": False, "reason": reason, "evidence": evidence})
    return rollout.model_copy(update={"verdict": verdict})
