"""Decisions: typed questions about an input, answered with the probability of each option.

`checks.py` refuses bad questions, `prompts.py` writes them for a model, `tokens.py` makes tokens of
those texts, `trie.py` makes probabilities of log probabilities, `answers.py` makes decisions of
those. An engine gives the log probabilities.
"""
