"""Clients of other projects against `penstock serve`, each driven in an environment of its own.

scripts/clients/install.sh makes the environments. A driver makes checks of its client and prints a
line for each; each is a test here. Where one fails, what went over the wire is shown.
"""

import json
import os
import re
import subprocess
import threading
from contextlib import ExitStack
from functools import cache
from pathlib import Path

import pytest

from expected_failures import SOMETIMES, expected
from penstock import demo
from serve_process import serving
from wiretap import Wiretap

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs" / "clients.md"
PINS = HERE.parents[1] / "scripts" / "clients"
NIGHTLY = PINS / "nightly"
ENVIRONMENTS = Path(os.environ.get("CLIENTS") or HERE.parents[1] / ".clients").resolve()
CHECK = re.compile(r'^@check\n(?:async )?def (\w+)|^check\("(\w+)"', re.MULTILINE)
SECTION = re.compile(r"^## (\S+)$(.*?)(?=^## |\Z)", re.MULTILINE | re.DOTALL)
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
TRIED = re.compile(
    r"^## (\S+)$(?:(?!^## ).)*?Tried with (\S+): (.*?)\.\n\n", re.MULTILINE | re.DOTALL
)
TOKENIZER = Path(demo.__file__).parent / "model" / "huggingface"
SHOWN = 8000  # characters of what went over the wire
MODELS = ["demo", "smol"]
# These need the models beside the demo model, or its tokenizer.
BESIDE = {
    *("embeddings", "token_embeddings", "shorter_embeddings", "rerank"),
    *("choices", "choices_of_ids", "perplexity"),
}
# Nobody calls home.
QUIET = {
    "ANONYMIZED_TELEMETRY": "False",
    "DO_NOT_TRACK": "1",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "PROMPTFOO_DISABLE_TELEMETRY": "1",
    "PROMPTFOO_DISABLE_UPDATE": "1",
}


class Client:
    """A client package, and the program that drives it."""

    def __init__(self, driver):
        self.driver = driver
        self.name = driver.stem.removeprefix("drive_").replace("_", "-")
        self.environment = ENVIRONMENTS / self.name
        self.source = driver.read_text(encoding="utf-8")
        self.checks = [one or other for one, other in CHECK.findall(self.source)]

    @property
    def version(self):
        """What is pinned of its package, or of the first of several."""
        for folder in (PINS, NIGHTLY):
            if (folder / self.name / "package.json").is_file():
                package = json.loads((folder / self.name / "package.json").read_text())
                return package["dependencies"][self.name.removesuffix("-js")]
            if (folder / f"{self.name}.txt").is_file():
                asked, *pins = (folder / f"{self.name}.txt").read_text().splitlines()
                name = re.split(r"[^\w-]", asked.removeprefix("# "))[0]
                return dict(pin.split("==") for pin in pins)[name]
        raise AssertionError(f"{self.name} is not pinned")

    def drive(self):
        """The command that makes all checks."""
        if self.driver.suffix == ".mjs":
            return self.evaluate("js", (HERE / "driver.mjs").read_text() + self.source)
        return ["python", str(self.driver)]

    def evaluate(self, language, text):
        """The command that runs a text."""
        return {
            "python": ["python", "-c", text],
            "js": ["node", "--input-type=module", "--eval", text],
            "bash": ["bash", "-euc", text],
        }[language]

    def start(self, command, home, **variables):
        """Run a command in the client's environment."""
        if not (self.environment / "pinned").exists():
            pytest.skip(f"no {self.environment}: scripts/clients/install.sh {self.name} makes it")
        path = [self.environment / "bin", self.environment / "node_modules" / ".bin"]
        env = {
            **os.environ,
            **QUIET,
            "HOME": str(home),
            "PATH": os.pathsep.join([*map(str, path), os.environ["PATH"]]),
            "PYTHONPATH": str(HERE),
            **variables,
        }
        return subprocess.Popen(
            command,
            # A text is a module of the folder that node runs in, and finds the packages there.
            cwd=self.environment if command[0] == "node" else home,
            env=env,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )


CLIENTS = [
    Client(path) for path in sorted([*HERE.glob("*/drive_*.py"), *HERE.glob("*/drive_*.mjs")])
]
BLOCKS = {name: BLOCK.findall(text) for name, text in SECTION.findall(PAGE.read_text())}


def case(client, check, model):
    nightly = model == "smol" or any(NIGHTLY.glob(f"{client.name}*"))
    marks = [pytest.mark.clients_nightly if nightly else pytest.mark.clients]
    if reason := expected(client.name, check, model):
        strict = (client.name, check) not in SOMETIMES
        marks.append(pytest.mark.xfail(reason=reason, strict=strict))
    return pytest.param(client, check, model, marks=marks, id=f"{client.name}-{check}-{model}")


