"""What a training worker runs in `tests/faults/test_vllm_in_a_worker.py`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any


def draw(student: Path) -> dict[str, Any]:
    """What a worker does: vLLM with its own choice of compilation, in this process."""
    os.environ.update(VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_CPU_OMP_THREADS_BIND="nobind", VLLM_CPU_KVCACHE_SPACE="1")
    from vllm import LLM, SamplingParams

    engine = LLM(model=str(student), max_model_len=256, max_num_seqs=4)
    (drawn,) = engine.generate(["hello"], SamplingParams(max_tokens=8, ignore_eos=True), use_tqdm=False)
    return {"tokens": len(drawn.outputs[0].token_ids), "compilation": engine.llm_engine.vllm_config.compilation_config.mode.name}
