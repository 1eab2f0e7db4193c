"""The embedded engine: OpenVINO GenAI in a child process.

`engine` is the parent's side, `worker` the child's main loop, `generation` what it steps; `lane`,
`pipeline` and `text_stream` are its parts. `model` finds and prepares models, `grammar` writes
constraints as grammars, `constraints` tries and compiles them. Only files that run in the child
processes import openvino_genai.
"""

from penstock.engines.openvino.engine import OpenVINOEngine

__all__ = ["OpenVINOEngine"]
