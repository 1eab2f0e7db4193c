"""`penstock models convert`, as far as it needs no exporter: tests/engines/openvino/model does."""

import pytest
from click.testing import CliRunner

from penstock.cli.models import models
from penstock.errors import PenstockError


def convert(*arguments):
    return CliRunner().invoke(models, ["convert", *arguments])


def test_a_model_that_needs_no_conversion_is_where_it_was():
    assert convert("demo").output.rstrip().endswith("demo/model/openvino")


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("demo", "--weight-format", "int8"), "'demo' is not converted"),
        (("nowhere", "--weight-format", "int4"), "there is no model 'nowhere'"),
        (("m", "--conversion", '{"awk": true}'), "unknown key 'awk'. Did you mean 'awq'"),
        (("m", "--conversion", '{"awq": true}'), "needs weight_format int8 or int4"),
        (("m", "--conversion", "[]"), "--conversion: must be a JSON object"),
    ],
)
def test_what_cannot_be_converted_is_refused_at_once(arguments, why):
    with pytest.raises(PenstockError) as refused:
        raise convert(*arguments).exception
    assert why in str(refused.value)
