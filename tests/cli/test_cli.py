"""The command line, in processes of its own: what a person sees, and the exit code."""

import json
import os
import re
import signal
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow

SIMULATED = ("--model", "simulated", "--prompt", "{text}")


def penstock(*args, cwd, input=None, **env):
    return subprocess.run(
        [sys.executable, "-m", "penstock", *map(str, args)],
        cwd=cwd,
        input=input,
        capture_output=True,
        timeout=60,
        env={**os.environ, **env},
    )


@pytest.fixture
def folder(tmp_path):
    rows = [{"id": n, "text": f"text {n}"} for n in range(20)]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def rows_of(data):
    return [json.loads(line) for line in data.splitlines()]


def test_help_and_version(tmp_path):
    assert b"run" in penstock("--help", cwd=tmp_path).stdout
    assert b"Examples:" in penstock("run", "--help", cwd=tmp_path).stdout
    assert re.match(rb"penstock, version \d", penstock("--version", cwd=tmp_path).stdout)


def test_help_loads_no_library_but_click(tmp_path):
    code = (
        "import sys, site\nsys.argv = ['penstock', 'run', '--help']\nfrom penstock.cli import"
        " main\ntry: main()\nexcept SystemExit: pass\nprint(sorted({'pyarrow', 'msgspec', 'tqdm',"
        " 'fsspec', 'jsonschema_rs', 'asyncio'} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, cwd=tmp_path, timeout=60
    )
    assert done.stderr.strip() == b"[]"