CASES = [
    case(client, check, model)
    for model in MODELS
    for client in CLIENTS
    for check in client.checks
    if model == "demo" or check not in BESIDE
]
SHOWN_ON_PAGE = [
    case(client, f"page{number or ''}", "demo")
    for client in CLIENTS
    for number, _ in enumerate(BLOCKS.get(client.name, ()))
]


@pytest.fixture(scope="module")
def servers(request, tmp_path_factory):
    """A server of a model and the variables that tell a driver of it, by the model's name. Beside
    the demo model, which is exact there, are one that embeds words and one that ranks them.
    """
    with ExitStack() as stack:

        @cache
        def server(model):
            if model == "smol":
                args = [request.getfixturevalue("smollm2"), "--name", "smol"]
                question, answer = "What is the capital of France? Answer in one word.", ""
            else:
                args = [demo_models(tmp_path_factory.mktemp("models"))]
                with demo.tickets_path().open(encoding="utf-8") as lines:
                    ticket = json.loads(lines.readlines()[1])
                question, answer = ticket["ticket"], demo.expected(ticket)
            variables = {
                "SERVER_MODEL": model,
                "SERVER_EMBEDDER": "words",
                "SERVER_TOKENIZER": str(TOKENIZER),
                "SERVER_QUESTION": question,
                "SERVER_ANSWER": answer,
            }
            folder = tmp_path_factory.mktemp("store")
            kept = ("--store", str(folder / "responses.db"), "--batch-dir", str(folder / "batches"))
            started = stack.enter_context(serving(*args, *kept))
            stack.callback(lambda: check_log(started))
            return started, variables

        yield server


def check_log(server):
    assert server.stop() == 0
    assert "Traceback" not in server.log


def demo_models(folder):
    """A configuration file."""
    from word_models import embedding_model, rerank_model

    sources = {"demo": "demo", "words": folder / "words", "judge": folder / "judge"}
    for name, make in {"words": embedding_model, "judge": rerank_model}.items():
        sources[name].mkdir()
        make(sources[name])
    models = [
        {
            "model_loading_config": {"model_id": name, "model_source": str(source)},
            "engine_kwargs": {"inference_precision": "f32"},
        }
        for name, source in sources.items()
    ]
    path = folder / "models.yaml"
    path.write_text(json.dumps({"llm_configs": models}))  # JSON is YAML
    return str(path)


@pytest.fixture(scope="module")
def driven(servers, tmp_path_factory):
    """What each check of a client says of a model: its line and what went over the wire."""

    @cache
    def drive(client, model):
        server, variables = servers(model)
        checks = [check for check in client.checks if model == "demo" or check not in BESIDE]
        variables = {**variables, "SERVER_CHECKS": " ".join(checks)}
        said = {}
        home = tmp_path_factory.mktemp(client.name)
        with (
            Wiretap(server.address) as tap,
            client.start(client.drive(), home, SERVER_URL=tap.url, **variables) as process,
        ):
            log: list[str] = []
            reader = threading.Thread(target=log.extend, args=(process.stderr,))
            reader.start()
            for line in process.stdout:
                result = json.loads(line)
                said[result["check"]] = result, tap.take()
                process.stdin.write("\n")
                process.stdin.flush()
            reader.join()
        nothing = {"ok": False, "error": f"no line: {''.join(log)}"}, ""
        return {check: said.get(check, nothing) for check in checks}

    return drive


@pytest.mark.parametrize(("client", "check", "model"), CASES)
def test_a_check(client, check, model, driven):
    result, wire = driven(client, model)[check]
    if not result["ok"]:
        shown = wire if len(wire) <= SHOWN else f"{wire[:SHOWN]}\n… {len(wire)} characters"
        pytest.fail(f"{result['error']}\n{shown}", pytrace=False)


@pytest.mark.parametrize(("client", "check", "model"), SHOWN_ON_PAGE)
def test_the_lines_of_the_page(client, check, model, servers, tmp_path):
    server, _ = servers(model)
    language, text = BLOCKS[client.name][int(check.removeprefix("page") or 0)]
    text = text.replace("http://localhost:8000", server.url)
    command = client.evaluate(language, text)
    with client.start(command, tmp_path, TOKENIZER=str(TOKENIZER)) as process:
        said, log = process.communicate(timeout=300)
    assert process.returncode == 0, log
    assert said.strip(), log


def test_the_page_has_each_client():
    assert all(BLOCKS.values())
    assert set(BLOCKS) == {client.name for client in CLIENTS}


def test_the_page_says_what_was_tried():
    said = {
        name: (version, " ".join(checks.split()))
        for name, version, checks in TRIED.findall(PAGE.read_text())
    }
    assert said == {
        client.name: (client.version, ", ".join(client.checks).replace("_", " "))
        for client in CLIENTS
    }
