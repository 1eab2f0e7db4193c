"""A converted model is tried out: the pipeline must compute what the graph says."""

import pytest

from penstock.demo import model_path
from penstock.engines.openvino.model import trial
from penstock.errors import UnsupportedError


def test_the_demo_model_is_computed_rightly():
    assert trial.difference(model_path("openvino")) < 1e-3


@pytest.mark.parametrize(("found", "right"), [(1e-4, True), (0.5, False), (float("nan"), False)])
def test_what_differs_is_said(monkeypatch, tmp_path, found, right):
    monkeypatch.setattr(trial, "difference", lambda folder: found)
    if right:
        trial.main(tmp_path)
        return
    with pytest.raises(SystemExit, match="answers otherwise than the model does"):
        trial.main(tmp_path)


def test_a_graph_without_log_probabilities_is_not_tried(monkeypatch, tmp_path):
    def none(folder):
        raise UnsupportedError("no head")

    monkeypatch.setattr(trial, "difference", none)
    trial.main(tmp_path)
