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
