"""What is changed in a model's graph before it is compiled: its mask becomes an input, which may
hold a tree, and it ends in log probabilities of the positions that are asked for.
"""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
from openvino import opset13 as ops

from penstock.errors import UnsupportedError

_ATTENTION, _KEYS_AND_VALUES, _MASK = "ScaledDotProductAttention", (1, 2), 3


def take_mask(model: Any) -> bool:
    """Let the attention mask be an input, which may hold a tree.

    Returns False, and changes nothing, for a graph whose layers do not share one mask, or whose
    heads have masks of their own: those hold the distances between tokens (ALiBi).
    """
    layers = [one for one in model.get_ops() if one.get_type_name() == _ATTENTION]
    if not layers or any(
        one.get_input_size() <= _MASK or one.get_attributes().get("causal") for one in layers
    ):
        return False
    if len({one.input_value(_MASK).get_node().get_friendly_name() for one in layers}) > 1:
        return False
    if str(layers[0].input_value(_MASK).get_partial_shape()[1]) != "1":
        return False
    mask = ops.parameter([-1, 1, -1, -1], np.float32, name="penstock_mask")
    mask.output(0).set_names({"penstock_mask"})
    for one in layers:
        one.input(_MASK).replace_source_output(mask.output(0))
    model.add_parameters([mask])
    return True


def keep_attention_apart(model: Any) -> None:
    """Keep the runtime from joining attention and KV cache to one operation: that one is made for
    one new token, and takes several times as long where many follow what is cached.

    A multiplication by 1, an input that the compiler does not know, stands between them. It also
    repeats the cached heads for those that share them: in a GGUF model's graph, what does that is
    right just where it is joined. Changes nothing in a graph of another form.
    """
    layers = [one for one in model.get_ops() if one.get_type_name() == _ATTENTION]
    caches = [_cache(layer, place) for layer in layers for place in _KEYS_AND_VALUES]
    if not caches or None in caches:
        return
    one = ops.parameter([], np.float32, name="penstock_one")
    one.output(0).set_names({"penstock_one"})
    model.add_parameters([one])
    for layer in layers:
        for place in _KEYS_AND_VALUES:
            cache = _cache(layer, place)
            _, heads, _, width = layer.input_value(place).get_partial_shape()
            shared = heads.get_length() // cache.get_partial_shape()[1].get_length()
            times = ops.multiply(ops.constant(np.ones((1, 1, shared, 1, 1), np.float32)), one)
            each = ops.unsqueeze(cache, ops.constant(2, np.int64))
            apart = ops.multiply(each, ops.convert_like(times, each))
            shape = ops.constant([0, heads.get_length(), -1, width.get_length()], np.int64)
            layer.input(place).replace_source_output(ops.reshape(apart, shape, True).output(0))


def _cache(layer: Any, place: int) -> Any:
    """The cached keys or values of an attention, shape [rows, heads, tokens, width], before each
    head is repeated for those that share it; None where they are not found.
    """
    found = layer.input_value(place)
    _, heads, _, width = found.get_partial_shape()
    while (kind := found.get_node().get_type_name()) in ("Reshape", "Broadcast", "Unsqueeze"):
        if kind == "Unsqueeze" and str(found.get_partial_shape()[2]) != "1":
            return None  # the heads are not repeated one by one
        found = found.get_node().input_value(0)
    shape = found.get_partial_shape()
    if kind != "Concat" or len(shape) != 4:
        return None
    is_known = all(size.is_static for size in (heads, width, shape[1], shape[3]))
    return found if is_known and shape[3] == width else None


def bytes_a_token(model: Any) -> int:
    """What one token takes in the KV cache, in f32."""
    states = [one for one in model.get_ops() if one.get_type_name() == "ReadValue"]
    shapes = [state.get_output_partial_shape(0) for state in states]
    return sum(4 * prod(size.get_length() for size in shape if size.is_static) for shape in shapes)


def extend(model: Any) -> int:
    """Let the graph end in log probabilities of chosen rows. Returns the vocabulary's size."""
    result = model.output("logits").get_node()
    head = result.input_value(0).get_node()
    while head.get_type_name() != "MatMul":
        if head.get_type_name() not in ("Convert", "Multiply", "Divide", "Tanh", "Add"):
            raise UnsupportedError("log probabilities cannot be read from this model's graph")
        data = [
            value.get_node()
            for value in head.input_values()
            if value.get_node().get_type_name() != "Constant"
        ]
        head = data[0]
    rows = ops.parameter([-1], np.int64, name="penstock_rows")
    following = ops.parameter([-1, 1], np.int64, name="penstock_following")
    top = ops.parameter([], np.int64, name="penstock_top")
    wanted = ops.parameter([-1, -1], np.int64, name="penstock_wanted")
    for parameter in (rows, following, top, wanted):
        parameter.output(0).set_names({parameter.get_friendly_name()})
    axis = ops.constant(1, np.int64)
    hidden = head.input_value(0)
    width = hidden.get_partial_shape()[-1]
    if width.is_dynamic:
        raise UnsupportedError("log probabilities cannot be read from this model's graph")
    flat = ops.reshape(hidden, ops.constant([1, -1, width.get_length()], np.int64), False)
    head.input(0).replace_source_output(ops.gather(flat, rows, axis).output(0))
    logits = ops.squeeze(ops.convert(result.input_value(0), np.float32), ops.constant(0, np.int64))
    logprobs = ops.log_softmax(logits, -1)
    best = ops.topk(logprobs, top, -1, "max", "value", index_element_type="i64")
    chosen = ops.gather_elements(logprobs, following, 1)
    better = ops.convert(ops.greater(logprobs, chosen), np.int32)
    outputs = {
        "penstock_chosen": chosen.output(0),
        "penstock_wanted_logprobs": ops.gather_elements(logprobs, wanted, 1).output(0),
        "penstock_ranks": ops.add(
            ops.reduce_sum(better, np.array([1])), ops.constant(1, np.int32)
        ).output(0),
        "penstock_top_values": best.output(0),
        "penstock_top_ids": best.output(1),
        "penstock_after": ops.gather(
            logits, ops.constant([-1], np.int64), ops.constant(0, np.int64)
        ).output(0),
    }
    size = result.input_value(0).get_partial_shape()[-1]
    if size.is_dynamic:
        raise UnsupportedError("log probabilities cannot be read from this model's graph")
    model.add_parameters([rows, following, top, wanted])
    model.remove_result(result)
    for name, output in outputs.items():
        output.set_names({name})
        model.add_outputs([output])
    model.validate_nodes_and_infer_types()
    return int(size.get_length())
