"""Outgoing HTTP, for engines and stages that call other servers.

`client` sends (the only home of aiohttp), `endpoint` says where to and keeps keys secret, `retries`
decides on another try, `complaints` reads the bodies of errors. `balance.limiter` bounds the rate.
`standard` sends by the standard library alone.
"""
