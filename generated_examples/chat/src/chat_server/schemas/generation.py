"""The fields that all requests for generated text share: sampling, limits, constrained output.

The names are OpenAI's and, beyond those, vLLM's.
"""

import json
from collections.abc import Mapping, Sequence, Sized
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictBool,
    StrictInt,
    model_validator,
)

from ..serving.chat.options import ChatOptions, OutputFormat
from ..serving.engine.sampling_params import SamplingOptions
from ..serving.models.model_errors import InvalidInput
from .base import APIRequest, Text

MOST_BIASES = 1024
MOST_STOP_TOKENS = 128
MOST_CHOICES = 1024

HINTS = (
    "cache_prompt", "cache_salt", "chat_id", "guided_decoding_backend", "id_slot", "metadata", "prediction",
    "priority", "prompt_cache_key", "prompt_cache_options", "prompt_cache_retention", "request_id",
    "rid", "safety_identifier", "service_tier", "store", "user", "verbosity",
)  # fmt: skip
"""Fields that do not change the answer, and so may be ignored"""

UNSUPPORTED: Mapping[str, Sequence[object]] = {
    # OpenAI
    "audio": (),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "modalities": (["text"],),
    "moderation": (),
    "prompt": ("", []),
    "web_search_options": (),
    # vLLM
    "add_special_tokens": (False,),
    "allowed_token_ids": ([],),
    "bad_words": ([],),
    "best_of": (1,),
    "chat_template": (),
    "documents": ([],),
    "echo": (False,),
    "guided_whitespace_pattern": (),
    "include_reasoning": (True,),
    "include_stop_str_in_output": (False,),
    "kv_transfer_params": (),
    "length_penalty": (1,),
    "logits_processors": ([],),
    "mm_processor_kwargs": ({},),
    "prompt_embeds": (),
    "prompt_logprobs": (),
    "repetition_detection": (),
    "return_token_ids": (False,),
    "return_tokens_as_token_ids": (False,),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True,),
    "structural_tag": (),
    "suffix": ("",),
    "thinking_token_budget": (),
    "truncate_prompt_tokens": (),
    "truncation_side": (),
    "use_beam_search": (False,),
    "vllm_xargs": ({},),
    # SGLang
    "custom_logit_processor": (),
    "ebnf": (),
    "input_ids": (),
    "lora_path": (),
    "no_stop_trim": (False,),
    "regex": (),
    "return_hidden_states": (False,),
    "separate_reasoning": (True,),
    "session_params": (),
    "stop_regex": (),
    "stream_reasoning": (True,),
    # TGI
    "decoder_input_details": (False,),
    "do_sample": (True,),
    "guideline": (),
    "return_full_text": (False,),
    "tool_prompt": (),
    "truncate": (),
    "typical_p": (1,),
    "watermark": (False,),
    # llama.cpp
    "dry_multiplier": (0,),
    "dynatemp_range": (0,),
    "grammar": ("",),
    "json_schema": (),
    "lora": ([],),
    "mirostat": (0,),
    "n_keep": (0,),
    "n_predict": (),
    "n_probs": (0,),
    "post_sampling_probs": (False,),
    "reasoning_budget": (-1,),
    "reasoning_format": ("auto", "deepseek"),
    "repeat_last_n": (),
    "repeat_penalty": (1,),
    "return_progress": (False,),
    "samplers": ([],),
    "t_max_predict_ms": (0,),
    "timings_per_token": (False,),
    "top_n_sigma": (-1,),
    "xtc_probability": (0,),
}
"""Fields that would change the answer and are not supported, with the values that ask for nothing."""

Number = Annotated[float, Field(allow_inf_nan=False, strict=True)]
Schema = dict[str, Any]


def at_most(count: int) -> BeforeValidator:
    """Checks the size before the entries: a million errors would block the event loop."""

    def check(value: object) -> object:
        if isinstance(value, Sized) and len(value) > count:
            raise ValueError(f"has more than {count} entries")
        return value

    return BeforeValidator(check)


Choices = Annotated[list[Text], Field(min_length=1), at_most(MOST_CHOICES)]


class StreamOptions(BaseModel):
    include_usage: StrictBool | None = Field(
        None, description="Send the token usage at the end of the stream"
    )
    include_obfuscation: StrictBool | None = Field(
        None, description="Accepted; nothing is obfuscated"
    )


class StructuredOutputs(BaseModel):
    """Constraint of the output, as in vLLM: one of these fields."""

    model_config = ConfigDict(extra="forbid")

    json_: Schema | str | None = Field(None, alias="json", description="JSON schema")
    regex: Text | None = Field(None, description="Regular expression that the whole output matches")
    choice: Choices | None = Field(None, description="Texts, of which the output is one")
    grammar: Text | None = Field(None, description="Grammar in Lark or GBNF")
    json_object: StrictBool | None = Field(None, description="Any JSON object")


