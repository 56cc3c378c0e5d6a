// A service through OpenAI's own client: prints each step that it did, and fails on anything odd.
// OPENAI_BASE_URL and OPENAI_API_KEY say where the service is and how to get in.

import assert from "node:assert/strict";
import OpenAI, { toFile } from "openai";

const api = new OpenAI({ maxRetries: 0 });
const hello = {
  model: "tiny-chat",
  messages: [{ role: "user", content: "hello" }],
  max_tokens: 8,
  temperature: 0,
};
const call = {
  ...hello,
  tools: [
    {
      type: "function",
      function: {
        name: "get_weather",
        parameters: {
          type: "object",
          properties: {
            place: { type: "string", maxLength: 8 },
            unit: { enum: ["celsius", "fahrenheit"] },
          },
          required: ["place", "unit"],
          additionalProperties: false,
        },
      },
    },
  ],
  tool_choice: "required",
  parallel_tool_calls: false,
  max_tokens: 300,
  temperature: 1,
  seed: 1,
};

const steps = {
  async models() {
    const { data } = await api.models.list();
    assert.deepEqual(data.map((model) => model.id), ["tiny-chat", "tiny-embeddings"]);
  },

  async chat() {
    const answer = await api.chat.completions.create(hello);
    assert.equal(answer.choices[0].finish_reason, "length");
    assert.equal(answer.usage.completion_tokens, 8);

    // Ends only if the service closes the stream after [DONE]: this client waits for it.
    const options = { stream: true, stream_options: { include_usage: true } };
    const stream = await api.chat.completions.create({ ...hello, ...options });
    let text = "";
    let usage;
    for await (const chunk of stream) {
      text += chunk.choices[0]?.delta.content ?? "";
      usage = chunk.usage ?? usage;
    }
    assert.equal(text, answer.choices[0].message.content);
    assert.deepEqual(usage, answer.usage);
  },

  // The client itself adds up the deltas.
  async tools() {
    const [whole] = (await api.chat.completions.create(call)).choices;
    const stream = api.chat.completions.stream(call);
    const deltas = [];
    stream.on("tool_calls.function.arguments.delta", (event) => deltas.push(event.arguments_delta));
    const [streamed] = (await stream.finalChatCompletion()).choices;
    assert.equal(streamed.finish_reason, "tool_calls");
    assert.equal(streamed.message.tool_calls.length, 1);
    const { id, function: called } = streamed.message.tool_calls[0];
    assert.ok(id);
    assert.equal(called.name, "get_weather");
    assert.equal(called.arguments, whole.message.tool_calls[0].function.arguments);
    assert.deepEqual(Object.keys(JSON.parse(called.arguments)), ["place", "unit"]);
    assert.ok(deltas.length > 6);
    assert.equal(deltas.join(""), called.arguments);
  },

  // A call that max_tokens cut off goes back, as a loop of calls and results sends it.
  async history() {
    const [cut] = (await api.chat.completions.create({ ...call, max_tokens: 40 })).choices;
    assert.equal(cut.finish_reason, "length");
    const [{ id, function: called }] = cut.message.tool_calls;
    assert.throws(() => JSON.parse(called.arguments), SyntaxError);
    const result = { role: "tool", tool_call_id: id, content: "Error: invalid JSON" };
    const messages = [...hello.messages, cut.message, result];
    const [again] = (await api.chat.completions.create({ ...call, messages })).choices;
    assert.equal(again.message.tool_calls.length, 1);
  },

  async responses() {
    const asked = { model: "tiny-chat", input: "hello", max_output_tokens: 8, temperature: 0 };
    const answer = await api.responses.create(asked);
    assert.equal(answer.status, "incomplete");
    assert.equal(answer.usage.output_tokens, 8);
    let text = "";
    let last;
    for await (const event of await api.responses.create({ ...asked, stream: true })) {
      if (event.type === "response.output_text.delta") text += event.delta;
      last = event;
    }
    assert.equal(last.type, "response.incomplete");
    assert.equal(text, answer.output_text);
    assert.deepEqual(last.response.usage, answer.usage);

    const [{ function: tool }] = call.tools;
    const tools = [{ type: "function", strict: false, ...tool }];
    const must = { tools, tool_choice: "required", parallel_tool_calls: false, seed: 1 };
    const stream = api.responses.stream({ model: "tiny-chat", input: "hello", ...must });
    const { output } = await stream.finalResponse();
    assert.deepEqual(output.map((item) => item.name), ["get_weather"]);
    assert.deepEqual(Object.keys(JSON.parse(output[0].arguments)), ["place", "unit"]);
  },

  async embeddings() {
    const input = ["hello world", "a"];
    const create = (format) =>
      api.embeddings.create({ model: "tiny-embeddings", input, encoding_format: format });
    const [numbers, decoded] = [await create("float"), await create(undefined)];
    for (const index of [0, 1]) {
      const expected = numbers.data[index].embedding;
      const given = decoded.data[index].embedding;
      assert.equal(given.length, expected.length);
      given.forEach((number, i) => assert.ok(Math.abs(number - expected[i]) < 1e-6));
      assert.ok(Math.abs(Math.hypot(...expected) - 1) < 1e-5);
    }
  },

  async files() {
    const content = Buffer.from(Array.from({ length: 100_000 }, (_, i) => i % 256));
    const upload = { file: await toFile(content, "data.bin"), purpose: "user_data" };
    const file = await api.files.create(upload);
    assert.equal(file.bytes, content.length);
    const listed = [];
    for await (const { id } of api.files.list()) listed.push(id);
    assert.deepEqual(listed, [file.id]);
    assert.deepEqual(await api.files.retrieve(file.id), file);
    const response = await api.files.content(file.id);
    assert.deepEqual(Buffer.from(await response.arrayBuffer()), content);
    assert.equal((await api.files.delete(file.id)).deleted, true);
    await assert.rejects(api.files.retrieve(file.id), OpenAI.NotFoundError);
  },

  // Without OpenAI's envelope the client's message would be "400 status code (no body)".
  async errors() {
    const create = (change) => api.chat.completions.create({ ...hello, ...change });
    const stranger = new OpenAI({ apiKey: "sk-wrong", maxRetries: 0 });
    const long = [{ role: "user", content: "word ".repeat(20_000) }];
    const { AuthenticationError, BadRequestError, NotFoundError } = OpenAI;
    const unknown = [NotFoundError, 404, "model_not_found", "unknown"];
    const refusals = [
      [() => stranger.models.list(), AuthenticationError, 401, "invalid_api_key", "key"],
      [() => create({ model: "unknown" }), ...unknown],
      [() => create({ model: "unknown", stream: true }), ...unknown],
      [() => create({ max_tokens: 0 }), BadRequestError, 400, "invalid_value", "max_tokens"],
      [() => create({ messages: long }), BadRequestError, 400, "context_length_exceeded", "2048"],
      [() => api.get("/nowhere"), NotFoundError, 404, null, "/v1/nowhere"],
      [() => api.delete("/models"), OpenAI.APIError, 405, null, "Method Not Allowed"],
    ];
    for (const [send, kind, status, code, word] of refusals) {
      await assert.rejects(send, (error) => {
        assert.equal(error.constructor, kind);
        assert.equal(error.status, status);
        assert.equal(error.code, code);
        assert.ok(error.message.startsWith(`${status} `), error.message);
        assert.ok(error.message.includes(word), error.message);
        assert.ok(!error.message.includes("no body"), error.message);
        return true;
      });
    }
  },
};

for (const [name, step] of Object.entries(steps)) {
  await step();
  console.log(name);
}
