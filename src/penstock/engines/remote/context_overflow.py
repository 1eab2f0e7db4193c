"""Recognises the error "the prompt is too long for the model" by the words of each server: there is
no common form.
"""

from __future__ import annotations

import re

_NAMES = re.compile(
    r"context_?(length|window|size)_?(is_)?exceed|exceed(ed|s)?_?context|prompt_?too_?long", re.I
)
_WORDS = re.compile(
    "|".join(
        (
            # vLLM, OpenAI, Azure, LiteLLM, llama.cpp, Ollama, LM Studio, Anthropic: the word
            # "context", with a limit or an excess
            r"(maximum|max|available|configured)[\w ]{0,20}context",
            r"context[ _-]?(length|window|size|limit)\b.{0,80}"
            r"(exceed|overflow|too small|is only|maximum|at most|however)",
            r"(exceed|longer than|greater than|larger than|too (long|large|big|many)|not"
            r" fit|beyond|over(flow|run))"
            r".{0,100}(context|n_ctx|num_ctx|max_model_len|max_seq_len|max_position_embeddings)",
            r"contextwindowexceeded",
            # OpenVINO Model Server, SGLang, vLLM, Gemini, Moonshot: a count that exceeds a bound
            r"((?<!max )(?<!completion )(?<!output )(?<!generated )(?<!new )(?<!response )\btokens?"
            r"|\b(prompt|inputs?|sequence)( tokens?| length| token count)?)\b(?! ?_)"
            r".{0,60}\b(exceed(s|ed|ing)?|longer than|greater than|larger than|more than)\b"
            r".{0,60}(max|limit|allowed|model|context|window|capacity|pool)",
            r"exceed(s|ed)? (the )?model token limit",
            r"decoder prompt .{0,60}longer than",
            # Anthropic, Bedrock, Perplexity, llama.cpp's embeddings: "prompt too long"
            (
                r"\b(prompt|inputs?|messages|conversation|sequence)\b(?!\[)(?!['\"]).{0,40}\btoo"
                r" (long|large)\b"
            ),
            r"too many (input |prompt )?tokens\b",
            r"too large to process",
            # TGI, TEI
            r"`?inputs`? tokens \+ `?max_new_tokens`? must",
            r"`?inputs`? must have less than",
            # xAI, DashScope, GLM
            r"maximum (prompt|input|sequence|model) length",
            r"input length should be",
            r"prompt exceeds max",
            # Groq and others: advice to shorten the prompt
            r"reduce (the |your )?(length|size) of (the |your )?(input|messages|prompt)",
            r"reduce your (prompt|input|message)",
            # OpenAI: one text has too many characters
            r"(content|prompt|input)[\]'\". ].{0,20}string too long",
            # vLLM: the prompt leaves no room for an answer
            r"max_(completion_)?tokens.{0,40}must be at least 1, got -?\d",
        )
    ),
    re.I | re.S,
)
_LONGEST_TEXT = 4096


def says_too_long(message: str, *names: str) -> bool:
    """Whether an error says that the prompt is too long. `names` are the error's code and type."""
    if any(_NAMES.search(name) for name in names):
        return True
    return bool(_WORDS.search(message[:_LONGEST_TEXT]))
