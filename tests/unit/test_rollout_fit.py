"""Whether a cluster can hold a rollout's engines."""

from __future__ import annotations

import pytest

from supertiny.config import validate
from supertiny.errors import PlanTooBig
from supertiny.rollout.config import LayoutConfig
from supertiny.rollout.fit import engines_that_fit


def fit(*nodes: tuple[float, float], **layout: object) -> int:
    """Engines that run on nodes of so many CPUs and GPUs."""
    return engines_that_fit(validate(LayoutConfig, layout, "test"), [{"CPU": cpus, "GPU": gpus} for cpus, gpus in nodes])


def test_a_pool_has_as_many_engines_as_may_or_as_there_is_room_for_beside_one_cpu() -> None:
    assert fit((8, 0), num_engines=[1, 4]) == 4
    assert fit((3, 0), (1, 0), num_engines=[1, 4]) == 3
    assert fit((2, 0), num_engines=[1, 4]) == 1


def test_fewer_than_the_fewest_are_refused_with_needs_and_haves() -> None:
    with pytest.raises(PlanTooBig, match=r"rollout needs 3 CPUs \(2 engines\), the cluster has 2"):
        fit((2, 0), num_engines=[2, 4])
    with pytest.raises(PlanTooBig, match=r"rollout needs 2 GPUs \(2 engines\), the cluster has 1"):
        fit((8, 1), num_engines=2, gpus_per_engine=1)


def test_an_engine_needs_all_its_gpus_on_one_node() -> None:
    assert fit((8, 4), num_engines=1, gpus_per_engine=4) == 1
    with pytest.raises(
        PlanTooBig, match=r"4 GPUs of one node: the cluster's nodes have room for 0, in 8 CPUs with 2 GPUs, 8 CPUs with 2 GPUs"
    ):
        fit((8, 2), (8, 2), num_engines=1, gpus_per_engine=4)


def test_a_fraction_of_a_gpu_is_never_put_together_from_two() -> None:
    assert fit((9, 2), num_engines=[1, 8], gpus_per_engine=0.4) == 4
    assert fit((9, 2), num_engines=[1, 8], gpus_per_engine=0.5) == 4
    assert fit((9, 1), num_engines=[1, 8], gpus_per_engine=0.1) == 8


def test_engines_that_share_a_cpu_are_counted_by_what_they_take_together() -> None:
    assert fit((2, 0), num_engines=[1, 8], cpus_per_engine=0.5) == 2
    assert fit((8, 0), num_engines=[1, 3], cpus_per_engine=0) == 3
