"""Chat: a conversation in, text out. It turns text into tokens and back; the engine generates."""

import asyncio
import copy
import logging
import math
import random
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from ...settings import Settings
from ..deadline import Deadline
from ..engine.base_engine import Engine, TokenStream
from ..engine.engine_metrics import EngineMetrics
from ..engine.sampling_params import SamplingOptions, SamplingParams
from ..engine.thought import ThoughtParams
from ..http.client import client_var
from ..metrics import Metrics
from ..models.admission import Admission
from ..models.device import Device
from ..models.hub import LOADING, fetch_adapter, fetch_model
from ..models.model import Model
from ..models.model_errors import (
    ContextExceeded,
    DeadlineExceeded,
    InvalidInput,
    LoadFailed,
    Overloaded,
    SourceError,
)
from ..models.progress_bar import weights_progress
from ..models.request_metrics import ModelMeter, RequestMeter, RequestMetrics, unregistered
from ..threads import run_in_pool
from .options import ChatOptions
from .output_parser import Chunk, OutputParser, TokenDecoder
from .prompt import ChatPrompt, PromptEncoder, TextPrompt
from .thinking import Opening, ThoughtSplitter, splitter, thought_params
from .tool_calls import SchemaRefused, ToolCallParser

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from ..engine.grammar import Grammar
    from .adapters import ChatAdapter, ChatAdapters
    from .grammar_compiler import GrammarCompiler

logger = logging.getLogger(__name__)

MAX_GRAMMARS = 16
"""Limit of the requests whose grammars are compiled or wait for it; most are cached"""


class Generation:
    """The sequences that answer one request, while they are generated."""

    def __init__(
        self,
        prompt_tokens: int,
        stream: TokenStream,
        parsers: Sequence[OutputParser],
        engine: Engine,
        eos_token_ids: Sequence[int],
        meter: RequestMeter,
    ) -> None:
        self.prompt_tokens = prompt_tokens
        self.meter = meter
        self._stream = stream
        self._parsers = parsers
        self._engine = engine
        self._eos_token_ids = frozenset(eos_token_ids)

    @property
    def sequences(self) -> int:
        return len(self._parsers)

    async def __aiter__(self) -> AsyncIterator[Chunk]:
        """The pieces of all sequences as they come.

        Raises Unavailable when the engine fails, DeadlineExceeded when the time is over.
        """
        stopped: set[int] = set()
        async for index, tokens, finished in self._stream:
            if index in stopped:
                continue
            parser = self._parsers[index]
            logprobs = self._stream.logprobs[index][parser.count : parser.count + len(tokens)]
            chunk, stop = parser.push(tokens, logprobs)
            if chunk.text or chunk.thought or chunk.tool_calls or chunk.logprobs:
                yield chunk
            if stop:
                stopped.add(index)
                self._engine.cancel(self._stream, index)
                yield self._finish(parser, "stop", stopped=True)
            elif finished:
                ended = bool(tokens) and tokens[-1] in self._eos_token_ids
                yield self._finish(parser, "stop" if ended else "length")

    def _finish(
        self, parser: OutputParser, reason: Literal["stop", "length"], *, stopped: bool = False
    ) -> Chunk:
        """The last chunk of a sequence."""
        chunk = parser.finish(parser.reason(reason), stopped=stopped)
        self.meter.ended(chunk.index, chunk.finish_reason or reason)
        return chunk


