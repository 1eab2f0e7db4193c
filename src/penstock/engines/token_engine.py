"""The OpenAI level for engines that work on prompts and tokens: templates, parameter checks, n
answers, echo.

Such an engine implements `continue_prompt`, and the tasks `tokenize` and `detokenize`; it sets
`capabilities` and `template` when it starts.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable, Mapping, Sized
from functools import partial
from typing import Any, TypeVar

import msgspec
from msgspec import structs

from penstock.engines.base import LLMEngine
from penstock.engines.beams import Beams, beams_of
from penstock.engines.decisions.answers import decisions
from penstock.engines.decisions.checks import check_questions
from penstock.engines.decisions.prompts import RequestTexts, asked
from penstock.engines.decisions.trie import Shares
from penstock.engines.sampling import (
    check_sampling,
    check_token_ids,
    prompt_sampling,
    seed_of_choice,
    with_seed,
)
from penstock.engines.tasks import Batches, mapped, merged
from penstock.engines.templates.chat_template import ChatTemplate, takes_tools, template_options
from penstock.errors import ModelNotFoundError, PenstockError, UnsupportedError, nearest
from penstock.openai.media.images import Images
from penstock.openai.media.parts import Videos, seen
from penstock.openai.parsers.harmony import HarmonyCalls
from penstock.openai.parsers.json_calls import JsonCalls
from penstock.openai.parsers.reader import AnswerReader
from penstock.openai.parsers.table import forms_of
from penstock.openai.parsers.text import CallForm, Offered, Thinking
from penstock.openai.tools import call_constraint, check_tools, content_text, strict_calls
from penstock.types import (
    ChatRequest,
    CompletionRequest,
    DecideRequest,
    Decisions,
    Delta,
    FinishReason,
    Message,
    Sampling,
    StructuredOutput,
    TokenizeRequest,
    TokenizerInfo,
    Tokens,
    Usage,
)

T = TypeVar("T")
MESSAGES_AT_ONCE = 1000
"""A conversation of more messages is rendered in a thread: it would block the event loop for some
milliseconds.
"""


class GenerateRequest(msgspec.Struct, frozen=True):
    """One prompt, one answer. `special_tokens` says whether the tokenizer adds its own (such as
    BOS) to a text; `kv_transfer_params` are for the engine's KV connector. Special tokens that are
    part of one of `marks` stay in the answer's text. `batch` is as in `ChatRequest`. `images` and
    `videos` are URIs or the bytes of files; each stands where the prompt has an `image_mark` or a
    `video_mark`. With `beams` its answers come whole, together, each under its `Delta.index`.
    """

    prompt: str | list[int]
    sampling: Sampling
    adapter: str | None = None
    stream: bool = True
    special_tokens: bool = False
    kv_transfer_params: dict[str, Any] | None = None
    marks: tuple[str, ...] = ()
    batch: bool = False
    images: Images = ()
    videos: Images = ()
    image_mark: str = ""
    video_mark: str = ""
    beams: Beams | None = None


async def _aside(messages: Sized, work: Callable[[], T]) -> T:
    """The result of `work`, which renders messages: by a thread, if they are many."""
    return await asyncio.to_thread(work) if len(messages) > MESSAGES_AT_ONCE else work()


class TokenEngine(LLMEngine):
    """An engine whose model continues token sequences. Errors name it by `model_kind`.

    `tool_call_parser` and `reasoning_parser` name the forms of calls and thoughts
    (`openai.parsers.table`); None: what the chat template's marks say. `chat_template` takes the
    place of the model's own, `template_variables` are further names for either.
    """

    template: ChatTemplate
    chat_template: str | None = None
    template_variables: Mapping[str, Any] | None = None
    model_kind = "this model"
    tool_call_parser: str | None = None
    reasoning_parser: str | None = None

    def continue_prompt(self, request: GenerateRequest) -> Batches:
        """Continue one prompt. Closing the batches early aborts the request."""
        raise NotImplementedError

    def generate(self, request: ChatRequest | CompletionRequest) -> Batches:
        if isinstance(request, CompletionRequest):
            return self._completions(request)
        if len(request.messages) <= MESSAGES_AT_ONCE:  # nearly all conversations
            return self._chat(request)
        return self._long_chat(request)

    async def _long_chat(self, request: ChatRequest) -> Batches:
        async with contextlib.aclosing(await asyncio.to_thread(self._chat, request)) as answers:
            async for batch in answers:
                yield batch

    def _chat(self, request: ChatRequest) -> Batches:
        self._check_task("chat")
        request = with_seed(request) if self.deterministic else request
        tools = None if request.tool_choice == "none" else request.tools
        source = request.chat_template or self.template.source
        if self.template.named:
            source = self.template.chosen(tools, request.chat_template)
        as_text = None if takes_tools(source) else "hermes"  # see tools_as_text
        forms = forms_of(source, self.tool_call_parser, self.reasoning_parser, as_text)
        choice = request.tool_choice
        sampling, forced = self._with_tools(request.sampling, tools, choice, forms.calls)
        check_sampling(sampling, request.n, self.capabilities, self.name)
        self._check_adapter(request.adapter)
        thinking = forms.thinking
        if request.continue_final_message and not (thinking and thinking.open_in(_last(request))):
            thinking = None
        text = ""
        images: Images = ()
        videos: Images = ()
        inputs = self.capabilities.inputs
        if not request.prompt_token_ids or thinking is not None:
            messages, images, videos = seen(request.messages, inputs, self.name)
            text = self.template.render(messages, **template_options(request))
        if request.prompt_token_ids:
            check_token_ids(request.prompt_token_ids, "prompt_token_ids")
        prompt = request.prompt_token_ids or text
        thinks = thinking is not None and (request.continue_final_message or thinking.begun(text))
        calls = forms.calls if tools or isinstance(forms.calls, HarmonyCalls) else None
        if thinking is not None and sampling.structured is not None and not thinking.closed(text):
            sampling = self._after_thoughts(sampling, sampling.structured, thinking, thinks)
        single = GenerateRequest(
            prompt,
            sampling,
            request.adapter,
            request.stream,
            kv_transfer_params=request.kv_transfer_params,
            marks=(
                *(thinking.marks if thinking is not None else ()),
                *(calls.marks if calls is not None and not forced else ()),
            ),
            batch=request.batch,
            images=images,
            videos=videos,
            image_mark=self.template.mark_of(text, "image", len(images), request.chat_template)
            if "image" in inputs
            else "",
            video_mark=self.template.mark_of(text, "video", len(videos), request.chat_template)
            if "video" in inputs
            else "",
        )
        answers = self._answers(single, request.n)
        if calls is not None or thinking is not None:
            reader = AnswerReader(
                request.request_id or str(prompt),
                calls=calls,
                offered=Offered(tools or ()),
                thinking=thinking,
                thinks=thinks,
                forced=forced,
                one_call=not request.parallel_tool_calls,
            )
            answers = mapped(answers, reader.translate)
        if thinking is not None or isinstance(calls, HarmonyCalls):
            answers = self._with_counted_thoughts(answers)
        text = echoed(request)
        return mapped(answers, Echo(text, tokens=False)) if text else answers

    async def _with_counted_thoughts(self, answers: Batches) -> Batches:
        """The batches, with the tokens of each answer's thoughts in its usage: as many as the
        tokenizer makes of their text.
        """
        thoughts: dict[int, str] = {}
        async with contextlib.aclosing(answers):
            async for batch in answers:
                for at, delta in enumerate(batch):
                    if delta.reasoning:
                        thoughts[delta.index] = thoughts.get(delta.index, "") + delta.reasoning
                    usage = delta.usage
                    if usage is None or delta.finish_reason is None or delta.index not in thoughts:
                        continue
                    with contextlib.suppress(PenstockError):  # only the count is missing
                        tokens = await self.encoded(thoughts.pop(delta.index), False, False)
                        count = min(len(tokens.ids), usage.completion_tokens)
                        usage = structs.replace(usage, reasoning_tokens=count)
                        batch[at] = structs.replace(delta, usage=usage)
                yield batch

    def _after_thoughts(
        self, sampling: Sampling, structured: StructuredOutput, thinking: Thinking, begun: bool
    ) -> Sampling:
        """Let the constraint begin after thoughts, which the prompt may have `begun`. An engine
        that cannot do that constrains the answer from its first token on.
        """
        if not self.capabilities.thoughts_first and begun:
            raise UnsupportedError(
                f"the {self.name} engine cannot constrain an answer after its thoughts, which the"
                " prompt begins",
                param=structured.param,
            )
        if not self.capabilities.thoughts_first:
            return sampling
        structured = msgspec.structs.replace(
            structured, after=thinking.closers, openers=() if begun else thinking.openers
        )
        return msgspec.structs.replace(sampling, structured=structured)

    def _rendered(self, request: ChatRequest) -> str:
        """The prompt of a conversation. Raises `RequestError`."""
        messages, images, videos = seen(request.messages, self.capabilities.inputs, self.name)
        if images or videos:
            why = f"the {self.name} engine counts no tokens of images"
            raise UnsupportedError(why, param="messages")
        return self.template.render(messages, **template_options(request))

    async def encoded(self, text: str, special_tokens: bool, names: bool) -> Tokens:
        """The tokens of a text, with their names if those are wanted."""
        raise self._unsupported("tokens")

    async def answer(self, task: str, request: Any) -> Any:
        if task == "tokens":
            return await self._tokens(request)
        if task == "decide":
            return await self._decide(request)
        if task == "tokenizer_info":
            template = self.template.source if "chat" in self.capabilities.tasks else None
            return TokenizerInfo(self.name, template, self.template.names)
        return await super().answer(task, request)

    async def label_shares(
        self, texts: RequestTexts, request: DecideRequest
    ) -> tuple[list[Shares], Usage]:
        """The probabilities of each branch's labels. Raises `RequestError`."""
        raise self._unsupported("decide")

    async def _decide(self, request: DecideRequest) -> Decisions:
        self._check_task("decide")
        self._check_adapter(request.adapter)
        check_questions(request.questions)
        texts = await self._asked(request)
        shares, usage = await self.label_shares(texts, request)
        return decisions(request.questions, texts.branches, shares, usage)

    async def _asked(self, request: DecideRequest) -> RequestTexts:
        """The texts of a request, with its images. Raises `RequestError`."""
        files: tuple[bytes, ...] = ()
        if not isinstance(request.input, str):
            messages, images, videos = seen(request.input, self.capabilities.inputs, self.name)
            if videos:
                why = f"the {self.name} engine makes no decisions about videos"
                raise UnsupportedError(why, param="messages")
            request = msgspec.structs.replace(request, input=messages)
            files = (await self._files(images, ()))[0] if images else ()

        def rendered(messages: list[Message], continued: bool) -> str:
            return self.template.render(
                messages,
                override=request.chat_template,
                variables=request.chat_template_kwargs,
                continue_final_message=continued,
            )

        write = partial(asked, request, rendered if "chat" in self.capabilities.tasks else None)
        texts = await _aside(() if isinstance(request.input, str) else request.input, write)
        if files:
            whole = "".join([texts.head, *(branch.text for branch in texts.branches)])
            mark = self.template.mark_of(whole, "image", len(files), request.chat_template)
            texts = msgspec.structs.replace(texts, images=files, image_mark=mark)
        return texts

    async def _files(self, images: Images, videos: Images) -> tuple[tuple[bytes, ...], Videos]:
        """The files of images and of videos, as in `Submit`. Raises `RequestError` for those that
        are not taken.
        """
        raise UnsupportedError(
            f"the {self.name} engine makes no decisions about images", param="messages"
        )

    async def _tokens(self, request: TokenizeRequest) -> Tokens:
        text = request.prompt
        if request.chat is not None:
            self._check_task("chat")
            text = await _aside(request.chat.messages, partial(self._rendered, request.chat))
        return await self.encoded(text, request.special_tokens, request.names)

    def _completions(self, request: CompletionRequest) -> Batches:
        self._check_task("completions")
        request = with_seed(request) if self.deterministic else request
        sampling, only_prompt = prompt_sampling(request)
        check_sampling(sampling, request.n, self.capabilities, self.name)
        self._check_adapter(request.adapter)
        prompt = request.prompt_token_ids or request.prompt
        if isinstance(prompt, list):
            check_token_ids(prompt, "prompt")
        single = GenerateRequest(
            prompt,
            sampling,
            request.adapter,
            request.stream and not only_prompt,
            request.special_tokens,
            request.kv_transfer_params,
            batch=request.batch,
        )
        answers = self._answers(single, request.n)
        if only_prompt:
            answers = mapped(answers, without_answer)
        return self._with_echo(request, answers) if request.echo else answers

    async def _with_echo(self, request: CompletionRequest, answers: Batches) -> Batches:
        prompt = request.prompt
        async with contextlib.aclosing(answers):
            text = prompt if isinstance(prompt, str) else await self.detokenize(prompt)
            echo = Echo(text, keep=request.sampling.prompt_logprobs is not None)
            async for batch in answers:
                yield [echo(delta) for delta in batch]

    def _answers(self, request: GenerateRequest, n: int) -> Batches:
        if request.sampling.extra and (beams := beams_of(request.sampling, n)) is not None:
            if beams.width > 1:
                return self.continue_prompt(structs.replace(request, beams=beams))
            greedy = structs.replace(request.sampling, temperature=0.0)
            return self.continue_prompt(structs.replace(request, sampling=greedy))
        return self.continue_prompt(request) if n == 1 else self._fan_out(request, n)

    def _fan_out(self, request: GenerateRequest, n: int) -> Batches:
        """n requests with their own seeds, merged. The prefix cache shares the prompt."""
        seed = request.sampling.seed
        first = random.getrandbits(31) if seed is None else seed
        samplings = (
            structs.replace(request.sampling, seed=seed_of_choice(first, index))
            for index in range(n)
        )
        return merged(
            [self.continue_prompt(structs.replace(request, sampling=s)) for s in samplings]
        )

    def _check_task(self, task: str) -> None:
        if task not in self.capabilities.tasks:
            raise self._unsupported(f"{task} with {self.model_kind}")

    def _with_tools(
        self,
        sampling: Sampling,
        tools: list[dict[str, Any]] | None,
        choice: str | dict[str, Any] | None,
        form: CallForm,
    ) -> tuple[Sampling, bool]:
        """What tools make of the sampling, and whether the model must call one.

        A call that must be made is a constraint on the answer. It takes the place of the request's
        own (`response_format`), as in OpenAI's API and vLLM: that one is for answers in text. A
        call that the model may choose to make must follow the schema of a strict function, if the
        engine can constrain that and the form of the calls has marks.
        """
        check_tools(tools, choice)
        if not tools:
            return sampling, False
        if (constraint := call_constraint(tools, choice)) is not None:
            if constraint.kind not in self.capabilities.structured:
                raise UnsupportedError(
                    f"the {self.name} engine cannot require tool calls", param="tool_choice"
                )
            return structs.replace(sampling, structured=constraint), True
        if sampling.structured is not None or not self.capabilities.triggers:
            return sampling, False
        if isinstance(form, JsonCalls) and form.triggers:
            constraint = strict_calls(tools, choice)
            if constraint is not None:
                constraint = structs.replace(constraint, triggers=form.triggers)
                sampling = structs.replace(sampling, structured=constraint)
        return sampling, False

    def _check_adapter(self, adapter: str | None) -> None:
        if adapter is not None and adapter not in self.adapters:
            hint = nearest(adapter, self.adapters)
            raise ModelNotFoundError(
                f"no adapter '{adapter}' is loaded. {hint}".rstrip(), param="model"
            )


