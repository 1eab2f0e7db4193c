"""Images and speech: `images` decodes, `audio` joins what was heard, and writes speech."""
