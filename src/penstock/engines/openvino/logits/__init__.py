"""The model's own probabilities: a second copy of the model, read beside the pipeline.

`second_copy.py` is the parent's side. In the worker `model.py` reads logits from a graph as
`graph.py` changes it, and `merging.py` makes what is read of images. `scoring.py` gives the log
probabilities of requests, `biased.py` samples from changed logits, `deciding.py` answers decisions
from trees of tokens (`trees.py`).
"""