def test_lines_in_lines_out_without_arrow(folder):
    code = (
        "import sys\nsys.argv = ['penstock', 'run', 'in.jsonl', '-o', 'out.jsonl',"
        f" *{SIMULATED!r}]\nfrom penstock.cli import main\nmain()\nprint(sorted({{'pyarrow',"
        " 'tqdm', 'fsspec', 'jsonschema_rs', 'sqlite3', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, cwd=folder, timeout=60)
    assert done.stdout.strip() == b"[]", done.stderr
    assert len(rows_of((folder / "out.jsonl").read_bytes())) == 20


def test_a_run_and_its_summary(folder):
    done = penstock("run", "in.jsonl", "-o", "out.jsonl", *SIMULATED, cwd=folder)
    assert (done.returncode, done.stdout) == (0, b"")
    summary = done.stderr.decode()
    assert re.search(r"^20 rows$", summary, re.M)
    assert re.search(r"tokens in \(0 cached\), 320 out, .* tokens/s$", summary, re.M)
    assert summary.endswith("Output: out.jsonl\n")
    again = penstock("run", "in.jsonl", "-o", "out.jsonl", *SIMULATED, cwd=folder)
    assert again.returncode == 0
    assert again.stderr.startswith(b"Complete already: 20 rows in out.jsonl.")
    assert (
        penstock("run", "in.jsonl", "-o", "out.jsonl", *SIMULATED, "-q", cwd=folder).stderr == b""
    )


def test_a_quiet_run_says_why_it_fails(folder):
    (folder / "bad.jsonl").write_text("no JSON\n{\n")
    done = penstock("run", "bad.jsonl", "-o", "out.jsonl", *SIMULATED, "-q", cwd=folder)
    assert (done.returncode, done.stderr) == (
        1,
        b"penstock: all rows failed: 2 \xc3\x97 input_error\n",
    )


def test_a_pipe(folder):
    data = (folder / "in.jsonl").read_bytes()
    done = penstock("run", "-", "-o", "-", *SIMULATED, cwd=folder, input=data)
    assert [row["id"] for row in rows_of(done.stdout)] == list(range(20))
    assert b"20 rows" in done.stderr
    assert sorted(path.name for path in folder.iterdir()) == ["in.jsonl"]


def test_a_pipe_that_its_reader_leaves(folder):
    job = subprocess.Popen(
        [sys.executable, "-m", "penstock.cli", "run", "in.jsonl", "-o", "-", *SIMULATED],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert job.stdout is not None
    job.stdout.close()
    assert job.stderr is not None
    with job.stderr as stderr:
        text = stderr.read().decode()
    assert job.wait(60) == 1
    assert "Traceback" not in text
    assert "standard output cannot be written" in text


DAMAGED = (
    b'{"text": "a"}\n{"text": \n{"other": 1}\n{"text": "\xff"}\n{"text": "'
    + b"x" * 300
    + b'"}\n{"text": "b"}\n'
)


@pytest.mark.parametrize("name", ["out.jsonl", "out.csv", "out.parquet"])
def test_poisoned_rows_become_error_rows(tmp_path, name):
    (tmp_path / "in.jsonl").write_bytes(DAMAGED)
    limits = ("--engine-kwargs", '{"max_model_len": 200}', "--max-tokens", 8)
    done = penstock("run", "in.jsonl", "-o", name, *SIMULATED, *limits, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    text = done.stderr.decode()
    assert "6 rows, 4 failed" in text
    for line in ("2 × input_error", "1 × invalid_request_error", "1 × context_length_exceeded"):
        assert line in text
    if name == "out.jsonl":
        found = rows_of((tmp_path / name).read_bytes())
        assert [row["status"] for row in found] == ["ok", "error", "error", "error", "error", "ok"]
        assert [row["error"]["stage"] for row in found[1:5]] == ["read", "prompt", "read", "engine"]
        assert found[1]["error"]["message"] == "in.jsonl:2: malformed JSON: it ends too early"


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (("absent.jsonl", "-o", "out.jsonl", *SIMULATED), 2, "absent.jsonl: no such file"),
        (
            (
                *("in.jsonl", "-o", "o.jsonl", "--prompt", "{text}", "--engine", "remote"),
                *("--deterministic", "--engine-kwargs", '{"base_url": "http://127.0.0.1:9/v1"}'),
            ),
            2,
            "deterministic: the remote engine cannot promise it",
        ),
        (("in.txt", "-o", "out.jsonl", *SIMULATED), 2, "unknown extension; known are .jsonl"),
        (("in.jsonl", "-o", "out.txt", *SIMULATED), 2, "unknown extension; known are .jsonl"),
        (("in.jsonl", "-o", "absent/out.jsonl", *SIMULATED), 2, "there is no directory absent"),
        (("in.jsonl", "-o", "in.txt/out.jsonl", *SIMULATED), 2, "there is no directory in.txt"),
        (("in.jsonl", "-o", "other.jsonl", *SIMULATED), 2, "other.jsonl exists and is not the"),
        (("in.jsonl", "-o", "out.jsonl", *SIMULATED, "--cache", "in.txt/a"), 2, "cannot be made"),
        (
            (
                *("in.jsonl", "-o", "o.jsonl", "--prompt", "{text}", "--engine", "remote"),
                *("--model", "m", "--engine-kwargs"),
                '{"base_url": "http://127.0.0.1:9/v1", "api_key_env": "NO_SUCH_KEY"}',
            ),
            2,
            "api_key_env: the environment variable NO_SUCH_KEY is not set",
        ),
        (("broken.parquet", "-o", "out.jsonl", *SIMULATED), 2, "not a readable Parquet file"),
        (
            ("in.jsonl", "-o", "out.jsonl", "--model", "simulated", "--prompt", "{txet}"),
            2,
            "Did you mean 'text'?",
        ),
        (
            ("in.jsonl", "-o", "out.jsonl", "--model", "simulated", "--prompt", "{"),
            2,
            "names no column",
        ),
        (("in.jsonl", "-o", "out.jsonl", "--model", "simulated"), 2, "say what to ask"),
        (
            ("in.jsonl", "-o", "out.jsonl", *SIMULATED, "--engine", "simulatd"),
            2,
            "Did you mean 'simulated'?",
        ),
        (("in.jsonl", "-o", "out.jsonl", *SIMULATED, "--engine-kwargs", "{"), 2, "not valid JSON"),
        (
            ("in.jsonl", "-o", "out.jsonl", *SIMULATED, "--engine-kwargs", '{"sed": 1}'),
            2,
            "Did you mean 'seed'?",
        ),
        (
            ("in.jsonl", "-o", "out.jsonl", *SIMULATED, "--adapter", "nosuch"),
            2,
            "no adapter 'nosuch'",
        ),
        (
            ("in.jsonl", "-o", "out.jsonl", *SIMULATED, "--order", "random"),
            2,
            "--order must be 'input' or 'done'",
        ),
        (("in.jsonl", "-o", "out.jsonl", *SIMULATED, "--temperature", "9"), 2, "between 0 and 2"),
    ],
)
def test_mistakes_are_told_in_a_line(folder, args, code, message):
    (folder / "in.txt").touch()
    (folder / "other.jsonl").touch()
    (folder / "broken.parquet").write_text("PAR1")
    done = penstock("run", *args, cwd=folder)
    text = done.stderr.decode()
    assert (done.returncode, done.stdout) == (code, b"")
    assert message in text
    assert "Traceback" not in text
    if "Usage:" not in text:
        assert text.count("\n") == 1
    debug = penstock("run", *args, cwd=folder, PENSTOCK_DEBUG="1")
    assert ("Traceback" in debug.stderr.decode()) == ("Usage:" not in text)


def test_exit_codes_of_failed_rows(folder):
    failing = ("--engine-kwargs", '{"error_rate": 1.0}')
    done = penstock("run", "in.jsonl", "-o", "out.jsonl", *SIMULATED, *failing, cwd=folder)
    assert done.returncode == 1
    assert b"20 rows, 20 failed" in done.stderr
    done = penstock(
        "run", "in.jsonl", "-o", "two.jsonl", *SIMULATED, *failing, "--on-error", "fail", cwd=folder
    )
    assert done.returncode == 1
    assert b"row 0 failed at stage engine: simulated fault" in done.stderr


def test_a_second_signal_stops_at_once(folder):
    hanging = ("--engine-kwargs", '{"hang_rate": 1.0, "time_per_token_ms": 1}')
    job = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "penstock.cli",
            "run",
            "in.jsonl",
            "-o",
            "out.jsonl",
            *SIMULATED,
            *hanging,
        ],
        cwd=folder,
        stderr=subprocess.PIPE,
    )
    assert job.stderr is not None
    while not (folder / "out.jsonl.penstock" / "manifest.json").exists():
        assert job.poll() is None
    job.send_signal(signal.SIGINT)
    # It drains; if it had not begun yet, it is stopping already.
    if job.stderr.readline().startswith(b"Finishing"):
        job.send_signal(signal.SIGINT)
    _, stderr = job.communicate(timeout=10)
    assert job.returncode == 130
    assert b"Traceback" not in stderr


