"""Checks of tests/clients that are known to fail, and why."""

# Chance decides these: they may pass.
SOMETIMES: set[tuple[str, str]] = {("llama-index", "streamed_structured")}
# By client and check, and where a check fails on one model only, that model.
EXPECTED: dict[tuple[str, ...], str] = {
    ("llama-index", "streamed_structured", "smol"): "nothing makes the model call a tool",
}


def expected(client: str, check: str, model: str) -> str | None:
    """Why the check fails; None if it must not."""
    return EXPECTED.get((client, check)) or EXPECTED.get((client, check, model))
