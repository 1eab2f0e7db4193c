"""What the header of a GGUF file says, and what is refused by it."""

import struct
from contextlib import nullcontext

import pytest

from penstock.engines.openvino import OpenVINOEngine
from penstock.engines.openvino.model.files import FALLBACK_CONTEXT
from penstock.engines.openvino.model.gguf import (
    check_gguf,
    check_gguf_tokenizer,
    gguf_context_length,
    read_header,
)
from penstock.engines.openvino.model.source import find_model
from penstock.errors import EngineStartError

STRING, ARRAY, UINT32, FLOAT32, BOOL = 8, 9, 4, 6, 7
LLAMA = ("general.architecture", STRING, struct.pack("<Q", 5) + b"llama")
BPE = ("tokenizer.ggml.model", STRING, struct.pack("<Q", 4) + b"gpt2")


def text(value):
    return struct.pack("<Q", len(value)) + value.encode()


def gguf(path, *fields):
    """A GGUF file of nothing but its header. A field is a name, a kind, and the value's bytes."""
    header = b"GGUF" + struct.pack("<IQQ", 3, 0, len(fields))
    path.write_bytes(
        header
        + b"".join(text(name) + struct.pack("<I", kind) + data for name, kind, data in fields)
    )
    return path


def test_the_context_length_is_found_among_the_fields(tmp_path):
    path = gguf(
        tmp_path / "m.gguf",
        ("general.architecture", STRING, text("llama")),
        ("tokenizer.ggml.tokens", ARRAY, struct.pack("<IQ", STRING, 2) + text("a") + text("b")),
        ("general.flag", 7, b"\x01"),
        ("llama.context_length", UINT32, struct.pack("<I", 777)),
    )
    found = find_model(str(path), None, None)
    assert (found.path, found.task, found.context_length) == (path, "generate", 777)


def test_without_that_field(tmp_path):
    assert gguf_context_length(gguf(tmp_path / "m.gguf")) == FALLBACK_CONTEXT


def test_not_gguf(tmp_path):
    path = tmp_path / "m.gguf"
    path.write_bytes(b"something else")
    with pytest.raises(EngineStartError, match="is not a GGUF file"):
        find_model(str(path), None, None)


def test_cut_off(tmp_path):
    path = gguf(tmp_path / "m.gguf", ("llama.context_length", UINT32, struct.pack("<I", 777)))
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(EngineStartError, match="cut off or damaged"):
        find_model(str(path), None, None)


@pytest.mark.parametrize(
    ("kind", "shape", "nbytes"),
    [(1, [32, 3], 192), (8, [64, 2], 136), (14, [256, 2], 420), (99, [7], 0)],
)
def test_a_file_that_ends_before_its_weights(tmp_path, kind, shape, nbytes):
    """Of F16, Q8_0 and Q6_K; of other types only where they begin is known."""
    path = gguf(tmp_path / "m.gguf", ("general.alignment", UINT32, struct.pack("<I", 64)), LLAMA)
    header = bytearray(path.read_bytes())
    header[8:16] = struct.pack("<Q", 1)
    sizes = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
    header += text("blk.0.attn_q.weight") + sizes + struct.pack("<IQ", kind, 64)
    begin = -(-len(header) // 64) * 64
    whole = bytes(header).ljust(begin + 64 + nbytes, b"\1")
    path.write_bytes(whole)
    check_gguf(path)
    path.write_bytes(whole[:-1])
    with pytest.raises(EngineStartError, match=f"promises {len(whole):,}; fetch it again"):
        find_model(str(path), None, None)


def test_a_value_of_unknown_kind(tmp_path):
    path = gguf(tmp_path / "m.gguf", ("general.strange", 99, b""))
    with pytest.raises(EngineStartError, match="cut off or damaged"):
        find_model(str(path), None, None)


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (STRING, struct.pack("<Q", 2**62)),
        (ARRAY, struct.pack("<IQQ", STRING, 2, 2**63 - 1)),
        (ARRAY, struct.pack("<IQ", ARRAY, 1) * 3000),
    ],
)
def test_a_value_of_no_file(tmp_path, kind, value):
    path = gguf(tmp_path / "m.gguf", ("general.name", kind, value))
    with pytest.raises(EngineStartError, match="cut off or damaged"):
        find_model(str(path), None, None)


def test_no_such_file(tmp_path):
    with pytest.raises(EngineStartError, match="there is no GGUF file"):
        find_model(str(tmp_path / "m.gguf"), None, None)


def number(name, value, kind=UINT32):
    return name, kind, struct.pack({UINT32: "<I", FLOAT32: "<f", BOOL: "<?"}[kind], value)


def name(field, value):
    return field, STRING, text(value)


