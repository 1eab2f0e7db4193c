"""OpenAI's wire format and the neutral types: `requests` reads bodies, `responses` builds them. It
knows no engine.
"""
