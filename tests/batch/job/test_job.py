"""What a job is, and what it refuses before it starts."""

import asyncio
import inspect
import os
import pydoc
import re
import signal
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import penstock
from jobs import ask, lines, numbered
from penstock.batch.job.execution import Interrupts
from penstock.errors import (
    ConfigError,
    InputError,
    JobError,
    JobMismatchError,
)

pytestmark = pytest.mark.usefixtures("small_parts")


async def test_an_output_of_other_origin_is_not_touched(source, tmp_path, make_engine):
    output = tmp_path / "out.jsonl"
    output.write_text("precious\n")
    with pytest.raises(ConfigError, match=r"output: .*--fresh"):
        await ask(source, output, make_engine())
    assert output.read_text() == "precious\n"
    assert not (tmp_path / "out.jsonl.penstock").exists()
    await ask(source, output, make_engine(), fresh=True)
    assert len(lines(output)) == 300


async def test_a_complete_job_whose_output_is_gone_says_so(source, tmp_path, make_engine):
    await ask(source, tmp_path / "out.jsonl", make_engine())
    (tmp_path / "out.jsonl").unlink()
    with pytest.raises(JobError, match="is gone; --fresh"):
        await ask(source, tmp_path / "out.jsonl", make_engine())


async def test_one_process_at_a_time(source, tmp_path, make_engine):
    engine = make_engine()
    engine.gate, engine.held = asyncio.Event(), {"text 0"}
    job = asyncio.create_task(ask(source, tmp_path / "out.jsonl", engine))
    await engine.was_asked(1)
    with pytest.raises(JobError, match="another process is running this job"):
        await ask(source, tmp_path / "out.jsonl", make_engine())
    engine.gate.set()
    assert (await job).counts.rows == 300


@pytest.mark.parametrize(
    ("flags", "message"), [(0, "no permission to write in"), (os.ST_RDONLY, "is read-only")]
)
async def test_a_folder_that_cannot_be_written_is_refused(
    source, tmp_path, make_engine, monkeypatch, flags, message
):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    monkeypatch.setattr(os, "statvfs", lambda path: SimpleNamespace(f_flag=flags))
    with pytest.raises(ConfigError, match=f"output: .*{message}"):
        await ask(source, tmp_path / "out.jsonl", make_engine())


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("out.txt", "unknown extension; known are .jsonl"),
        ("absent/out.jsonl", "there is no directory"),
    ],
)
async def test_bad_outputs_are_found_before_the_engine_starts(
    source, tmp_path, make_engine, output, message
):
    engine = make_engine()
    with pytest.raises(ConfigError, match=message):
        await ask(source, f"{tmp_path}/{output}", engine)
    assert engine.starts == 0


async def test_an_output_inside_the_input_is_refused(tmp_path, make_engine):
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n')
    with pytest.raises(ConfigError, match="part of the input"):
        await ask(f"{tmp_path}/*.jsonl", tmp_path / "a.jsonl", make_engine(), fresh=True)


async def test_every_option_comes_back_from_the_manifest_as_it_was(source, tmp_path, make_engine):
    options = {
        "system": "s", "schema": {"enum": ["a"]}, "max_tokens": 5, "min_tokens": 1,
        "temperature": 0.5,
        "top_p": 0.5, "top_k": 3, "min_p": 0.1, "seed": 1, "stop": ["zz"], "stop_token_ids": (7,),
        "ignore_eos": True, "presence_penalty": 0.1, "frequency_penalty": 0.1,
        "repetition_penalty": 1.5,
        "limit": 9, "order": "done", "on_error": "keep", "max_attempts": 2, "result_prefix": "out_",
    }  # fmt: skip
    assert (await ask(source, tmp_path / "out.jsonl", make_engine(), **options)).counts.rows == 9
    assert (await ask(source, tmp_path / "out.jsonl", make_engine(), **options)).already_complete


def test_options_of_the_engine_are_part_of_the_job_unless_they_only_cost_time(source, tmp_path):
    def ask_simulated(**options):
        return penstock.run(
            source,
            tmp_path / "out.jsonl",
            model="simulated",
            prompt="{text}",
            engine_kwargs=options,
            progress=False,
        )

    ask_simulated(output_tokens=3)
    assert ask_simulated(output_tokens=3, max_num_seqs=2, start_ms=1).already_complete
    with pytest.raises(JobMismatchError, match="engine options"):
        ask_simulated(output_tokens=4)


@pytest.mark.parametrize(("begun", "resumed"), [(True, False), (False, True)])
def test_determinism_is_part_of_the_job(source, tmp_path, begun, resumed):
    def ask_simulated(deterministic):
        return penstock.run(
            source,
            tmp_path / "out.jsonl",
            model="simulated",
            prompt="{text}",
            deterministic=deterministic,
        )

    ask_simulated(begun)
    assert ask_simulated(begun).already_complete
    with pytest.raises(JobMismatchError, match="deterministic"):
        ask_simulated(resumed)


