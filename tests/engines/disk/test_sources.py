"""Adapters on the disk, checked before an engine loads them."""

from pathlib import Path

import pytest

from penstock import demo
from penstock.engines.disk.sources import check_adapter, model_for
from penstock.errors import EngineStartError, ModelNotFoundError

GERMAN = str(demo.adapter_path("german"))
"""Of rank 8."""


@pytest.mark.parametrize("most", [None, "8", 8])
def test_an_adapter_that_an_engine_may_hold(most: object) -> None:
    check_adapter("german", GERMAN, most)


def test_a_rank_above_the_engine_s_is_refused() -> None:
    with pytest.raises(ModelNotFoundError) as caught:
        check_adapter("german", GERMAN, 7)
    assert str(caught.value) == (
        "adapter 'german' has rank 8, and engine_kwargs.max_lora_rank is 7"
    )
    assert caught.value.param == "model"


def test_a_path_that_is_too_long_is_of_nothing() -> None:
    path = f"./{'a' * 5000}"
    with pytest.raises(ModelNotFoundError, match="there is no directory"):
        check_adapter("german", path)
    with pytest.raises(EngineStartError, match="there is no model directory"):
        model_for(path)


def test_what_is_no_adapter_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="has no adapter_config"):
        check_adapter("german", str(tmp_path))
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (tmp_path / name).write_text("{")
    with pytest.raises(ModelNotFoundError, match="is not valid JSON"):
        check_adapter("german", str(tmp_path))
    (tmp_path / "adapter_config.json").write_text('{"r": 8, "peft_type": "IA3"}')
    with pytest.raises(ModelNotFoundError, match="does not describe a LoRA adapter"):
        check_adapter("german", str(tmp_path))