def test_another_job_is_refused_with_a_table(folder):
    penstock("run", "in.jsonl", "-o", "out.jsonl", *SIMULATED, cwd=folder)
    done = penstock("run", "in.jsonl", "-o", "out.jsonl", *SIMULATED, "--max-tokens", 3, cwd=folder)
    assert done.returncode == 2
    assert re.search(r"^ +journaled +asked for$", done.stderr.decode(), re.M)
    assert re.search(r"^ +max_tokens +- +3$", done.stderr.decode(), re.M)


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_a_signal_drains_and_the_same_command_goes_on(folder, number, code):
    slow = ("--engine-kwargs", '{"time_per_token_ms": 5, "max_num_seqs": 1}')
    job = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "penstock.cli",
            "run",
            "in.jsonl",
            "-o",
            "out.jsonl",
            *SIMULATED,
            *slow,
        ],
        cwd=folder,
        stderr=subprocess.PIPE,
    )
    journal = folder / "out.jsonl.penstock" / "rows-0-0.jsonl"
    while not journal.exists():
        assert job.poll() is None
    job.send_signal(number)
    _, stderr = job.communicate(timeout=60)
    assert job.returncode == code
    assert b"Finishing the rows in flight" in stderr
    assert b"the same command" in stderr
    assert b"Traceback" not in stderr
    kept = len(journal.read_bytes().splitlines())
    assert 1 <= kept < 20
    done = penstock("run", "in.jsonl", "-o", "out.jsonl", *SIMULATED, cwd=folder)
    assert f"{kept} from an earlier run" in done.stderr.decode()
    assert len(rows_of((folder / "out.jsonl").read_bytes())) == 20


