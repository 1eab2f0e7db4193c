"""Images and speech: `images` decodes, `audio_files` writes, `transcripts` joins what was heard."""
