"""Whether GenAI's pipeline computes what a converted language model's graph says: `python -m
penstock.engines.openvino.model.trial FOLDER` exits with a line if it does not.

To make the pipeline's attention of the graph's, GenAI looks for forms that it knows. A model whose
attention is of another form (GPT-Neo, ALiBi of MPT and Falcon) loads, and answers wrongly.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import openvino as ov
import openvino_genai as genai

from penstock.engines.openvino.logits.model import EXACT, LogitModel
from penstock.engines.openvino.options import OpenVINOOptions
from penstock.errors import UnsupportedError

_PROMPT, _ANSWER = 48, 8
_BLOCKS = 8
_MOST = 0.05
"""A difference of log probabilities in f32 that is no rounding: right ones are within 0.001."""


def difference(folder: Path) -> float:
    """The largest difference between the log probabilities of an answer's tokens, as the pipeline
    and as the graph has them. Raises `UnsupportedError` for a graph that gives none.
    """
    model = LogitModel(str(folder / "openvino_model.xml"), OpenVINOOptions())
    ids = np.random.default_rng(0).integers(0, model.vocabulary, _PROMPT).tolist()
    scheduler = genai.SchedulerConfig()
    scheduler.num_kv_blocks = _BLOCKS
    pipeline = genai.ContinuousBatchingPipeline(str(folder), scheduler, "CPU", EXACT, {})
    config = genai.GenerationConfig(
        max_new_tokens=_ANSWER, ignore_eos=True, logprobs=1, apply_chat_template=False
    )
    handle = pipeline.add_request(0, ov.Tensor(np.array([ids], np.int64)), config)
    while handle.get_status() == genai.GenerationStatus.RUNNING:
        pipeline.step()
    (answer,) = handle.read_all()
    scores = model.begin().add([*ids, *answer.generated_ids])[-len(answer.generated_ids) :]
    wanted = np.array([score.logprob for score in scores])
    return float(np.abs(wanted - np.array(answer.generated_log_probs)).max())


def main(folder: Path) -> None:
    """Exit with a line if the two differ."""
    try:
        found = difference(folder)
    except UnsupportedError:
        return
    if not found < _MOST:
        sys.exit(
            "OpenVINO GenAI's pipeline answers otherwise than the model does (log probabilities"
            f" differ by {found:.2g}), so the openvino engine does not run it; try --engine vllm"
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
