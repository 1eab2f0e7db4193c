"""What a server said in place of a stream stands in the error."""

import pytest
from aiohttp import web

from penstock.errors import PenstockError
from penstock.testing import answer, chat_request
from penstock.types import Sampling
from scripted_api import remote

TOKEN = 'data: {"choices": [{"index": 0, "delta": {"content": "a"}}]}\n\n'


@pytest.mark.parametrize("before", ["", TOKEN], ids=["first", "after a token"])
@pytest.mark.parametrize(
    "said",
    [
        "<html><head>\n<title>502</title></head><body>upstream is asleep</body></html>",
        "<html>\n\n<body>upstream is asleep</body>\n\n",
        "upstream is asleep",
        "event: error\ndata: upstream is asleep\n\n",
        "event: error\ndata: upstream is asleep",
        'event:error\r\ndata: {"message": "upstream is asleep"}\r\n\r\n',
        'event: error\ndata: {"detail": "upstream is asleep"}\n\n',
        'event: error\ndata: {"error": {"message": "upstream is asleep", "code": 400}}\n\n',
        (
            ': ping\n\nevent: error\nid: 3\ndata: {"type": "error", "error": {"message": "upstream'
            ' is asleep"}}\n\n'
        ),
    ],
)
async def test_the_servers_words_are_told(script, before, said):
    async def serve(request):
        return web.Response(text=before + said, content_type="text/event-stream")

    script.answers = [serve]
    async with remote(script, max_retries=0) as engine:
        with pytest.raises(PenstockError, match="upstream is asleep"):
            await answer(engine, chat_request("hi", Sampling()))


async def test_a_chunk_that_is_none_is_told_where_nothing_else_comes(script):
    async def serve(request):
        return web.Response(
            text='data: {"detail": "upstream is asleep"}\n\n', content_type="text/event-stream"
        )

    script.answers = [serve]
    async with remote(script, max_retries=0) as engine:
        with pytest.raises(PenstockError, match=r"broke off: .*upstream is asleep"):
            await answer(engine, chat_request("hi", Sampling()))
