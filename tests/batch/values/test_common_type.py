import pyarrow as pa
import pytest

from penstock.batch.values.common_type import common_type, conform


@pytest.mark.parametrize(
    "kind",
    [
        pa.int8(),
        pa.string(),
        pa.dictionary(pa.int8(), pa.string()),
        pa.list_(pa.struct([("a", pa.int8())])),
        pa.uuid(),
        pa.fixed_shape_tensor(pa.int64(), (2, 2)),
    ],
)
def test_nulls_take_the_type_of_other_parts_unread(kind):
    def values():
        raise AssertionError("nobody need look")

    assert common_type([pa.null(), kind, pa.null()], values) == kind
    (column,) = conform(pa.table({"x": pa.nulls(2)}), pa.schema([("x", kind)])).columns
    assert (column.type, column.null_count) == (kind, 2)


def test_nulls_alone_are_text():
    assert common_type([pa.null(), pa.null()]) == pa.string()


def test_a_type_of_which_there_are_nulls_alone_does_not_count():
    parts = [pa.nulls(2, pa.string()), pa.array([1, None])]
    assert common_type([pa.string(), pa.int64()], lambda: parts) == pa.int64()
    assert common_type([pa.string(), pa.int64()], lambda: [*parts, pa.array(["a"])]) == pa.string()
    nulls = [pa.nulls(2, pa.string()), pa.nulls(1, pa.int64())]
    assert common_type([pa.string(), pa.int64()], lambda: nulls) == pa.string()
