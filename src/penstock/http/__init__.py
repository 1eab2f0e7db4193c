"""Outgoing HTTP, for engines and stages that ask other servers.

`client` sends (the only home of aiohttp), `balance.limiter` says when, `retries` whether once more,
`headers` keeps keys out of sight, `event_stream` reads streamed answers.
"""