def test_damage_is_told_in_a_line(folder):
    """What can be done again is done again, and what cannot is refused."""
    kwargs = ("--engine-kwargs", '{"error_rate": 0.3, "max_num_seqs": 1}')
    command = ("run", "in.jsonl", "-o", "out.jsonl", *SIMULATED, *kwargs)
    assert penstock(*command, "--on-error", "fail", cwd=folder).returncode == 1
    state = folder / "out.jsonl.penstock"
    (rows,) = state.glob("rows-*.jsonl")
    rows.write_bytes(rows.read_bytes().replace(b'"stop"', b'"stap"', 1))
    again = penstock(*command, cwd=folder)
    assert again.returncode == 0
    said = f"{rows.relative_to(folder)} is damaged (1 record); those rows run again"
    assert [line for line in again.stderr.decode().splitlines() if "damaged" in line] == [said]
    manifest = state / "manifest.json"
    manifest.write_bytes(manifest.read_bytes().replace(b'"rows": 20', b'"rows": 21'))
    refused = penstock(*command, cwd=folder)
    assert refused.returncode == 1
    assert b"manifest.json is damaged" in refused.stderr
    assert b"--fresh" in refused.stderr
    assert b"Traceback" not in refused.stderr


def test_a_producer_that_holds_the_pipe_does_no_harm(folder):
    reading, writing = os.pipe()
    os.write(writing, (folder / "in.jsonl").read_bytes())
    done = subprocess.run(
        [sys.executable, "-m", "penstock.cli", "run", "-", "-o", "-", *SIMULATED, "--limit", "3"],
        stdin=reading, capture_output=True, cwd=folder, timeout=60,
    )  # fmt: skip
    os.close(writing)
    os.close(reading)
    assert (done.returncode, len(rows_of(done.stdout))) == (0, 3), done.stderr


