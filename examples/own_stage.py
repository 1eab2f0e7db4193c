"""A stage of one's own between two of an engine: label tickets, look up who is in charge, draft a
line to them.
"""

import json
from collections.abc import Mapping
from typing import Any

from penstock.batch import (
    OpenVINOEngineProcessorConfig,
    Processor,
    ProcessorConfig,
    StatefulStage,
    build_processor,
    stop_engines,
)
from penstock.demo import SCHEMA, tickets_path


class Directory:
    """Looks up a team by category. A worker may load what it needs in `start`."""

    def __init__(self, teams: Mapping[str, str]) -> None:
        self.teams = teams

    async def process(self, row: dict[str, Any]) -> dict[str, Any]:
        """The columns that this stage adds."""
        return {"team": self.teams.get(row["category"], "front desk")}


class DirectoryStage(StatefulStage):
    """The stage: what runs, and what it reads."""

    fn = Directory

    def get_required_input_keys(self) -> dict[str, str]:
        """The columns it reads."""
        return {"category": "What the ticket is about."}


def ask(row: dict[str, Any]) -> dict[str, Any]:
    """The request of a row."""
    params = {"temperature": 0.0, "max_tokens": 100, "structured_outputs": {"json": SCHEMA}}
    return {"messages": [{"role": "user", "content": row["ticket"]}], "sampling_params": params}


def main() -> None:
    """Run both over ten tickets, one engine for all."""
    label = build_processor(
        OpenVINOEngineProcessorConfig(model_source="demo", engine="demo"),
        preprocess=ask,
        postprocess=lambda row: {"ticket": row["ticket"], **json.loads(row["generated_text"])},
    )
    teams = {"billing": "accounting", "technical": "engineering"}
    assign = Processor(ProcessorConfig(), [DirectoryStage(fn_constructor_kwargs={"teams": teams})])
    with tickets_path().open(encoding="utf-8") as file:
        tickets = [{"ticket": json.loads(next(file))["ticket"]} for _ in range(10)]
    for row in assign(label(tickets)):
        print(f"{row['team']:12} {row['priority']:7} {row['ticket'][:80]}")
    stop_engines()


if __name__ == "__main__":
    main()