class GenerationRequest(APIRequest):
    hints: ClassVar[Sequence[str]] = HINTS
    unsupported: ClassVar[Mapping[str, Sequence[object]]] = UNSUPPORTED

    model: str = Field(description="Id of the model, see GET /v1/models")
    stream: StrictBool | None = Field(None, description="Stream the output as server-sent events")
    stream_options: StreamOptions | None = Field(None, description="Only with stream")
    n: StrictInt | None = Field(None, ge=1, le=128, description="Number of completions")
    max_tokens: StrictInt | None = Field(
        None, ge=1, description="Maximum number of generated tokens"
    )
    max_completion_tokens: StrictInt | None = Field(
        None, ge=1, description="Newer name of max_tokens, and takes precedence over it"
    )
    min_tokens: StrictInt | None = Field(
        None, ge=0, description="Minimum number of generated tokens"
    )
    ignore_eos: StrictBool | None = Field(
        None, description="Generate max_tokens, past end-of-sequence tokens"
    )
    stop: Text | Annotated[list[Text], Field(max_length=4, fail_fast=True)] | None = Field(
        None, description="Up to 4 strings that end the output and are not part of it"
    )
    stop_token_ids: (
        Annotated[
            list[Annotated[StrictInt, Field(ge=0)]],
            Field(fail_fast=True),
            at_most(MOST_STOP_TOKENS),
        ]
        | None
    ) = Field(None, description="Ids of tokens that end the output and are not part of it")
    seed: StrictInt | None = Field(
        None, description="Seed of the sampling: the same request gets the same output"
    )
    temperature: Number | None = Field(
        None, ge=0, le=2, description="Sampling temperature; 0: the most likely token"
    )
    top_p: Number | None = Field(
        None, ge=0, le=1, description="Nucleus sampling: cumulative probability to keep"
    )
    top_k: StrictInt | None = Field(
        None, ge=-1, description="Number of most likely tokens to keep; 0 or -1: all"
    )
    min_p: Number | None = Field(
        None, ge=0, le=1, description="Minimum probability, relative to the most likely token"
    )
    frequency_penalty: Number | None = Field(
        None,
        ge=-2,
        le=2,
        description="Subtracted from a token's logit for each time it was generated",
    )
    presence_penalty: Number | None = Field(
        None, ge=-2, le=2, description="Subtracted from a token's logit once it was generated"
    )
    repetition_penalty: Number | None = Field(
        None,
        gt=0,
        le=100,
        description="Divides positive logits of tokens in prompt and output, or multiplies negative ones",
    )
    logit_bias: (
        Annotated[
            dict[Annotated[int, Field(ge=0)], Annotated[Number, Field(ge=-100, le=100)]],
            at_most(MOST_BIASES),
        ]
        | None
    ) = Field(None, description="Token id → number that is added to its logit")
    structured_outputs: StructuredOutputs | None = Field(
        None, description="Constraint of the output, in vLLM's form"
    )
    guided_json: Schema | str | None = Field(
        None, description="Older name of structured_outputs.json"
    )
    guided_regex: Text | None = Field(None, description="Older name of structured_outputs.regex")
    guided_choice: Choices | None = Field(
        None, description="Older name of structured_outputs.choice"
    )
    guided_grammar: Text | None = Field(
        None, description="Older name of structured_outputs.grammar"
    )

    @model_validator(mode="after")
    def check_form(self) -> Self:
        # InvalidInput passes through pydantic, which would blame the request as a whole.
        forms = self.forms()
        if len(forms) > 1:
            message = f"{forms[1].param}: is not supported together with {forms[0].param}"
            raise InvalidInput(message, forms[1].param)
        if self.structured_outputs and not any("structured" in form.param for form in forms):
            message = "structured_outputs: needs one of json, regex, choice, grammar, json_object"
            raise InvalidInput(message, "structured_outputs")
        if self.ignore_eos and forms:
            message = f"ignore_eos: is not supported together with {forms[0].param}"
            raise InvalidInput(message, "ignore_eos")
        return self

    @property
    def wants_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)

    def forms(self) -> list[OutputFormat]:
        """The forms that the fields ask for; more than one is refused."""
        given = self.structured_outputs or StructuredOutputs()
        asked: list[tuple[Literal["json", "regex", "choice", "grammar"], object, str]] = [
            ("json", given.json_, "structured_outputs.json"),
            ("json", {} if given.json_object else None, "structured_outputs.json_object"),
            ("regex", given.regex, "structured_outputs.regex"),
            ("choice", given.choice, "structured_outputs.choice"),
            ("grammar", given.grammar, "structured_outputs.grammar"),
            ("json", self.guided_json, "guided_json"),
            ("regex", self.guided_regex, "guided_regex"),
            ("choice", self.guided_choice, "guided_choice"),
            ("grammar", self.guided_grammar, "guided_grammar"),
        ]
        return [
            OutputFormat(kind, as_schema(value, param) if kind == "json" else value, param)
            for kind, value, param in asked
            if value is not None
        ]

    def generation_options(self) -> dict[str, Any]:
        """The arguments of `ChatOptions` that these fields give."""
        names = set(SamplingOptions.__annotations__) - {"top_logprobs"}
        sampling = self.model_dump(include=names, exclude_none=True)
        if self.top_k == -1:
            sampling["top_k"] = 0
        stops = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        newer = self.max_completion_tokens is not None
        return {
            "sampling": sampling,
            "max_tokens": self.max_completion_tokens if newer else self.max_tokens,
            "max_tokens_name": "max_completion_tokens" if newer else "max_tokens",
            "seed": self.seed,
            "stop": tuple(stop for stop in stops if stop),
            "n": self.n or 1,
            "form": next(iter(self.forms()), None),
        }

    def options(self) -> ChatOptions:
        return ChatOptions(**self.generation_options())


def as_schema(value: object, param: str) -> object:
    """The schema as an object; vLLM also accepts it as JSON text."""
    if not isinstance(value, str):
        return value
    try:
        schema = json.loads(value)
    except (ValueError, RecursionError):
        schema = None
    if not isinstance(schema, dict):
        raise InvalidInput(f"{param}: is not a JSON object", param)
    return schema