class Echo:
    """Puts a prompt before each answer: its text and, with `tokens`, the log probabilities of its
    tokens, if the answer has some. `keep`: the field `prompt_logprobs` keeps them too.
    """

    def __init__(self, text: str, *, keep: bool = False, tokens: bool = True) -> None:
        self._text = text
        self._keep = keep
        self._tokens = tokens
        self._begun: set[int] = set()

    def __call__(self, delta: Delta) -> Delta:
        if delta.index in self._begun:
            return delta
        self._begun.add(delta.index)
        text, prompt = self._text + delta.text, delta.prompt_logprobs
        if not self._tokens:
            return msgspec.structs.replace(delta, text=text)
        return msgspec.structs.replace(
            delta,
            text=text,
            logprobs=delta.logprobs if prompt is None else prompt + (delta.logprobs or ()),
            prompt_logprobs=prompt if self._keep else None,
        )


def echoed(request: ChatRequest) -> str:
    """What stands before the answers of a chat with `echo`: the text of its last message, if the
    answer continues that or both are the assistant's.
    """
    same = request.continue_final_message or not request.add_generation_prompt
    if not request.echo or not (same or request.messages[-1].get("role") == "assistant"):
        return ""
    return _last(request)


def _last(request: ChatRequest) -> str:
    """The text of the last message."""
    return content_text(request.messages[-1].get("content"))


def without_answer(delta: Delta) -> Delta:
    """A delta of a request for the prompt alone: what was generated is dropped."""
    usage = delta.usage and msgspec.structs.replace(delta.usage, completion_tokens=0)
    reason: FinishReason | None = delta.finish_reason and "length"
    logprobs = None if delta.logprobs is None else ()
    return msgspec.structs.replace(
        delta,
        text="",
        token_ids=(),
        logprobs=logprobs,
        usage=usage,
        finish_reason=reason,
        stop=None,
    )
