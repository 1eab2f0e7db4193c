"""What decisions cost: many questions about one input, and labels for many tickets.

Questions: 400 about one input of 1,000 tokens, against the prefill of that input alone, and against
one prompt of as many tokens as all of it; once with instructions, and once as short as they can be,
with all that is asked in the labels. Labels: for each ticket one choice among 4, and four of them,
against generating JSON under a constraint with the same fields and labels, by the same engine.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import harness
from harness import Bar, Contestant
from penstock import demo
from penstock.engines.openvino.engine import OpenVINOEngine
from penstock.engines.tasks import generated
from penstock.openai.responses import Answers
from penstock.types import (
    ChatRequest,
    ChoiceQuestion,
    DecideRequest,
    Option,
    PredicateQuestion,
    Question,
    Sampling,
    StructuredOutput,
)

LABELS = ("billing", "shipping", "technical", "refund")
FIELDS = ("category", "priority", "mood", "channel")
DEAREST = 1.5
"""400 questions, in prefills of the input."""
FASTER = 3.0
_fresh = itertools.count()


def _tickets(count: int) -> list[str]:
    """Tickets that no other call returns: none is in a cache."""
    texts = [json.loads(line)["ticket"] for line in demo.tickets_path().open(encoding="utf-8")]
    return [f"{next(_fresh)} {texts[number % len(texts)]}" for number in range(count)]


async def _input(engine: OpenVINOEngine, tokens: int) -> str:
    ids = await engine.tokenize(" ".join(_tickets(tokens // 10)))
    return await engine.detokenize(ids[:tokens])


async def _prefill(engine: OpenVINOEngine, tokens: int) -> None:
    """Read a new prompt by the same copy of the model."""
    question = ChoiceQuestion("", (Option("a"), Option("b")))
    await engine.decide(DecideRequest(await _input(engine, tokens), (question,)))


async def _questions(engine: OpenVINOEngine, tokens: int, count: int, short: int = 0) -> int:
    """Ask about a new input. Returns the tokens that were read."""
    questions: tuple[Question, ...] = tuple(
        ChoiceQuestion("", (Option(f"{number}y"), Option(f"{number}n")))
        if short
        else PredicateQuestion(f"Order {number}?")
        for number in range(count)
    )
    found = await engine.decide(DecideRequest(await _input(engine, tokens), questions))
    return found.usage.prompt_tokens


async def _decided(engine: OpenVINOEngine, count: int, fields: int) -> None:
    questions = tuple(
        ChoiceQuestion("", tuple(Option(f'"{field}":"{label}') for label in LABELS))
        for field in FIELDS[:fields]
    )
    begun = {"role": "assistant", "content": "{"}

    async def one(ticket: str) -> None:
        user = {"role": "user", "content": f"Keys: {', '.join(FIELDS[:fields])}\n{ticket}"}
        await engine.decide(DecideRequest([user, begun], questions))

    await asyncio.gather(*map(one, _tickets(count)))


async def _generated(engine: OpenVINOEngine, count: int, fields: int) -> None:
    schema = {
        "type": "object",
        "properties": {field: {"enum": list(LABELS)} for field in FIELDS[:fields]},
        "required": list(FIELDS[:fields]),
        "additionalProperties": False,
    }
    structured = StructuredOutput("json_schema", json.dumps(schema))
    sampling = Sampling(temperature=0.0, max_tokens=40 * fields, structured=structured)

    async def one(ticket: str) -> None:
        user = {"role": "user", "content": f"Keys: {', '.join(FIELDS[:fields])}\n{ticket}"}
        await Answers.of(generated(engine, ChatRequest([user], sampling, stream=False)))

    await asyncio.gather(*map(one, _tickets(count)))


def _cpu_seconds(engine: OpenVINOEngine) -> float:
    """CPU time of this process and the engine's."""
    process = engine._process
    assert process is not None
    assert process.pid is not None
    return time.process_time() + harness.processor_seconds(process.pid)


def main() -> int:
    """Run the comparisons. Returns the exit code."""
    parser = harness.parser(__doc__)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--questions", type=int, default=400)
    parser.add_argument("--tokens", type=int, default=1000)
    parser.add_argument("--tickets", type=int, default=2000)
    args = parser.parse_args()
    with asyncio.Runner() as runner:
        engine = OpenVINOEngine(args.model)
        runner.run(engine.start())
        size = runner.run(_questions(engine, args.tokens, args.questions))  # loads the copy
        short = runner.run(_questions(engine, args.tokens, args.questions, 1))
        runner.run(_generated(engine, 8, 1))

        def timed(make: Callable[..., Any], *arguments: int) -> float:
            start = _cpu_seconds(engine)
            runner.run(make(engine, *arguments))
            return _cpu_seconds(engine) - start

        questions = harness.compare(
            f"{args.questions} questions ({size} tokens) about {args.tokens} tokens",
            "CPU s",
            [
                Contestant("input alone", lambda: timed(_prefill, args.tokens)),
                Contestant("questions", lambda: timed(_questions, args.tokens, args.questions)),
                Contestant(
                    f"short ones ({short} tokens)",
                    lambda: timed(_questions, args.tokens, args.questions, 1),
                ),
                Contestant("as many tokens", lambda: timed(_prefill, min(size, 3900))),
            ],
            args.rounds,
            warmups=0,
        )
        labels = [
            harness.compare(
                f"{fields} of 4 labels for each of {args.tickets} tickets",
                "CPU s",
                [
                    Contestant("decide", partial(timed, _decided, args.tickets, fields)),
                    Contestant(
                        "constrained JSON", partial(timed, _generated, args.tickets, fields)
                    ),
                ],
                args.rounds,
                warmups=0,
            )
            for fields in (1, 4)
        ]
        runner.run(engine.stop())
    dearer = questions.ratio("questions", "input alone").median
    shorter = questions.ratio(f"short ones ({short} tokens)", "input alone").median
    bars = [
        Bar("questions, in prefills of the input", dearer, DEAREST),
        Bar("the shortest questions, in prefills of the input", shorter, DEAREST),
    ]
    for fields, one in zip((1, 4), labels, strict=True):
        faster = one.ratio("constrained JSON", "decide").median
        bars.append(Bar(f"{fields}: constrained JSON / decide", faster, FASTER, at_least=True))
    return harness.finish(args, [questions, *labels], bars)


if __name__ == "__main__":
    sys.exit(main())
