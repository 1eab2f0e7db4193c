import asyncio

from penstock.loadtest.client import Server
from penstock.loadtest.null import NullServer


async def test_it_gives_as_many_tokens_as_are_asked_for():
    loop = asyncio.get_running_loop()
    listening = await loop.create_server(NullServer, "127.0.0.1", 0)
    server = Server(f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}")
    for stream in (True, False):
        body = {"max_tokens": 7, "stream": stream}
        sample = await server.ask(server.request("/v1/chat/completions", body))
        assert (sample.error, sample.output_tokens) == (None, 7)
    await server.close()
    listening.close()
