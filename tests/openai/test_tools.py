import pytest

from penstock.errors import RequestError
from penstock.openai.tools import MAX_TOOLS, check_tools

TOOL = {"type": "function", "function": {"name": "look"}}


def test_more_tools_than_any_model_reads_are_refused():
    check_tools([TOOL] * MAX_TOOLS, None)
    with pytest.raises(
        RequestError, match=r"at most 1,024 tools may be given, not 1,025"
    ) as refused:
        check_tools([TOOL] * (MAX_TOOLS + 1), None)
    assert refused.value.param == "tools"