def test_rows_that_sample_without_a_seed_are_answered_the_same_where_it_is_deterministic(source):
    def answers(deterministic):
        job = penstock.run(
            source,
            model="simulated",
            prompt="{text}",
            temperature=1.0,
            limit=20,
            deterministic=deterministic,
        )
        return [row["response"] for row in job.rows()]

    assert answers(True) == answers(True)
    assert answers(False) != answers(False)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (
            {"engine": "remote", "engine_kwargs": {"base_url": "http://127.0.0.1:9/v1"}},
            "the remote engine cannot",
        ),
        (
            {"engine_kwargs": {"kv_cache_precision": "u8"}},
            "engine_kwargs.kv_cache_precision: does not go together",
        ),
        ({"deterministic": 1}, "must be true or false"),
    ],
)
def test_determinism_that_cannot_be_had_is_refused(options, told):
    with pytest.raises(ConfigError, match=told):
        penstock.run(numbered(1), prompt="{text}", **{"deterministic": True, **options})


async def test_an_output_that_holds_its_input_or_lies_in_it_is_refused(tmp_path, make_engine):
    folder = tmp_path / "data"
    folder.mkdir()
    pq.write_table(pa.table({"text": ["a"]}), folder / "part-7.parquet")
    (tmp_path / "link").symlink_to(folder)
    for source, output in (
        (folder, "link/"),
        (folder / "part-7.parquet", "data/"),
        (folder, "data/out.parquet"),
    ):
        with pytest.raises(ConfigError, match="part of the input"):
            await ask(source, f"{tmp_path}/{output}", make_engine(), fresh=True)
    assert os.listdir(folder) == ["part-7.parquet"]


@pytest.mark.parametrize(
    "options", [{"model": "demo"}, {"engine_kwargs": {}}, {"deterministic": True}]
)
async def test_an_engine_object_brings_its_own_model(make_engine, options):
    with pytest.raises(ConfigError, match="engine object"):
        await penstock.arun(numbered(1), engine=make_engine(), prompt="{text}", **options)


@pytest.mark.parametrize(
    "options",
    [
        {"prompt": 5}, {"schema": 5}, {"stop": None}, {"limit": "5"}, {"engine_kwargs": ["a"]},
        {"seed": 1 << 64},
        {"temperature": float("nan")}, {"temperature": 9.0}, {"top_p": 0.0}, {"output": ""},
        {"fresh": "no"}, {"retry_failed": 1}, {"progress": "no"}, {"choices": 5},
    ],
)  # fmt: skip
async def test_options_of_a_wrong_type_or_size_are_refused(tmp_path, options):
    with pytest.raises(ConfigError):
        await penstock.arun(
            numbered(1), **{"prompt": "{text}", "output": tmp_path / "o.jsonl", **options}
        )
    assert not list(tmp_path.iterdir())


async def test_an_unknown_engine_is_told_by_the_name_of_the_option():
    with pytest.raises(ConfigError, match=r"^engine: unknown engine 'vlm'\. Did you mean 'vllm'"):
        await penstock.arun(numbered(1), prompt="{text}", engine="vlm")


def test_the_callers_signal_handlers_are_kept():
    def mine(number, frame):
        pass

    before = signal.signal(signal.SIGTERM, mine)
    try:
        penstock.run(numbered(1), model="simulated", prompt="{text}", progress=False)
        assert signal.getsignal(signal.SIGTERM) is mine
    finally:
        signal.signal(signal.SIGTERM, before)


async def test_a_terminal_that_closes_does_not_hurry_a_job():
    drained = []
    with Interrupts() as interrupts:
        interrupts.on_first = lambda: drained.append(True)
        for _ in range(3):  # the kernel sends one, the shell another
            interrupts.request(signal.SIGHUP)
        await asyncio.sleep(0)
        assert (drained, interrupts.received) == ([True], signal.SIGHUP)
        interrupts.request(signal.SIGTERM)
        with pytest.raises(asyncio.CancelledError):
            await asyncio.sleep(0)
        task = asyncio.current_task()
        assert task is not None
        task.uncancel()


def test_a_signal_that_is_ignored_stays_so():
    class Names(list):
        def __iter__(self):
            os.kill(os.getpid(), signal.SIGINT)  # as Ctrl-C does to all that a script began
            return super().__iter__()

    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        result = penstock.run(
            Names(numbered(3)), model="simulated", prompt="{text}", progress=False
        )
        assert result.counts.ok == 3
    except KeyboardInterrupt:
        pytest.fail("the job ended")
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(
    "message",
    [
        {"role": "user"},
        {"role": "zzz", "content": "a"},
        {"role": "user", "content": 5},
        {"role": "user", "content": [{"type": "image_url", "image_url": "x"}]},
    ],
)
async def test_messages_that_no_template_can_read(make_engine, message):
    result = await penstock.arun(
        [{"m": [message]}], engine=make_engine(), messages="m", progress=False
    )
    assert [row["error"]["stage"] for row in result.rows()] == ["prompt"]


