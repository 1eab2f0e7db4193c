import json
from decimal import Decimal

import jsonschema_rs
import pytest
from hypothesis import given, settings, strategies as st

from penstock.engines.openvino.constraints.json_grammar import json_grammar
from penstock.engines.openvino.constraints.json_scalars import Bounds, integer, number
from penstock.errors import RequestError

ENDS = st.decimals(min_value=-2000, max_value=2000, places=2) | st.integers(-(10**7), 10**7).map(
    Decimal
)


@settings(max_examples=60, deadline=None)
@given(ENDS, ENDS, st.booleans(), st.booleans(), st.sampled_from(["integer", "number"]))
def test_numbers_keep_their_bounds(writer, one, other, low_open, high_open, kind):
    low, high = float(min(one, other)), float(max(one, other))
    schema = {"type": kind, "exclusiveMinimum" if low_open else "minimum": low}
    schema["exclusiveMaximum" if high_open else "maximum"] = high
    try:
        grammar = json_grammar(schema)
    except RequestError:  # nothing between
        assert kind == "integer" or low == high
        return
    fits = jsonschema_rs.validator_for(schema)
    texts = writer.texts(grammar, count=5, tokens=30)
    assert texts
    for text in texts:
        assert fits.is_valid(json.loads(text)), text


@pytest.mark.parametrize("low", [0, 7, 10, 95, 100, 999])
def test_a_single_number_is_held(writer, low):
    bounds = Bounds(Decimal(low), False, Decimal(low), False)
    assert writer.texts(f"root ::= {integer(bounds)}\n", count=3) == [str(low)]
    assert {float(text) for text in writer.texts(f"root ::= {number(bounds)}\n", count=5)} == {
        float(low)
    }


def test_bounds_of_draft_4():
    assert Bounds.of({"minimum": 3, "exclusiveMinimum": True}) == Bounds(Decimal(3), True)


def test_the_tighter_bound_counts():
    assert Bounds.of(
        {"minimum": 3, "exclusiveMinimum": 3, "maximum": 9, "exclusiveMaximum": 8}
    ) == Bounds(Decimal(3), True, Decimal(8), True)