class ChatModel(Model):
    """A causal language model with a chat template."""

    type: ClassVar[str] = "chat"

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerFast",
        engine: Engine,
        grammars: "GrammarCompiler",
        *,
        eos_token_ids: Sequence[int],
        default_max_tokens: int,
        max_thinking_tokens: int = 0,
        tool_prompt: bool = False,
        default_sampling: SamplingOptions,
        admission: Admission,
        quantization: str | None = None,
        adapters: "ChatAdapters | None" = None,
    ) -> None:
        self._engine = engine
        self._grammars = grammars
        self._eos_token_ids = list(eos_token_ids)
        self._default_max_tokens = default_max_tokens
        self._max_thinking_tokens = max_thinking_tokens
        self._default_sampling = default_sampling
        self._admission = admission
        self._quantization = quantization
        self._tool_prompt = tool_prompt
        self._prompts = PromptEncoder(tokenizer, engine.max_length, tool_prompt=tool_prompt)
        if self._prompts.writes_tools:
            logger.info("the chat template has no tool calls: the service writes tools as text")
        self._tokenizer = tokenizer
        self._decoder = TokenDecoder(tokenizer)
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="tokenize")
        # Compiling a grammar can take seconds, and must not delay requests without one.
        self._grammar_executor = ThreadPoolExecutor(2, thread_name_prefix="grammar")
        self._grammars_waiting: list[ChatOptions] = []
        self._meter = unregistered()
        self._adapter = 0
        """Number of the adapter in the engine; 0 for the base model"""
        self._own_end_tokens: tuple[int, ...] = ()
        """The tokens that end the adapter's answers beside the base model's"""
        ready = adapters.ready.items() if adapters else ()
        self._refused_adapters = adapters.refused if adapters else {}
        self._variants: dict[str, ChatModel] = {
            name: self._with_adapter(adapter) for name, adapter in ready
        }

    @classmethod
    def load(
        cls,
        source: str,
        device: Device,
        settings: Settings,
        revision: str = "",
        adapters: Mapping[str, str] | None = None,
    ) -> Self:
        """Reads the weights and starts the engine. Blocks.

        revision: commit, tag or branch on the hub; empty for the newest.
        adapters: hub id or local folder of each adapter, by name.
        """
        path = fetch_model(
            source,
            "INFER_CHAT_MODEL",
            revision=revision,
            trust_remote_code=settings.trust_remote_code,
        )
        folders = {name: adapter_folder(each) for name, each in (adapters or {}).items()}
        with LOADING, weights_progress():
            from .loading import load_chat_model  # imports torch and transformers

            parts = load_chat_model(path, device, settings, folders)
        engine = parts.engine
        return cls(
            parts.tokenizer,
            engine,
            parts.grammars,
            eos_token_ids=parts.eos_token_ids,
            default_max_tokens=settings.default_max_tokens,
            max_thinking_tokens=settings.max_thinking_tokens,
            tool_prompt=settings.tool_prompt,
            default_sampling=parts.default_sampling,
            admission=Admission(
                engine.max_sequences + settings.max_queue,
                settings.kv_cache_tokens + settings.max_queue_tokens,
                slots=engine.max_sequences,
                slot_tokens=settings.kv_cache_tokens,
            ),
            quantization=parts.quantization,
            adapters=parts.adapters,
        )

    def _with_adapter(self, adapter: "ChatAdapter") -> "ChatModel":
        """The same model, engine and admission, answering with an adapter."""
        model = copy.copy(self)
        model.use_adapter(adapter)
        return model

    def use_adapter(self, adapter: "ChatAdapter") -> None:
        """Answers with this adapter from now on, and with its tokenizer if it has one."""
        self._adapter = adapter.number
        self._own_end_tokens = adapter.end_tokens
        if adapter.tokenizer is not None:
            self._tokenizer = adapter.tokenizer
            self._prompts = PromptEncoder(
                adapter.tokenizer, self._engine.max_length, tool_prompt=self._tool_prompt
            )
            self._decoder = TokenDecoder(adapter.tokenizer)

    def variant(self, name: str) -> "ChatModel":
        """The model with one of its adapters. Raises LoadFailed for one that could not be loaded."""
        if reason := self._refused_adapters.get(name):
            message = f"The adapter {name!r} could not be loaded: {reason}."
            raise LoadFailed(message, permanent=True)
        return self._variants[name]

    @property
    def refused_variants(self) -> Mapping[str, str]:
        return self._refused_adapters

    @property
    def alive(self) -> bool:
        return self._engine.alive

    def text(self, tokens: Sequence[int]) -> str:
        """The text of tokens, as an answer would show it."""
        return self._prompts.decode(tokens)

    @property
    def details(self) -> Mapping[str, str | None]:
        reason = self._engine.reason
        return {
            "engine": "sequential" if reason else "continuous",
            "engine_reason": reason,
            "attention": self._engine.attention,
            "attention_reason": self._engine.attention_reason,
            "cuda_graphs": "on" if self._engine.cuda_graphs else "off",
            "quantization": self._quantization,
        }

    def measure(self, metrics: Metrics, name: str) -> None:
        requests = metrics.group(RequestMetrics)
        requests.watch(name, self._engine.load)
        self.count_with(requests.of(name))
        for adapter, model in self._variants.items():
            model.count_with(requests.of(adapter))
        self._engine.meter = metrics.group(EngineMetrics).of(name, self._engine)

    def count_with(self, meter: ModelMeter) -> None:
        """Counts requests with this meter from now on."""
        self._meter = meter

    def unload(self) -> None:
        self._engine.stop()
        self._executor.shutdown(cancel_futures=True)
        self._grammar_executor.shutdown(cancel_futures=True)

    async def answer(
        self,
        conversation: ChatPrompt | TextPrompt,
        options: ChatOptions,
        resources: AsyncExitStack,
        deadline: Deadline | None = None,
    ) -> Generation:
        """Queues a request. Closing `resources` frees all that it holds.

        deadline: unlimited by default.

        Raises InvalidInput, Overloaded, Unavailable or DeadlineExceeded, and all of it before a
        token is generated.
        """
        deadline = deadline or Deadline(math.inf)
        operation = "text_completion" if isinstance(conversation, TextPrompt) else "chat"
        meter = RequestMeter(self._meter, operation)
        # Before any work, so that a refusal costs nothing.
        answer_tokens = options.max_tokens or self._default_max_tokens
        estimate = (conversation.estimated_tokens + answer_tokens) * options.n
        admitted = resources.enter_context(self._admission.enter(estimate, options.n))
        try:
            async with asyncio.timeout_at(deadline.time):
                encode = partial(self._encode, conversation, options)
                prompt, opening, thought = await run_in_pool(self._executor, encode)
                grammar = await self._compile_grammar(options, opening)
        except TimeoutError as error:
            raise DeadlineExceeded(deadline.seconds) from error
        params = self._params(prompt, conversation.name, options, grammar, thought)
        admitted.tokens = (len(prompt) + params[0].max_tokens) * options.n
        stream = resources.enter_context(self._generate(prompt, params, deadline, meter))
        parsers = [
            OutputParser(
                index,
                self._decoder,
                # A call that has to be made is no text.
                stop=() if options.must_call else options.stop,
                min_tokens=params[index].min_tokens,
                stop_token_ids=params[index].stop_token_ids,
                marks=self._marks(options, opening),
                thoughts=self._splitter(options, opening),
                parser=self._parser(options),
            )
            for index in range(options.n)
        ]
        ends = params[0].end_tokens(self._eos_token_ids)
        return Generation(len(prompt), stream, parsers, self._engine, ends, meter)

    def _marks(self, options: ChatOptions, opening: Opening) -> tuple[str, ...]:
        """The marks that the parsers of an answer look for."""
        # The layout has been read by now where there are tools, with their grammar.
        layout = self._prompts.layout if options.tools else None
        thinking = self._prompts.thinking if opening != "over" else None
        return (*(layout.marks if layout else ()), *(thinking.marks if thinking else ()))

    def _splitter(self, options: ChatOptions, opening: Opening) -> ThoughtSplitter:
        layout = self._prompts.layout if options.tools else None
        frame = (layout.prefix, layout.middle) if layout else None
        return splitter(self._prompts.thinking, opening, frame)

    def _parser(self, options: ChatOptions) -> ToolCallParser | None:
        layout = self._prompts.layout if options.tools else None
        if layout is None:
            return None
        free: Literal["text", "either"] = "text" if options.form is None else "either"
        answer = "call" if options.must_call else free
        hidden = self._decoder.special_in(layout.marks)
        return ToolCallParser(layout, answer, options.tools, hidden)

    @contextmanager
    def _generate(
        self,
        prompt: list[int],
        params: Sequence[SamplingParams],
        deadline: Deadline,
        meter: RequestMeter,
    ) -> Iterator[TokenStream]:
        """Leaving the block frees the request's slots in the batch."""
        stream = self._engine.submit(prompt, params, client_var.get())
        stream.meter = meter
        late = DeadlineExceeded(deadline.seconds)
        timer = asyncio.get_running_loop().call_at(deadline.time, stream.fail, late)
        try:
            with meter.submitted(len(prompt), len(params)):
                yield stream
                if stream.failed:  # an error that became the last event of the answer
                    meter.failed()
        finally:
            timer.cancel()
            self._engine.cancel(stream)

    async def _compile_grammar(self, options: ChatOptions, opening: Opening) -> "Grammar | None":
        """Raises InvalidInput or Overloaded."""
        if not options.tools and options.form is None:
            return None
        if len(self._grammars_waiting) >= MAX_GRAMMARS:
            raise Overloaded("Too many schemas wait to be compiled.")
        self._grammars_waiting.append(options)
        try:
            compiling = partial(self._grammar, options, opening)
            return await run_in_pool(self._grammar_executor, compiling)
        finally:
            self._grammars_waiting.pop()

    def _encode(
        self, conversation: ChatPrompt | TextPrompt, options: ChatOptions
    ) -> tuple[list[int], Opening, ThoughtParams | None]:
        """The prompt's tokens, and how the answer goes on. Blocks. Raises InvalidInput."""
        prompt = self._prompts.encode(conversation)
        self._check_known(prompt, conversation.name)
        opening = self._prompts.opening(conversation, prompt)
        return prompt, opening, self._thought(options, opening)

    def _params(
        self,
        prompt: Sequence[int],
        name: str,
        options: ChatOptions,
        grammar: "Grammar | None",
        thought: ThoughtParams | None,
    ) -> list[SamplingParams]:
        """The parameters of each sequence. Raises InvalidInput.

        name: of the prompt, for errors
        """
        max_tokens = self._max_tokens(prompt, options, name)
        sampling = self._default_sampling | options.sampling
        if "min_tokens" in self._default_sampling and "min_tokens" not in options.sampling:
            sampling["min_tokens"] = min(self._default_sampling["min_tokens"], max_tokens)
        if sampling.get("min_tokens", 0) > max_tokens:
            message = f"min_tokens: the answer has at most {max_tokens}"
            raise InvalidInput(message, "min_tokens")
        vocabulary = self._engine.vocabulary
        if any(token >= vocabulary for token in sampling.get("logit_bias", ())):
            raise InvalidInput(f"logit_bias: tokens go from 0 to {vocabulary - 1}", "logit_bias")
        if any(token >= vocabulary for token in sampling.get("stop_token_ids", ())):
            message = f"stop_token_ids: tokens go from 0 to {vocabulary - 1}"
            raise InvalidInput(message, "stop_token_ids")
        if self._own_end_tokens and not sampling.get("ignore_eos"):
            own = (*sampling.get("stop_token_ids", ()), *self._own_end_tokens)
            sampling["stop_token_ids"] = own
        seed = random.getrandbits(63) if options.seed is None else options.seed
        # Answer 0 is the one that a request for a single answer with this seed would get.
        seeds = [seed, *(random.Random(f"{seed}/{i}").getrandbits(63) for i in range(1, options.n))]
        return [
            SamplingParams(
                max_tokens=max_tokens,
                seed=each,
                grammar=grammar,
                thought=thought,
                adapter=self._adapter,
                **sampling,
            )
            for each in seeds
        ]

    def _thought(self, options: ChatOptions, opening: Opening) -> ThoughtParams | None:
        """The thought of each sequence, where the engine has to know of it."""
        thinking, limit = self._prompts.thinking, self._max_thinking_tokens
        has_grammar = bool(options.tools) or options.form is not None
        if thinking is None or opening == "over" or not (has_grammar or limit):
            return None
        return thought_params(
            thinking, opening, self._tokenizer, max_tokens=limit, must_call=options.must_call
        )

    def _check_known(self, prompt: Sequence[int], name: str) -> None:
        """Raises InvalidInput for a token of the client's, or the tokenizer's, that the model lacks.

        In a batch it would fail every request, on a GPU end the process.
        """
        highest, vocabulary = max(prompt, default=0), self._engine.vocabulary
        if highest >= vocabulary:
            text = self._prompts.token(highest)
            token = f"token {highest}" if text is None else f"token {highest}, {text!r},"
            message = f"{name}: the {token} is not among the {vocabulary} tokens of the model"
            raise InvalidInput(message, name)

    def _max_tokens(self, prompt: Sequence[int], options: ChatOptions, name: str) -> int:
        """Raises InvalidInput when prompt and answer do not fit the model or its KV cache."""
        limit, asked = self._engine.max_length, options.max_tokens
        room = limit - len(prompt)
        if room < 1:
            however = f"there are {len(prompt)} tokens in the {name}, which leaves no room"
            raise ContextExceeded(limit, however, name)
        if asked is not None and asked > room:
            however = f"the {name} and the answer need {len(prompt)} + {asked} tokens"
            raise ContextExceeded(limit, however, options.max_tokens_name)
        return asked or min(room, self._default_max_tokens)

    def _grammar(self, options: ChatOptions, opening: Opening) -> "Grammar | None":
        """The grammar of the answer; None for free text. Raises InvalidInput."""
        form = options.form
        thinking = self._prompts.thinking if opening != "over" else None
        if options.tools:
            if self._prompts.layout is None:
                raise InvalidInput(
                    "tools: the model's chat template writes no calls that can be read; with"
                    " INFER_TOOL_PROMPT=true the service describes the tools itself",
                    "tools",
                )
            try:
                return self._grammars.tool_calls(
                    self._prompts.layout,
                    options.tools,
                    free_text=not options.must_call,
                    parallel=options.parallel_tool_calls,
                    form=form,
                    thinking=thinking,
                )
            except SchemaRefused as error:
                raise InvalidInput(f"{error.param}: {error}", error.param) from error
            except ValueError as error:
                raise InvalidInput(f"tools: {error}", "tools") from error
        if form is None:
            return None
        try:
            return self._grammars.form(form, thinking)
        except ValueError as error:
            raise InvalidInput(f"{form.param}: {error}", form.param) from error


def adapter_folder(source: str) -> Path | SourceError:
    """The folder of an adapter, or why there is none: that must not fail the base model."""
    try:
        return fetch_adapter(source)
    except SourceError as error:
        return error