@pytest.mark.parametrize("output", [None, "out.jsonl"])
@pytest.mark.parametrize("kind", [list, tuple, np.array])
async def test_conversations_in_any_kind_of_list(make_engine, tmp_path, kind, output):
    place = None if output is None else tmp_path / output
    conversation = kind([{"role": "user", "content": "hello"}])
    engine = make_engine()
    await penstock.arun(
        iter([{"m": conversation}]), place, engine=engine, messages="m", progress=False
    )
    assert engine.asked == ["hello"]


def test_ctrl_c_beside_a_running_loop_drains_the_job(ctrl_c, monkeypatch, capsys):
    def rows():
        yield from numbered(1)
        os.kill(os.getpid(), signal.SIGINT)

    async def cell():
        options = {"time_per_token_ms": 1000, "start_ms": 0}
        penstock.run(
            rows(), model="simulated", engine_kwargs=options, prompt="{text}", progress=False
        )

    monkeypatch.setattr("penstock.batch.flow.DRAIN_SECONDS", 0.05)
    loop = asyncio.new_event_loop()  # as in a notebook: `asyncio.run` has a handler of its own
    with pytest.raises(penstock.batch.JobInterrupted):
        loop.run_until_complete(cell())
    loop.close()
    assert "Finishing the rows in flight" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("library", "kind", "message"),
    [
        ("polars", "LazyFrame", r"\.collect\(\)"),
        ("polars", "Series", "no data set"),
        *(("pandas", kind, "no data set") for kind in ("Series", "Index", "array", "Categorical")),
    ],
)
async def test_things_that_are_nearly_data_sets(library, kind, message):
    made = getattr(pytest.importorskip(library), kind)
    given = made({"a": [1]}) if kind == "LazyFrame" else made([1])
    with pytest.raises(InputError, match=message):
        await penstock.arun(given, model="simulated", prompt="{a}")


async def test_a_directory_whose_name_ends_in_a_dash(source, tmp_path, make_engine):
    (tmp_path / "labels-").mkdir()
    assert len(list((await ask(source, tmp_path / "labels-", make_engine())).rows())) == 300


async def test_an_engine_that_cancels_by_itself_leaves_nobody_waiting(make_engine):
    engine = make_engine(
        lambda text: asyncio.CancelledError("from below") if text == "text 3" else text
    )
    with pytest.raises(JobError, match="CancelledError: from below"):
        await ask(numbered(10), None, engine)


@pytest.mark.parametrize(
    ("options", "warned"),
    [({}, 1), ({"limit": 1}, 0), ({"prompt": "{text}"}, 0), ({"prompt": "{{ text }}"}, 1)],
)
async def test_a_prompt_without_a_column_is_warned_of_once(make_engine, caplog, options, warned):
    given = {"prompt": "hello", **options}
    await penstock.arun([{"text": "a"}, {"text": "b"}], engine=make_engine(), **given)
    told = "The prompt names no {column}, so all rows ask the same. Columns: text."
    hint = " A column is in single braces; '{{' is a brace."
    told += hint if "{{" in given["prompt"] else ""
    assert [record.message for record in caplog.records] == [told] * warned


@pytest.mark.parametrize("system", ["You know {text}.", "You know {this}."])
async def test_a_system_message_that_looks_like_a_template_is_warned_of(
    make_engine, caplog, system
):
    await ask([{"text": "a"}, {"text": "b"}], None, make_engine(), system=system)
    told = "Only the prompt is a template: the system message stays as it is, {text} included."
    assert [record.message for record in caplog.records] == [told] * ("{text}" in system)


class TestHelp:
    """`help(penstock.run)` explains each parameter, within 80 columns."""

    @pytest.mark.parametrize("function", [penstock.run, penstock.arun])
    def test_it(self, function):
        text = pydoc.plain(pydoc.render_doc(function))
        assert max(map(len, text.splitlines())) <= 80
        for name in inspect.signature(function).parameters:
            assert re.search(rf"\b{name}\b", function.__doc__)
            # At the beginning of a line, or in the words about another.
            begins = rf"^ +([\w ,():]+, )?{name}\b|`{name}`"
            assert re.search(begins, function.__doc__, re.MULTILINE), name

    def test_that_of_the_class_has_no_line_of_annotations(self):
        text = pydoc.plain(pydoc.render_doc(penstock.Job))
        assert max(map(len, text.splitlines())) <= 100
