"""The process as vLLM's processes find it when they start."""

import inspect
import os
import signal
import sys

from penstock.engines.vllm.processes import MARK, processes_start


def test_they_are_marked_and_take_no_notice_of_ctrl_c(tmp_path):
    before = dict(os.environ)
    with processes_start("a mark", str(tmp_path)):
        assert os.environ[MARK] == "a mark"
        assert signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, ())
    assert dict(os.environ) == before
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


def test_the_main_module_is_hidden_also_from_those_who_looked_at_it_before(tmp_path):
    main = sys.modules["__main__"]
    file, spec = main.__file__, main.__spec__
    codes = []
    for name in ("one.py", "other.py"):  # of no module: all modules are gone through
        (tmp_path / name).touch()
        codes.append(compile("", str(tmp_path / name), "exec"))
    inspect.getmodule(codes[0])  # remembers where each module's file is
    with processes_start("a mark", str(tmp_path)):
        assert getattr(main, "__file__", None) is None
        inspect.getmodule(codes[1])
    assert (main.__file__, main.__spec__) == (file, spec)