def with_tensor(path, tensor, kind, numbers):
    """The file with one tensor of one dimension, as f32."""
    header = bytearray(path.read_bytes())
    header[8:16] = struct.pack("<Q", 1)
    header += text(tensor) + struct.pack("<IQIQ", 1, len(numbers), kind, 0)
    begin = -(-len(header) // 32) * 32
    path.write_bytes(bytes(header).ljust(begin, b"\0") + struct.pack(f"<{len(numbers)}f", *numbers))
    return path


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ([], "architecture 'None'"),
        ([name("general.architecture", "gemma3")], "architecture 'gemma3' .not llama"),
        ([LLAMA, number("llama.expert_count", 8)], "has experts"),
        ([LLAMA, name("llama.rope.scaling.type", "yarn")], "scales its positions by 'yarn'"),
        ([LLAMA, number("split.count", 3)], "llama-gguf-split --merge"),
        (
            [
                LLAMA,
                number("llama.embedding_length", 256),
                number("llama.attention.head_count", 4),
                number("llama.rope.dimension_count", 32),
            ],
            "turns 32 of the 64 numbers",
        ),
    ],
)
def test_what_would_be_computed_wrongly_is_refused(tmp_path, fields, why):
    with pytest.raises(EngineStartError, match=why):
        check_gguf(gguf(tmp_path / "m.gguf", *fields))


@pytest.mark.parametrize(
    "fields",
    [
        [LLAMA, name("llama.rope.scaling.type", "none"), number("split.count", 1)],
        [LLAMA, name("llama.attention.head_count", "many"), name("llama.context_length", "x")],
        [LLAMA, name("llama.rope.scaling.factor", "x"), name("llama.rope.scaling.type", "linear")],
    ],
)
def test_fields_that_change_nothing(tmp_path, fields):
    path = gguf(tmp_path / "m.gguf", *fields)
    check_gguf(path)
    assert not read_header(path).needs_mending
    assert gguf_context_length(path) == FALLBACK_CONTEXT


def test_biases_that_would_stand_in_another_order_are_refused(tmp_path):
    for architecture, refused in (("llama", True), ("qwen2", False)):
        path = gguf(tmp_path / f"{architecture}.gguf", name("general.architecture", architecture))
        with_tensor(path, "blk.0.attn_k.bias", 0, [1.0])
        with pytest.raises(EngineStartError, match="biases") if refused else nullcontext():
            check_gguf(path)


def test_scaled_rotary_frequencies(tmp_path):
    path = gguf(tmp_path / "factors.gguf", LLAMA)
    with_tensor(path, "rope_freqs.weight", 0, [1.0, 8.0])
    assert read_header(path).rope_factors == (1.0, 8.0)
    linear = name("llama.rope.scaling.type", "linear")
    factor = number("llama.rope.scaling.factor", 4.0, FLOAT32)
    assert read_header(gguf(tmp_path / "linear.gguf", LLAMA, linear, factor)).rope_divisor == 4
    for file in ("factors.gguf", "linear.gguf"):
        assert read_header(tmp_path / file).scales_rope
        assert read_header(tmp_path / file).needs_mending


@pytest.mark.parametrize(
    ("pre", "stated", "begins"),
    [
        ("llama-bpe", None, 1),
        ("llama-bpe", False, None),
        ("qwen2", None, None),
        ("qwen2", True, 1),
    ],
)
def test_the_token_before_a_text(tmp_path, pre, stated, begins):
    fields = [name("tokenizer.ggml.pre", pre), number("tokenizer.ggml.bos_token_id", 1)]
    if stated is not None:
        fields.append(number("tokenizer.ggml.add_bos_token", stated, BOOL))
    assert read_header(gguf(tmp_path / "m.gguf", *fields)).begins_with == begins


def test_jobs_know_of_what_is_mended(tmp_path):
    """A job that was begun before would have answers of two kinds."""
    linear = name("llama.rope.scaling.type", "linear")
    files = {
        "right": [LLAMA],
        "positions": [LLAMA, linear, number("llama.rope.scaling.factor", 4.0, FLOAT32)],
        "splits": [name("tokenizer.ggml.pre", "deepseek-r1-qwen")],
        "begins": [
            number("tokenizer.ggml.bos_token_id", 1),
            number("tokenizer.ggml.add_bos_token", True, BOOL),
        ],
    }
    found = {
        file: OpenVINOEngine.conversion_of(str(gguf(tmp_path / f"{file}.gguf", *fields)))
        for file, fields in files.items()
    }
    assert found == {"right": None, "positions": 1, "splits": 1, "begins": 1}
    (tmp_path / "damaged.gguf").write_bytes(b"GGUF")
    for source in (tmp_path / "damaged.gguf", tmp_path / "none.gguf", "\0.gguf", "s3://a/b.gguf"):
        assert OpenVINOEngine.conversion_of(str(source)) is None


@pytest.mark.parametrize("pre", ["llama-bpe", "qwen2", "smollm", "default", "deepseek-r1-qwen"])
def test_tokenizers_that_are_read(tmp_path, pre):
    check_gguf_tokenizer(gguf(tmp_path / "m.gguf", BPE, name("tokenizer.ggml.pre", pre)))


@pytest.mark.parametrize(
    "fields", [[], [BPE], [BPE, ("tokenizer.ggml.pre", STRING, text("gpt-4o"))]]
)
def test_tokenizers_that_would_be_read_otherwise_are_refused(tmp_path, fields):
    with pytest.raises(EngineStartError, match="set `tokenizer` to a directory"):
        check_gguf_tokenizer(gguf(tmp_path / "m.gguf", *fields))
