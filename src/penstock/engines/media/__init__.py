"""Images, videos and speech: `images` and `videos` decode, `audio` joins what was heard, and writes
speech.
"""
