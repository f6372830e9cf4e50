"""What an ablation shows: means over seeds, and paired differences with two intervals, over seeds and over prompts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import NamedTuple

import numpy as np
from ablations.experiment import Experiment
from ablations.runs import Result, share
from scipy import stats

Results = Mapping[str, Mapping[int, Result]]
"""By variant and seed."""


class Mean(NamedTuple):
    """A mean with its interval."""

    value: float
    low: float
    high: float

    @property
    def without_zero(self) -> bool:
        """Whether 0 is outside the interval."""
        return self.low > 0 or self.high < 0


class Difference(NamedTuple):
    """Exact match of a variant minus another's, paired."""

    over_seeds: Mean
    """What another seed may give on these prompts."""
    over_prompts: Mean
    """What other prompts may give with these seeds."""

    @property
    def real(self) -> bool:
        """Whether neither interval has 0."""
        return self.over_seeds.without_zero and self.over_prompts.without_zero


def mean(values: Sequence[float], confidence: float = 0.95) -> Mean:
    """A mean and Student's t interval; of one value everything, of equal ones the value itself."""
    value = fmean(values)
    if len(values) < 2:
        return Mean(value, -float("inf"), float("inf"))
    error = float(stats.sem(values))
    if error == 0:
        return Mean(value, value, value)
    return Mean(value, *map(float, stats.t.interval(confidence, len(values) - 1, value, error)))


def difference(first: Mapping[int, Result], second: Mapping[int, Result]) -> Difference | None:
    """First minus second over the seeds that both have; None where there is none.

    Raises:
        ValueError: they were asked different prompts.
    """
    seeds = sorted(set(first) & set(second))
    if not seeds:
        return None
    by_prompt_SN = np.array([_paired(first[seed].right, second[seed].right) for seed in seeds])
    return Difference(mean(by_prompt_SN.mean(1).tolist()), mean(by_prompt_SN.mean(0).tolist()))


def _paired(first: Mapping[str, bool], second: Mapping[str, bool]) -> list[int]:
    if set(first) != set(second):
        raise ValueError("two runs were asked different prompts")
    return [int(right) - int(second[prompt]) for prompt, right in first.items()]


def render(experiment: Experiment, results: Results) -> str:
    """The table as Markdown, in points of exact match, and a sentence on what is real."""
    some = next((run for by_seed in results.values() for run in by_seed.values()), None)
    if some is None:
        return f"{experiment.name}: no run is done"
    lines = [
        f"{experiment.name}: exact match in %, {len(some.right)} held-out prompts, {len(experiment.seeds)} seeds; in brackets 95 % over "
        "seeds, then, of a difference, over prompts; * where neither has 0",
        "",
        f"| variant | exact match | minus the one above | minus {experiment.baseline} | M parameters | MB | p50, ms | s a run |",
        "|---|---|---|---|---|---|---|---|",
        *(_row(experiment, results, name) for name in experiment.names if results.get(name)),
        "",
        _real(experiment, results),
    ]
    return "\n".join(lines)


def comparisons(experiment: Experiment, results: Results) -> dict[tuple[str, str], Difference]:
    """Every variant with the one above it, the one that it was made from, and the baseline, where both have runs."""
    found = {}
    for variant in experiment.variants:
        for other in (experiment.above(variant.name), variant.student, experiment.baseline):
            if (
                other in experiment.names
                and other != variant.name
                and (apart := difference(results.get(variant.name, {}), results.get(other, {})))
            ):
                found[variant.name, other] = apart
    return found


def numbers(experiment: Experiment, results: Results) -> str:
    """One JSON object: a variant's mean exact match, and each difference with its four limits and whether it is real."""
    values: dict[str, object] = {name: round(mean(_shares(by_seed)).value, 4) for name, by_seed in results.items() if by_seed}
    for (name, other), apart in comparisons(experiment, results).items():
        limits = {kind: [round(bound, 4) if np.isfinite(bound) else None for bound in getattr(apart, kind)] for kind in apart._fields}
        values[f"{name}_vs_{other}"] = {**limits, "real": apart.real}
    return json.dumps(values)


def _row(experiment: Experiment, results: Results, name: str) -> str:
    by_seed = results[name]
    found = comparisons(experiment, results)
    cells = [_points(found.get((name, str(other)))) for other in (experiment.above(name), experiment.baseline)]
    sizes = [f"{fmean(run.parameters for run in by_seed.values()) / 1e6:.2f}", f"{fmean(run.bytes for run in by_seed.values()) / 1e6:.2f}"]
    times = [f"{1000 * fmean(run.p50_seconds for run in by_seed.values()):.0f}", f"{fmean(run.seconds for run in by_seed.values()):.0f}"]
    few = f" ({len(by_seed)} seeds)" if len(by_seed) < len(experiment.seeds) else ""
    quality = mean(_shares(by_seed))
    return "| " + " | ".join([name, f"{100 * quality.value:.2f}{_interval(quality)}{few}", *cells, *sizes, *times]) + " |"


def _points(apart: Difference | None) -> str:
    if apart is None:
        return ""
    star = "*" if apart.real else ""
    return (
        f"{100 * apart.over_seeds.value:+.2f}{star}{_interval(apart.over_seeds, signed=True)}{_interval(apart.over_prompts, signed=True)}"
    )


def _interval(found: Mean, signed: bool = False) -> str:
    if not np.isfinite(found.low):
        return ""
    form = "+.2f" if signed else ".2f"
    return f" [{100 * found.low:{form}}, {100 * found.high:{form}}]"


def _real(experiment: Experiment, results: Results) -> str:
    found = comparisons(experiment, results)
    real = [f"{name} - {other} {100 * apart.over_seeds.value:+.2f}" for (name, other), apart in found.items() if apart.real]
    return f"Real, of {len(found)} differences (each by itself, at 95 %): {', '.join(real) or 'none'}."


def _shares(by_seed: Mapping[int, Result]) -> list[float]:
    return [share(run) for run in by_seed.values()]
