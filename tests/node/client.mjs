// The service at argv[2] through OpenAI's own client; prints what it did, fails on anything odd.

import assert from "node:assert/strict";
import OpenAI, { toFile } from "openai";

const api = new OpenAI({ baseURL: `${process.argv[2]}/v1`, apiKey: "unused", maxRetries: 0 });
const hello = {
  model: "tiny-chat",
  messages: [{ role: "user", content: "hello" }],
  max_tokens: 8,
  temperature: 0,
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
    const refusals = [
      [() => api.chat.completions.create({ ...hello, max_tokens: 0 }), 400, "max_tokens"],
      [() => api.chat.completions.create({ ...hello, model: "unknown" }), 404, "unknown"],
      [() => api.get("/nowhere"), 404, "/v1/nowhere"],
      [() => api.delete("/models"), 405, "Method Not Allowed"],
    ];
    for (const [call, status, word] of refusals) {
      await assert.rejects(call, (error) => {
        assert.ok(error instanceof OpenAI.APIError);
        assert.equal(error.status, status);
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
