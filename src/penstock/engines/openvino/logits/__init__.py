"""The model's own probabilities: a second copy of the model, read beside the pipeline.

`second_copy.py` is the parent's side. In the worker `model.py` reads logits, `scoring.py` the log
probabilities of requests, `biased.py` samples from changed logits, `deciding.py` answers decisions
from trees of tokens.
"""
