import os
import sys
from pathlib import Path

import pytest

from penstock.engines.sglang import options

STAND_IN = Path(__file__).parents[2] / "support" / "sglang_standin"


@pytest.fixture(scope="module")
def stand_in():
    """SGLang's stand-in can be imported, also by worker processes: they get this one's path. With
    SGLANG_ITSELF=1 (scripts/gpu_check.sh) it is SGLang itself, in whose environment this runs.
    """
    if os.environ.get("SGLANG_ITSELF") == "1":
        yield None
        return
    sys.path.insert(0, str(STAND_IN))
    options.package.cache_clear()
    yield STAND_IN / "sglang"
    sys.path.remove(str(STAND_IN))
    options.package.cache_clear()
