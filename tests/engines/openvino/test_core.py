"""The one core of a process."""

import subprocess
import sys
import textwrap


def test_a_model_that_goes_in_another_thread_leaves_signals_alone():
    program = """
        import faulthandler, os, signal, threading
        import numpy as np
        from openvino import Model, opset13 as ops
        from penstock.engines.openvino.core import shared_core

        faulthandler.enable()
        given = ops.parameter([2], np.float32)
        held = [shared_core().compile_model(Model([ops.relu(given)], [given], "m"), "CPU")]
        thread = threading.Thread(target=held.clear)
        thread.start()
        thread.join()
        signal.signal(signal.SIGTERM, lambda *_: print("heard", flush=True))
        os.kill(os.getpid(), signal.SIGTERM)
    """
    ended = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ended.returncode, ended.stdout) == (0, "heard\n"), ended.stderr
