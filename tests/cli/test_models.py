"""`penstock models convert`, as far as it needs no exporter: tests/engines/openvino/model does."""

from typing import get_args, get_type_hints

import pytest
from click.testing import CliRunner

from penstock.cli.models import models
from penstock.engines.openvino.model.weights import WeightFormat
from penstock.engines.openvino.options import OpenVINOOptions
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


def test_the_choices_are_those_of_the_engine():
    """They stand in the command, too, so that `--help` loads no engine."""
    options = models.commands["convert"].params
    choices = {one.name: getattr(one.type, "choices", ()) for one in options}
    (tasks, _) = get_args(get_type_hints(OpenVINOOptions)["task"])
    assert tuple(choices["task"]) == get_args(tasks)
    assert tuple(choices["weight_format"]) == get_args(WeightFormat)
