"""An embedding model run on token ids: it gives something for each token, or one vector a text.

GenAI's pipeline takes texts, and would tokenize each once more: their lengths are known before.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import openvino as ov
from openvino import opset13 as ops

from penstock.engines.openvino.model.files import Pooling, modules_of, read_config
from penstock.errors import EngineStartError

States = np.ndarray[Any, Any]
_NUMBERS_AT_ONCE = 1 << 25


class TokenModel:
    """The model in the directory `path`. `pool` loads it for one vector a text; for `states` it is
    loaded at the first.

    `kinds` are the kinds of vectors that it makes: "sparse" where a masked-language-model head
    gives logits, else "dense", with "multi" where it gives hidden states. `width` is that of what
    it gives for a token, 0 where the graph does not say.
    """

    def __init__(self, path: Path, device: str, properties: dict[str, Any]) -> None:
        self._file = path / "openvino_model.xml"
        self._device, self._properties = device, properties
        self._pooling: Any = None
        self._feed: dict[str, States] = {}
        self._stating: Any = None
        model = ov.Core().read_model(self._file)
        outputs = [
            (number, output)
            for number, output in enumerate(model.outputs)
            if output.partial_shape.rank.is_static and len(output.partial_shape) == 3
        ]
        self._gives_states = bool(outputs)
        self._output, output = outputs[0] if outputs else (0, model.output(0))
        self.width = 0
        if outputs and output.partial_shape[2].is_static:
            self.width = output.partial_shape[2].get_length()
        self.kinds: tuple[str, ...] = ("dense",)
        config = read_config(path)
        layers = _layers(path, config)
        self._layers = layers or []
        words = config.get("vocab_size")
        if "logits" in output.names or (words == self.width != config.get("hidden_size")):
            _check_splade(path)
            self.kinds = ("sparse",)
        elif outputs and layers is not None:
            self.kinds = ("dense", "multi")

    @property
    def vector_width(self) -> int:
        """The width of the vectors of tokens; 0 if unknown."""
        return len(self._layers[-1].bias) if self._layers else self.width

    @property
    def tokens_at_once(self) -> int:
        """The most tokens of a run: logits are as wide as the vocabulary."""
        return _NUMBERS_AT_ONCE // max(1, self.width)

    def pool(self, pooling: Pooling, *, normalize: bool) -> None:
        """Load the model with an end that makes one vector of each text."""
        model = ov.Core().read_model(self._file)
        if not self._gives_states:
            raise EngineStartError(
                f"'{self._file}' gives no states of tokens: no output has three dimensions"
            )
        pooled = _pooled(model, self._output, pooling)
        if normalize:
            pooled = ops.normalize_l2(pooled, ops.constant([1], np.int64), 1e-12, "max")
        model = ov.Model([pooled], model.get_parameters())
        compiled = ov.Core().compile_model(model, self._device, self._properties)
        self._pooling = compiled.create_infer_request()

    def begin(self, texts: Sequence[Sequence[int]]) -> None:
        """Begin to make the vectors of texts, of their token ids. Until `pooled` has given them, no
        others may begin.
        """
        self._feed = _feed(self._pooling.model_inputs, texts)  # it is read meanwhile
        self._pooling.start_async(self._feed, share_inputs=True)

    def pooled(self) -> States:
        """The vectors that have begun, shape (texts, width)."""
        self._pooling.wait()
        vectors: States = self._pooling.get_output_tensor(0).data.copy()
        return vectors

    def states(self, texts: Sequence[Sequence[int]]) -> list[States]:
        """What the model gives for the token ids of each text, shape (tokens, width)."""
        if not texts:
            return []
        if self._stating is None:
            self._stating = ov.Core().compile_model(self._file, self._device, self._properties)
        found = self._stating(_feed(self._stating.inputs, texts))[self._output]
        return [found[row, : len(ids)] for row, ids in enumerate(texts)]

    def vectors(self, states: States, normalize: bool, dimensions: int | None) -> States:
        """A vector for each token, shape (tokens, dimensions)."""
        return shortened(put_through(self._layers, states), normalize, dimensions)


def _feed(inputs: Sequence[Any], texts: Sequence[Sequence[int]]) -> dict[str, States]:
    """What the inputs of a model get for the token ids of texts, padded at the end."""
    sizes = [len(ids) for ids in texts]
    longest = max(sizes)
    ids, mask = np.zeros((2, len(texts), longest), np.int64)
    for row, one in enumerate(texts):
        ids[row, : sizes[row]] = one
        mask[row, : sizes[row]] = 1
    feed = {
        "input_ids": ids,
        "attention_mask": mask,
        "token_type_ids": np.zeros_like(ids),
        "position_ids": np.broadcast_to(np.arange(longest, dtype=np.int64), ids.shape).copy(),
    }
    names = {name for port in inputs for name in port.names}
    return {name: feed[name] for name in feed if name in names}


def _pooled(model: Any, output: int, pooling: Pooling) -> Any:
    """The end of a graph that makes one vector of the states of a text, shape (texts, width)."""
    states = model.output(output).get_node().input_value(0)
    mask, first = model.input("attention_mask"), ops.constant(1, np.int64)
    if pooling == "cls":
        return ops.gather(states, ops.constant(0, np.int64), first)
    if pooling == "last_token":
        last = ops.subtract(ops.reduce_sum(mask, first), ops.constant(1, np.int64))
        return ops.gather(states, last, first, 1)
    weights = ops.unsqueeze(ops.convert(mask, np.float32), ops.constant(2, np.int64))
    total = ops.reduce_sum(ops.multiply(states, weights), first)
    return ops.divide(total, ops.reduce_sum(weights, first))


def shortened(vectors: States, normalize: bool, dimensions: int | None) -> States:
    """The first `dimensions` of each vector (None: all), brought to length 1 if that is wanted."""
    vectors = vectors[:, :dimensions]
    if normalize:
        vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    return vectors


def sparse(logits: States) -> tuple[list[int], list[float]]:
    """Token ids and their weights: the largest log(1 + relu(logit)) of all tokens of the text, as
    SPLADE has it (https://arxiv.org/abs/2109.10086).
    """
    weights = np.log1p(np.maximum(logits.max(axis=0), 0.0))
    (indices,) = np.nonzero(weights)
    return indices.tolist(), weights[indices].tolist()


class Layer(NamedTuple):
    """A linear layer: `weight` of shape (out, in), `bias` of shape (out,). With `tanh` the
    hyperbolic tangent follows.
    """

    weight: States
    bias: States
    tanh: bool


def put_through(layers: Sequence[Layer], vectors: States) -> States:
    """What the layers make of each vector, one after the other."""
    for layer in layers:
        vectors = vectors @ layer.weight.T + layer.bias
        vectors = np.tanh(vectors) if layer.tanh else vectors
    return vectors


def text_layers(path: Path) -> list[Layer]:
    """The layers that sentence-transformers lists behind the pooling (EmbeddingGemma, LaBSE).
    Raises `EngineStartError` for a part that is not applied here: the vectors would be others.
    """
    modules = modules_of(path)
    if not any(name == "Pooling" for name, _ in modules):
        return []
    layers, before = list[Layer](), ""
    for name, folder in modules[1:]:
        layer: Layer | str = "behind the pooling the openvino engine applies Dense alone"
        if name == "Dense" and before in ("Pooling", "Dense"):
            layer = _layer(folder)
        if isinstance(layer, Layer):
            layers.append(layer)
        elif name not in ("Pooling", "Normalize", "Dropout"):
            raise EngineStartError(
                f"modules.json of '{path}' lists {name} in '{folder.name}', which the vectors would"
                f" lack: {layer}"
            )
        before = name
    return layers


def _layers(path: Path, config: dict[str, Any]) -> list[Layer] | None:
    """The layers between hidden states and the vectors of tokens (PyLate's ColBERT models). None
    where these would be wrong: a layer is missing or not linear, or the model is one of ColBERT
    whose layer a conversion leaves out.
    """
    modules = modules_of(path)
    if any(name == "Pooling" for name, _ in modules):
        return []  # what follows is of texts
    folders = [folder for name, folder in modules if name == "Dense"]
    if not folders and "ColBERT" in str(config.get("architectures")):
        return None
    found = map(_layer, folders)
    layers = [layer for layer in found if isinstance(layer, Layer) and not layer.tanh]
    return layers if len(layers) == len(folders) else None


def _layer(folder: Path) -> Layer | str:
    """The layer that `Dense` of sentence-transformers saved, or why it cannot be applied."""
    try:
        config = json.loads((folder / "config.json").read_bytes())
        content = (folder / "model.safetensors").read_bytes()
    except FileNotFoundError as error:
        return f"its {Path(error.filename).name} is missing"
    except ValueError:
        return "its config.json is not valid JSON"
    activation = str(config.get("activation_function", "Tanh")).rpartition(".")[2]
    if activation not in ("Identity", "Tanh"):
        return f"its activation_function is {activation}, and neither Identity nor Tanh"
    if config.get("use_residual"):
        return "its use_residual is not supported"
    # https://huggingface.co/docs/safetensors: the header's size, the header, the numbers
    begin = 8 + struct.unpack_from("<Q", content)[0]
    header = json.loads(content[8:begin])
    found: dict[str, States] = {}
    for name in header.keys() & {"linear.weight", "linear.bias"}:
        first, end = header[name]["data_offsets"]
        kind = {"F32": "<f4", "F16": "<f2"}.get(header[name]["dtype"])
        if kind is None:
            return f"its {name} is {header[name]['dtype']}, and neither F32 nor F16"
        numbers = np.frombuffer(content[begin + first : begin + end], kind)
        found[name] = numbers.astype(np.float32).reshape(header[name]["shape"])
    weight = found["linear.weight"]
    bias = found.get("linear.bias", np.zeros(len(weight), np.float32))
    return Layer(weight, bias, activation == "Tanh")


def _check_splade(path: Path) -> None:
    """Raise `EngineStartError` for a model whose sparse vectors are made in another way."""
    for name, folder in modules_of(path):
        file = folder / "config.json"
        if name != "SpladePooling" or not file.is_file():
            continue
        config = json.loads(file.read_bytes())
        for setting, value in (("pooling_strategy", "max"), ("activation_function", "relu")):
            if config.get(setting, value) != value:
                raise EngineStartError(
                    f"'{file}' has {setting} {config[setting]!r}; sparse vectors are made with"
                    f" {value!r} alone"
                )
