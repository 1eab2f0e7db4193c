"""The embedded engine: OpenVINO GenAI in a child process.

`engine` is the parent's side, `worker` the child's main loop, `generation` what it steps; `lane`,
`pipeline` and `text_stream` are its parts. `find_model`, `model_files` and `convert` find and
prepare models. Only `pipeline`, `generation` and `tasks` import openvino_genai.
"""

from penstock.engines.openvino.engine import OpenVINOEngine

__all__ = ["OpenVINOEngine"]