def test_plan(folder):
    done = penstock("plan", "in.jsonl", *SIMULATED, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(b"20 rows\n")
    found = json.loads(
        penstock("plan", "in.jsonl", *SIMULATED, "--json", "--trial", 4, cwd=folder).stdout
    )
    assert (found["rows"], found["tried"]) == (20, 4)
    assert sorted(path.name for path in folder.iterdir()) == ["in.jsonl"]


def test_plan_of_an_incremental_job(folder):
    rows = [json.dumps({"id": number, "text": f"row {number}"}) for number in range(12)]
    (folder / "in.jsonl").write_text("\n".join(rows[:10]))
    options = ("in.jsonl", "-o", "out.jsonl", *SIMULATED, "--incremental", "--key", "id")
    assert penstock("run", *options, cwd=folder).returncode == 0
    (folder / "in.jsonl").write_text("\n".join(rows))
    done = penstock("plan", *options, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(b"12 rows\n  10 have their answers already, which are kept\n")
    assert penstock("plan", *options[:3], *SIMULATED, cwd=folder).returncode == 0
    refused = penstock("plan", "in.jsonl", "-o", "out.pdf", *SIMULATED, cwd=folder)
    assert refused.returncode == 2
    assert b"out.pdf" in refused.stderr


def test_policies_and_limits_of_a_run(tmp_path):
    (tmp_path / "in.jsonl").write_bytes(DAMAGED)
    run = ("run", "in.jsonl", "-o", "out.jsonl", *SIMULATED)
    done = penstock(
        *run, "--on-error", "skip", "--on-error", "invalid_request_error=keep", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    statuses = [row["status"] for row in rows_of((tmp_path / "out.jsonl").read_bytes())]
    assert statuses == ["ok", "error", "ok", "ok"]
    done = penstock(*run, "--on-error", "skip", "--on-error", "fail", cwd=tmp_path)
    assert b"on_error: has two actions for all errors" in done.stderr
    (tmp_path / "many.jsonl").write_text(
        "".join(f'{{"text": "{number}"}}\n' for number in range(200))
    )
    few = ("--engine-kwargs", '{"max_num_seqs": 1}', "--max-tokens-total", 1)
    done = penstock("run", "many.jsonl", "-o", "few.jsonl", *SIMULATED, *few, cwd=tmp_path)
    assert done.returncode == 1
    assert b"max_tokens_total is 1" in done.stderr
    done = penstock(
        *run,
        "--fresh",
        "--dead-letter",
        "bad.jsonl",
        "--deadline",
        "1h",
        "--row-timeout",
        60,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert len(rows_of((tmp_path / "bad.jsonl").read_bytes())) == 3
    done = penstock(*run, "--fresh", "--on-error", "drop", cwd=tmp_path)
    assert (done.returncode, done.stderr.count(b"\n")) == (2, 1)


def test_explain_says_what_would_be_placed(tmp_path):
    model = """
model_loading_config: {model_id: m, model_source: simulated}
llm_engine: simulated
deployment_config:
  autoscaling_config: {min_replicas: 1, max_replicas: 3}
  ray_actor_options: {num_cpus: 2}
"""
    (tmp_path / "model.yaml").write_text(model)
    shown = penstock("explain", "model.yaml", "--runtime", "ray", cwd=tmp_path)
    assert shown.returncode == 0
    assert b"replicas    1 to 3" in shown.stdout
    assert b"in all: CPU 3; with all replicas CPU 9" in shown.stdout
    plain = penstock("explain", "model.yaml", "--runtime", "ray", "--json", cwd=tmp_path)
    assert json.loads(plain.stdout)["models"][0]["bundles"] == [{"CPU": 3.0}]
    assert b"Examples:" in penstock("explain", "--help", cwd=tmp_path).stdout
    side = (
        model.replace("\n", "\n  ")
        + "engine_kwargs: {kv_transfer_config: {kv_connector: SimulatedConnector}}\n"
    )
    (tmp_path / "pair.yaml").write_text(f"prefill_config:{side}decode_config:{side}")
    pair = penstock("explain", "pair.yaml", "--runtime", "ray", cwd=tmp_path)
    assert b"m (prefill): simulated on simulated, by PrefillServer" in pair.stdout
    assert b"m (decode): simulated on simulated, by DecodeServer" in pair.stdout
    assert b"exchanged by the SimulatedConnector" in pair.stdout
    assert b"in all: CPU 6; with all replicas CPU 18" in pair.stdout
    (tmp_path / "model.yaml").write_text(model.replace("simulated\n", "simulatd\n"))
    wrong = penstock("explain", "model.yaml", cwd=tmp_path)
    assert (wrong.returncode, wrong.stdout) == (2, b"")
    assert b"unknown engine 'simulatd'" in wrong.stderr
    assert wrong.stderr.count(b"\n") == 1


def test_decisions_a_filter_and_a_calibration(folder):
    (folder / "q.yaml").write_text(
        'questions: [{name: team, instructions: "Which?", options: [a, b]}]\n'
    )
    asked = (*SIMULATED, "--decide", "q.yaml")
    rows = [json.loads(line) for line in (folder / "in.jsonl").read_text().splitlines()]
    labelled = [{**row, "label": "ab"[row["id"] % 2]} for row in rows]
    (folder / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in labelled))
    files = ("-o", "c.json", "--picture", "c.svg")
    fit = penstock("calibrate", "in.jsonl", "--labels", "label", *files, *asked, cwd=folder)
    assert fit.returncode == 0, fit.stderr
    assert fit.stdout.startswith(b"team: 20 rows, temperature")
    assert (folder / "c.svg").read_bytes().startswith(b"<svg")
    (folder / "q.yaml").write_text((folder / "q.yaml").read_text() + "calibration: c.json\n")
    done = penstock("run", "in.jsonl", "-o", "-", *asked, "--filter", "Is it?", cwd=folder)
    assert done.returncode == 0, done.stderr
    kept = rows_of(done.stdout)
    assert f"20 rows, {len(kept)} kept".encode() in done.stderr
    assert {row["filter"] for row in kept} == {True}
    wrong = penstock("run", "in.jsonl", "-o", "x.jsonl", *SIMULATED, "--choices", "a", cwd=folder)
    assert wrong.returncode == 2
    assert b"choices: has one option" in wrong.stderr
    assert b"Examples:" in penstock("calibrate", "--help", cwd=folder).stdout


def test_evaluations_and_their_comparison(folder):
    choice = ("--form", "choice", "--choices", "a,b")
    asked = (*SIMULATED, "--expected", "text")
    unknown = penstock("eval", "in.jsonl", *asked, *choice, cwd=folder)
    assert unknown.returncode == 2
    assert b"no row has a label of the question 'choice' in the column 'text'" in unknown.stderr
    first = penstock("eval", "in.jsonl", *asked, "-o", "e.json", cwd=folder)
    assert first.stdout == b"exact: 0.000 (95 %: 0.000 to 0.161), 20 rows\n", first.stderr
    again = penstock("eval", "in.jsonl", *asked, "--against", "e.json", cwd=folder)
    assert again.stdout.splitlines()[1].startswith(b"difference +0.000")
    wrong = penstock("eval", "in.jsonl", *SIMULATED, "--form", "pair", cwd=folder)
    assert wrong.returncode == 2
    assert b"pair: the form 'pair' needs it" in wrong.stderr
