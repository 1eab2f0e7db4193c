"""Images and recordings: their files read, their limits held, what was heard written down."""
