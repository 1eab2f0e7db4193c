"""A stage that adds a number, and processors of such stages."""

from penstock.batch import Processor, ProcessorConfig, StatefulStage
from penstock.errors import RequestError


class Add:
    """Adds a number; `log` is told of its life."""

    def __init__(self, number=1, log=None):
        self.number = number
        self.log = log if log is not None else []

    async def start(self):
        self.log.append("start")

    async def process(self, row):
        if row["x"] == "poison":
            raise RequestError("that is no number")
        return {"x": row["x"] + self.number}

    async def stop(self):
        self.log.append("stop")


class AddStage(StatefulStage):
    fn = Add

    def get_required_input_keys(self):
        return {"x": "A number."}


def numbers(count):
    return [{"id": number, "x": number} for number in range(count)]


def adding(*additions, config=None, **options):
    config = config or ProcessorConfig()
    return Processor(config, [AddStage(fn_constructor_kwargs={"number": n}) for n in additions], **options)


async def all_of(stream):
    return [row async for row in stream]
