from penstock.serve.api.sse import StreamUsage
from penstock.types import Delta, Usage


def test_the_usage_of_a_stream_that_breaks_off():
    usage = StreamUsage(2)
    assert usage.take([Delta(0, "a", (1,), usage=Usage(5)), Delta(1, "b", (1, 2))]) == 0
    assert usage.take([Delta(0, "c", (3,), finish_reason="stop", usage=Usage(5, 2))]) == 1
    assert usage.take([Delta(1, chunks=(b"{}", b"{}")), Delta(1, "text without ids")]) == 0
    assert usage.end() == Usage(5, 2 + 5)
    assert StreamUsage(1).end() == Usage()
