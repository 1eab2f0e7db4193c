"""Outgoing HTTP, for engines and stages that call other servers.

`client` sends (the only home of aiohttp), `limiter` bounds the rate, `retries` decides on another
try, `headers` keeps keys secret, `event_stream` reads streamed answers.
"""
