"""Jobs through a provider's batch API, against a stand-in that can be told to fail."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest

import penstock
from penstock.batch.provider.anthropic_batches import message_body
from penstock.batch.provider.ledger import Ledger
from penstock.errors import ConfigError, JobError, OutputError, PenstockError
from penstock.types import ChatRequest, Sampling
from provider_batches import Provider

QUICK = {"gather_s": 0.05, "first_poll_s": 0.02, "longest_poll_s": 0.05, "patience_s": 5.0}
KINDS = ("openai-batch", "anthropic-batch")
both = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture
async def provider(monkeypatch: pytest.MonkeyPatch) -> AsyncGenerator[Provider, None]:
    monkeypatch.setenv("OPENAI_API_KEY", "secret-1")
    monkeypatch.setenv("ANTHROPIC_API_KEY", "secret-2")
    async with Provider().running() as found:
        yield found


def source(folder: Path, number: int) -> Path:
    path = folder / "in.jsonl"
    path.write_text("".join(f'{{"n": "row {each}"}}\n' for each in range(number)))
    return path


async def run(provider: Provider, kind: str, folder: Path, rows: int = 6, **options: Any) -> Any:
    given = {**QUICK, "base_url": provider.base_url, **options.pop("engine_kwargs", {})}
    asks: dict[str, Any] = {"prompt": "{n}", "max_tokens": 8, "model": "gpt", **options}
    return await penstock.arun(
        source(folder, rows), folder / "out.jsonl", engine=kind, engine_kwargs=given, **asks
    )


def read(folder: Path) -> list[Any]:
    return [json.loads(line) for line in (folder / "out.jsonl").read_text().splitlines()]


@both
async def test_a_base_without_its_end_is_told_so(
    kind: str, provider: Provider, tmp_path: Path
) -> None:
    base = {"base_url": provider.base_url.removesuffix("/v1")}
    with pytest.raises(JobError, match=r"Does base_url end .* as https://api.*/v1\?"):
        await run(provider, kind, tmp_path, engine_kwargs=base)


@both
async def test_rows_become_the_lines_of_one_batch(
    kind: str, provider: Provider, tmp_path: Path
) -> None:
    result = await run(provider, kind, tmp_path)
    assert [row["response"] for row in read(tmp_path)] == [f"ROW {n}" for n in range(6)]
    assert read(tmp_path)[0]["usage"]["completion_tokens"] == 2
    assert result.counts.ok == 6
    assert len(provider.batches) == 1
    assert sorted(provider.paid) == sorted(f"row {n}" for n in range(6))
    name, value = (
        ("Authorization", "Bearer secret-1")
        if kind == "openai-batch"
        else ("x-api-key", "secret-2")
    )
    assert {headers[name] for headers in provider.headers} == {value}
    # What was handed in and answered is not kept beside the output.
    assert not [name for name in os.listdir(tmp_path / "out.jsonl.penstock") if "batch" in name]


@both
@pytest.mark.parametrize("limit", [{"lines_per_batch": 4}, {"bytes_per_batch": 800}])
async def test_limits_split_the_rows(
    kind: str, limit: Any, provider: Provider, tmp_path: Path
) -> None:
    await run(provider, kind, tmp_path, rows=10, engine_kwargs=limit)
    assert len(read(tmp_path)) == 10
    sizes = [len(batch["lines"]) for batch in provider.batches.values()]
    assert sum(sizes) == 10
    assert len(sizes) >= 2
    assert max(sizes) <= 4 or "bytes_per_batch" in limit


@both
async def test_expired_lines_are_handed_in_again(
    kind: str, provider: Provider, tmp_path: Path
) -> None:
    once = {"row 2", "row 3"}

    def fate(text: str) -> str | None:
        if text not in once:
            return None
        once.discard(text)
        return "expired"

    provider.fate = fate
    await run(provider, kind, tmp_path)
    assert all(row["status"] == "ok" for row in read(tmp_path))
    assert sorted(provider.paid[6:]) == ["row 2", "row 3"]
    assert [row["attempts"] for row in read(tmp_path)] == [1, 1, 2, 2, 1, 1]


@both
async def test_what_stays_wrong_becomes_error_rows(
    kind: str, provider: Provider, tmp_path: Path
) -> None:
    cancelled = "cancelled" if kind == "openai-batch" else "canceled"
    fates: dict[str, str | int] = {
        "row 1": 400,
        "row 2": "expired",
        "row 3": cancelled,
        "row 4": 529,
    }
    provider.fate = lambda text: fates.get(text)
    result = await run(provider, kind, tmp_path, max_attempts=2)
    kinds = [(row["error"] or {}).get("type") for row in read(tmp_path)]
    assert kinds == [
        None,
        "invalid_request_error",
        "batch_expired",
        "batch_cancelled",
        "overloaded",
        None,
    ]
    assert result.counts.ok == 2
    assert "no row 1" in read(tmp_path)[1]["error"]["message"]
    assert provider.paid.count("row 1") == provider.paid.count("row 3") == 1
    assert provider.paid.count("row 2") == 2
    # A run of the failed rows alone asks them again.
    provider.fate = lambda text: None
    await run(provider, kind, tmp_path, max_attempts=2, retry_failed=True)
    assert all(row["status"] == "ok" for row in read(tmp_path))
    assert provider.paid.count("row 0") == 1


async def test_a_line_that_the_provider_refuses_ends_no_other(
    provider: Provider, tmp_path: Path
) -> None:
    def refuse(lines: list[Any]) -> list[dict[str, Any]]:
        return [
            {"line": number, "code": "bad", "message": "what is this"}
            for number, line in enumerate(lines, 1)
            if line["body"]["messages"][0]["content"] == "row 2"
        ]

    provider.refuse = refuse
    await run(provider, "openai-batch", tmp_path)
    assert [row["status"] for row in read(tmp_path)] == ["ok", "ok", "error", "ok", "ok", "ok"]
    assert read(tmp_path)[2]["error"]["message"] == "what is this"


async def test_a_refused_line_is_asked_again_before_its_job_is_complete(
    provider: Provider, tmp_path: Path
) -> None:
    def refuse(lines: list[Any]) -> list[dict[str, Any]]:
        if len(lines) == 2:
            return [{"line": 1, "code": "bad", "message": "what is this"}]
        return []

    async def first_ends(request: Any) -> None:
        provider.go_on.clear()

    provider.refuse, provider.at_create = refuse, first_ends
    split = {"lines_per_batch": 4}
    with pytest.raises(PenstockError, match="deadline"):
        await run(provider, "openai-batch", tmp_path, deadline=1.0, engine_kwargs=split)
    provider.refuse = lambda lines: []
    provider.at_create = None
    provider.go_on.set()
    await run(provider, "openai-batch", tmp_path, retry_failed=True, engine_kwargs=split)
    assert [row["response"] for row in read(tmp_path)] == [f"ROW {n}" for n in range(6)]
    assert provider.paid.count("row 0") == 1


@pytest.mark.parametrize("lines", [1, 100])
async def test_a_full_disk_stops_the_job(
    lines: int, provider: Provider, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OutputError("no space left")

    monkeypatch.setattr(Ledger, "begin", full)
    kwargs = {"lines_per_batch": lines}
    async with asyncio.timeout(20):
        with pytest.raises(JobError, match="no space left"):
            await run(provider, "openai-batch", tmp_path, rows=1, engine_kwargs=kwargs)


async def test_a_batch_that_is_refused_stops_the_job(
    provider: Provider, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    provider.refuse = lambda lines: [{"code": "token_limit_exceeded", "message": "too much"}]
    for number in range(4):
        with pytest.raises(JobError, match=rf"too much.*batch_{number}"):
            await run(provider, "openai-batch", tmp_path)
    assert "runs on" not in capsys.readouterr().err
    provider.refuse = lambda lines: []
    await run(provider, "openai-batch", tmp_path)
    assert [row["attempts"] for row in read(tmp_path)] == [1] * 6
    assert len(provider.paid) == 6


async def test_a_refusal_of_lines_that_are_none_of_the_batch_shows_the_first(
    provider: Provider, tmp_path: Path
) -> None:
    provider.refuse = lambda lines: [
        {"line": 1000 + number, "code": "bad", "message": f"wrong {number}"} for number in range(5)
    ]
    with pytest.raises(JobError) as caught:
        await run(provider, "openai-batch", tmp_path)
    assert (
        "refused the batch: line 1,000: wrong 0; line 1,001: wrong 1; line 1,002: wrong 2;"
        " 5 errors of lines in all. The batch is batch_0"
    ) in str(caught.value)


@both
async def test_a_provider_that_fails_for_a_while_is_asked_again(
    kind: str, provider: Provider, tmp_path: Path
) -> None:
    provider.failing = [500, 503, 429, 502]
    await run(provider, kind, tmp_path)
    assert len(read(tmp_path)) == 6
    assert len(provider.batches) == 1
    assert len(provider.paid) == 6


@both
async def test_an_answer_that_is_lost_makes_no_second_batch(
    kind: str, provider: Provider, tmp_path: Path
) -> None:
    async def cut(request: Any) -> None:
        provider.at_create = None
        request.transport.abort()

    provider.at_create = cut
    await run(provider, kind, tmp_path)
    assert len(read(tmp_path)) == 6
    assert len(provider.batches) == 1


async def test_a_batch_of_somebody_else_is_not_taken_for_ones_own(
    provider: Provider, tmp_path: Path
) -> None:
    async def lose(request: Any) -> None:
        one = provider.batches.pop("batch_0")  # it was never made, and a like one was
        one["lines"] = [{**line, "custom_id": f"other-{n}"} for n, line in enumerate(one["lines"])]
        provider.batches["batch_7"] = {**one, "id": "batch_7"}
        provider.at_create = None
        request.transport.abort()

    provider.at_create = lose
    await run(provider, "anthropic-batch", tmp_path)
    assert len(read(tmp_path)) == 6
    assert len(provider.batches) == 2


@both
async def test_an_interrupted_job_leaves_its_batch_and_takes_it_up(
    kind: str, provider: Provider, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    provider.go_on.clear()
    with pytest.raises(PenstockError, match="deadline"):
        await run(provider, kind, tmp_path, deadline=1.0)
    said = capsys.readouterr().err
    assert "batch_0 (6 lines) runs on" in said
    assert "/batches/batch_0/cancel" in said
    assert "secret" not in said
    provider.go_on.set()
    await run(provider, kind, tmp_path)
    assert len(read(tmp_path)) == 6
    assert len(provider.batches) == 1


@both
@pytest.mark.parametrize("moment", ["created", "both created", "polled"])
async def test_a_killed_job_pays_for_nothing_twice(
    kind: str, moment: str, provider: Provider, tmp_path: Path
) -> None:
    path = source(tmp_path, 30)
    argv = ["run", str(path), "-o", str(tmp_path / "out.jsonl"), "--prompt", "{n}", "-q"]
    argv += ["--max-tokens", "8", "--model", "gpt", "--engine", kind, "--engine-kwargs"]
    argv.append(json.dumps({**QUICK, "base_url": provider.base_url, "lines_per_batch": 12}))

    async def start() -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            sys.executable, "-m", "penstock.cli", *argv, env=dict(os.environ)
        )

    process = await start()
    if moment == "created":
        # The provider has made the second batch, and its maker never hears of it.
        async def kill(request: Any) -> None:
            if len(provider.batches) == 2:
                provider.at_create = None
                process.send_signal(signal.SIGKILL)
                await process.wait()

        provider.at_create = kill
    elif moment == "both created":
        # Neither maker hears of its batch, and the provider lists them the other way round.
        two = asyncio.Event()

        async def kill_both(request: Any) -> None:
            if len(provider.batches) == 2 and not two.is_set():
                provider.at_create = None
                provider.batches = dict(reversed(provider.batches.items()))
                process.send_signal(signal.SIGKILL)
                await process.wait()
                two.set()
            await two.wait()

        provider.at_create = kill_both
    else:
        provider.go_on.clear()
        async with asyncio.timeout(60):
            while sum("GET" in one for one in provider.asked) < 6:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        provider.go_on.set()
    await process.wait()
    assert await (await start()).wait() == 0
    assert [row["response"] for row in read(tmp_path)] == [f"ROW {n}" for n in range(30)]
    assert sorted(provider.paid) == sorted(f"row {n}" for n in range(30))


async def test_rows_of_openai_lines_and_other_endpoints(provider: Provider, tmp_path: Path) -> None:
    asks: list[tuple[str, dict[str, Any]]] = [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "hi"}]}),
        ("/v1/embeddings", {"input": "text"}),
    ]
    lines = [
        {"custom_id": f"c{n}", "method": "POST", "url": url, "body": {"model": "gpt", **body}}
        for n, (url, body) in enumerate(asks)
    ]
    path = tmp_path / "in.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    given = {**QUICK, "base_url": provider.base_url}
    await penstock.arun(
        path, tmp_path / "out.jsonl", model="gpt", engine="openai-batch", engine_kwargs=given
    )
    first, second = [line["response"]["body"] for line in read(tmp_path)]
    assert first["choices"][0]["message"]["content"] == "HI"
    assert second["data"][0]["embedding"] == [1.0, 2.0]
    assert len(provider.batches) == 2  # a batch has one endpoint


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"output": None}, "output"),
        ({"output": "-"}, "output"),
        ({"model": None}, "model"),
        ({"deterministic": True}, "deterministic"),
        ({"runtime": "ray"}, "runtime"),
        ({"engine_kwargs": {"lines_per_batch": 200_000}}, "engine_kwargs.lines_per_batch"),
        ({"engine_kwargs": {"base_url": "ftp://x"}}, "engine_kwargs.base_url"),
    ],
)
@both
def test_what_no_batch_can_do_is_refused(
    kind: str, options: dict[str, Any], field: str, tmp_path: Path
) -> None:
    given: dict[str, Any] = {
        "output": tmp_path / "out.jsonl",
        "model": "gpt",
        "prompt": "{n}",
        **options,
    }
    with pytest.raises(ConfigError) as caught:
        penstock.run([{"n": 1}], engine=kind, **given)
    assert caught.value.field == field


@pytest.mark.parametrize("field", ["seed", "min_p", "max_tokens"])
def test_what_anthropic_has_no_field_for_is_refused(
    field: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", "secret")
    given: dict[str, Any] = {"max_tokens": 8} if field != "max_tokens" else {}
    if field != "max_tokens":
        given[field] = 1
    with pytest.raises(PenstockError, match=field):
        penstock.run(
            [{"n": 1}],
            tmp_path / "out.jsonl",
            engine="anthropic-batch",
            model="claude",
            prompt="{n}",
            **given,
        )


def test_without_a_key_it_says_which(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(PenstockError, match="OPENAI_API_KEY"):
        penstock.run(
            [{"n": 1}], tmp_path / "o.jsonl", engine="openai-batch", model="g", prompt="{n}"
        )


@both
async def test_a_signal_says_what_runs_on(kind: str, provider: Provider, tmp_path: Path) -> None:
    provider.go_on.clear()
    argv = ["run", str(source(tmp_path, 5)), "-o", str(tmp_path / "out.jsonl"), "--prompt", "{n}"]
    argv += ["--max-tokens", "8", "--model", "gpt", "--engine", kind, "--engine-kwargs"]
    argv.append(json.dumps({**QUICK, "base_url": provider.base_url}))
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "penstock.cli", *argv), stderr=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(60):
        while sum("/batch_0" in one for one in provider.asked) < 2:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, said = await process.communicate()
    assert process.returncode == 130
    assert b"batch_0 (5 lines) runs on" in said
    assert b"/batch_0/cancel" in said
    assert b"secret" not in said


async def test_texts_become_vectors(provider: Provider, tmp_path: Path) -> None:
    given: dict[str, Any] = {"prompt": None, "max_tokens": None, "embed": "{n}"}
    await run(provider, "openai-batch", tmp_path, **given)
    assert [row["embedding"] for row in read(tmp_path)] == [[1.0, 2.0]] * 6
    assert sorted(provider.paid) == sorted(f"['row {n}']" for n in range(6))


@pytest.mark.parametrize(
    ("url", "source"),
    [
        ("https://example.com/a.png", {"type": "url", "url": "https://example.com/a.png"}),
        ("DATA:;Base64,iVBORw0K%0A", ("image/png", "iVBORw0K")),
        ("data:image/jpeg;base64,iVBORw0K", ("image/png", "iVBORw0K")),
        ("data:image/avif;a=b;base64,aGk", ("image/avif", "aGk=")),
    ],
)
def test_images_for_anthropic(url: str, source: Any) -> None:
    if isinstance(source, tuple):
        source = {"type": "base64", "media_type": source[0], "data": source[1]}
    content = [{"type": "image_url", "image_url": {"url": url}}]
    request = ChatRequest([{"role": "user", "content": content}], Sampling(max_tokens=1))
    (message,) = message_body(request, "m")["messages"]
    assert message["content"] == [{"type": "image", "source": source}]


@both
async def test_the_provider_knows_which_models_see(
    kind: str, provider: Provider, tmp_path: Path
) -> None:
    photo = "data:image/png;base64,iVBORw0K"
    rows = [{"n": "What is it?", "photo": photo}]
    given = {**QUICK, "base_url": provider.base_url}
    result = await penstock.arun(
        rows,
        tmp_path / "out.jsonl",
        engine=kind,
        engine_kwargs=given,
        model="gpt",
        prompt="{n}",
        image="photo",
        max_tokens=8,
    )
    assert (result.counts.rows, result.counts.ok) == (1, 1)
    (text,) = provider.paid
    assert "iVBORw0K" in text
