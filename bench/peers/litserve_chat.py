"""Chat behind LitServe's OpenAI spec, as its documents do it: `litserve_chat.py MODEL PORT`."""

import sys
from collections.abc import Iterator
from threading import Thread
from typing import Any

import litserve
import torch
from litserve.specs.openai import ChatCompletionRequest
from transformers import AutoModelForCausalLM, AutoTokenizer, TextIteratorStreamer

TIMEOUT = 300.0
"""Seconds. The default of 30 would refuse the last of 16 requests that wait for each other."""


class ChatAPI(litserve.LitAPI):
    def setup(self, device: str) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
        model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.bfloat16)
        self.model = model.to(device).eval()

    def decode_request(self, request: ChatCompletionRequest) -> dict[str, Any]:
        messages = [{"role": turn.role, "content": turn.content} for turn in request.messages]
        inputs = self.tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        return {**inputs.to(self.model.device), "max_new_tokens": request.max_tokens}

    def predict(self, inputs: dict[str, Any]) -> Iterator[dict[str, Any]]:
        streamer = TextIteratorStreamer(self.tokenizer, skip_prompt=True, skip_special_tokens=True)
        sequences: list[torch.Tensor] = []

        def generate() -> None:
            sequences.append(self.model.generate(**inputs, do_sample=False, streamer=streamer))

        thread = Thread(target=generate)
        thread.start()
        for text in streamer:
            yield {"content": text}
        thread.join()
        prompt = inputs["input_ids"].shape[1]
        total = sequences[0].shape[1]
        yield {
            "content": "",
            "prompt_tokens": prompt,
            "completion_tokens": total - prompt,
            "total_tokens": total,
        }

    def encode_response(self, pieces: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        for piece in pieces:
            yield {"role": "assistant", **piece}


if __name__ == "__main__":
    server = litserve.LitServer(
        ChatAPI(spec=litserve.OpenAISpec()), accelerator="cpu", timeout=TIMEOUT
    )
    server.run(host="127.0.0.1", port=int(sys.argv[2]), generate_client_file=False)
