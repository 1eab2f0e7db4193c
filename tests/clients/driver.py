"""What the drivers share: where the server is, what they ask, and one JSON line for each check.

A driver runs in the environment of its client, so this imports nothing but the standard library.
"""

import asyncio
import inspect
import json
import os
import signal
import traceback

URL = os.environ["SERVER_URL"]
V1 = f"{URL}/v1"
MODEL = os.environ["SERVER_MODEL"]
EMBEDDER = os.environ["SERVER_EMBEDDER"]
QUESTION = os.environ["SERVER_QUESTION"]
ANSWER = os.environ["SERVER_ANSWER"]  # empty: nobody knows what this model says
MESSAGES = [{"role": "user", "content": QUESTION}]
TOO_LONG = "word " * 10_000
TIMEOUT_S = 600

CATEGORIES = ("billing", "shipping", "technical", "account", "refund", "feature")
PRIORITIES = ("low", "normal", "high", "urgent")
PARAMETERS = {
    "type": "object",
    "properties": {"category": {"enum": [*CATEGORIES]}, "priority": {"enum": [*PRIORITIES]}},
    "required": ["category", "priority"],
    "additionalProperties": False,
}
ABOUT = "Send a ticket to a team."
TOOL = {
    "type": "function",
    "function": {"name": "route", "description": ABOUT, "parameters": PARAMETERS},
}

checks = {}
# What a client prints must not be among the lines.
lines = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)


def check(function):
    """Makes a function, or a coroutine function, a check of that name: it fails if it raises."""
    checks[function.__name__] = function
    return function


def same(text):
    """The text is the model's answer to the question."""
    assert text == ANSWER if ANSWER else text.strip(), text


def routed(arguments):
    """These are arguments of the tool."""
    assert set(arguments) == {"category", "priority"}, arguments
    assert arguments["category"] in CATEGORIES, arguments
    assert arguments["priority"] in PRIORITIES, arguments


def raises(kind, call, *args, **kwargs):
    """The exception of this kind that the call raises."""
    try:
        result = call(*args, **kwargs)
    except kind as error:
        return error
    raise AssertionError(f"no {kind} but {result!r}")


def too_late(number, frame):
    raise TimeoutError(f"no result within {TIMEOUT_S} s")


def run():
    """Runs the checks that SERVER_CHECKS names, or all."""
    signal.signal(signal.SIGALRM, too_late)
    with asyncio.Runner() as runner:
        run_in(runner)


def run_in(runner):
    # One loop for all: a client may keep connections from one check to the next.
    for name in os.environ.get("SERVER_CHECKS", "").split() or checks:
        signal.alarm(TIMEOUT_S)
        try:
            result = checks[name]()
            if inspect.isawaitable(result):
                runner.run(awaited(result))
            line = {"check": name, "ok": True}
        except Exception:
            line = {"check": name, "ok": False, "error": traceback.format_exc()}
        signal.alarm(0)
        print(json.dumps(line), file=lines, flush=True)
        os.read(0, 1)  # until it is noted what went over the wire


async def awaited(result):
    return await result
