"""The smallest task: a teacher pipeline of one call. It converts units.

PYTHONPATH=platform:. python jobs/rollout.py --set task.path=examples.single_call:ConvertTask --set teacher=/models/my-teacher

The teacher answers in the student's format at once, so its log-probabilities are those that it sampled with: nothing is scored again.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

from supertiny.errors import MalformedCall
from supertiny.llm.base import Llm, Sampling, pipeline_step
from supertiny.records import Call, Completion, Prompt, Tool, Verdict
from supertiny.tasks.calls import check_schema, grade, parse, render

METRES = {"metre": 1.0, "kilometre": 1000.0, "mile": 1609.344, "foot": 0.3048, "inch": 0.0254, "yard": 0.9144}
CONVERT: Tool = {
    "type": "function",
    "function": {
        "name": "convert",
        "description": "Convert a length from one unit to another.",
        "parameters": {
            "type": "object",
            "properties": {
                "value": {"type": "number"},
                "source": {"type": "string", "enum": sorted(METRES)},
                "target": {"type": "string", "enum": sorted(METRES)},
            },
            "required": ["value", "source", "target"],
            "additionalProperties": False,
        },
    },
}
PHRASINGS = {
    "train": ("how many {target}s are {value} {source}s?", "convert {value} {source}s to {target}s", "{value} {source}s in {target}s"),
    "heldout": ("what is {value} {source}s when I count in {target}s?", "give me {value} {source}s as {target}s, please"),
}
"""Nothing that is evaluated was trained on, not even its words."""


class ConvertTask:
    """Questions about lengths; the verifier converts them itself.

    Args:
        num_prompts: of each split.
        temperature: of the one call; at 1 the rollouts of a prompt differ.
        top_k: teacher tokens kept at each position.
    """

    tools: list[Tool] = [CONVERT]  # noqa: RUF012 - the protocol's

    def __init__(self, num_prompts: int = 500, temperature: float = 1.0, top_k: int = 20) -> None:
        self._num_prompts = num_prompts
        self._sampling = Sampling(temperature=temperature, max_tokens=96)
        self._top_k = top_k

    def prompts(self, split: str) -> list[Prompt]:
        """The same for a split every time."""
        draw = random.Random(split)
        return [_prompt(f"{split}-{at}", draw, PHRASINGS[split]) for at in range(self._num_prompts)]

    async def teach(self, prompt: Prompt, llm: Llm) -> Completion:
        """One call of the teacher, with its top-k as it sampled."""
        with pipeline_step("answer"):
            return (await llm.complete(prompt.messages, tools=self.tools, sampling=self._sampling, logprobs=self._top_k))[0]

    def verify(self, prompt: Prompt, text: str) -> Verdict:
        """Whether the one call converts to what the reference does: 0.5 kilometres may be 500 metres."""
        try:
            calls = parse(text)
            check_schema(calls, self.tools)
        except MalformedCall as error:
            return Verdict(accepted=False, score=-1, reason="malformed", evidence=str(error))
        if [_answer(call) for call in calls] == [_answer(call) for call in prompt.reference or []]:
            return Verdict(accepted=True, score=1)
        expected = render(prompt.reference or [])
        score = max(-0.8, 2 * grade(calls, prompt.reference or []) - 1)
        return Verdict(accepted=False, score=score, reason="wrong_arguments", evidence=f"expected {expected}, got {text}")


def _prompt(name: str, draw: random.Random, phrasings: Sequence[str]) -> Prompt:
    source, target = draw.sample(sorted(METRES), 2)
    arguments = {"value": draw.randint(1, 99), "source": source, "target": target}
    question = draw.choice(phrasings).format(**arguments)
    return Prompt(id=name, messages=[{"role": "user", "content": question}], reference=[Call(name="convert", arguments=arguments)])


def _answer(call: Call) -> tuple[str, float]:
    """The unit that is asked for and the value in it, to six digits."""
    value = call.arguments["value"] * METRES[call.arguments["source"]] / METRES[call.arguments["target"]]
    return call.arguments["target"], float(f"{value:.6g}") if math.isfinite(value) else math.inf
