// OpenAI's JavaScript SDK takes every answer for one of its own. Usage: node --test openai.mjs, with SERVER and MODEL.
import assert from "node:assert/strict";
import test from "node:test";

import OpenAI from "openai";

const client = new OpenAI({ baseURL: `${process.env.SERVER}/v1`, apiKey: "none", maxRetries: 0, timeout: 60_000 });
const model = process.env.MODEL;
const messages = [{ role: "user", content: "Write a function that adds two numbers" }];
const greedy = { model, messages, temperature: 0, max_tokens: 24 };
const chat = (more) => client.chat.completions.create({ ...greedy, ...more });
const content = async (more) => (await chat(more)).choices[0].message.content;

test("models", async () => {
  assert.deepEqual((await client.models.list()).data.map((card) => card.id), [model]);
});

test("a chat, whole and as a stream", async () => {
  const whole = await chat();
  let text = "", usage = null;
  for await (const chunk of await chat({ stream: true, stream_options: { include_usage: true } })) {
    text += chunk.choices[0]?.delta.content ?? "";
    usage = chunk.usage ?? usage;
  }
  assert.equal(text, whole.choices[0].message.content);
  assert.deepEqual([usage.prompt_tokens, usage.completion_tokens], [whole.usage.prompt_tokens, 24]);
});

test("a stream that is left is no error, and the next request is served", async () => {
  const stream = await chat({ stream: true, max_tokens: 400, ignore_eos: true });
  for await (const chunk of stream) if (chunk.choices[0]?.delta.content) break;
  assert.ok(stream.controller.signal.aborted);
  assert.ok(await content());
});

test("a required tool is called by its schema", async () => {
  const parameters = {
    type: "object",
    properties: { city: { enum: ["Oslo", "Rome"] } },
    required: ["city"],
    additionalProperties: false,
  };
  const tools = [{ type: "function", function: { name: "get_weather", parameters } }];
  const asked = { ...greedy, max_tokens: 120, tools, tool_choice: "required" };
  const call = (await chat(asked)).choices[0].message.tool_calls[0];
  assert.ok(["Oslo", "Rome"].includes(JSON.parse(call.function.arguments).city));
  const streamed = (await client.chat.completions.stream(asked).finalMessage()).tool_calls[0];
  assert.deepEqual(streamed.function, call.function);
});

test("an answer obeys its schema", async () => {
  const schema = { type: "object", properties: { count: { enum: [1, 2] } }, required: ["count"], additionalProperties: false };
  const format = { type: "json_schema", json_schema: { name: "f", schema, strict: true } };
  assert.ok([1, 2].includes(JSON.parse(await content({ response_format: format, max_tokens: 60 })).count));
});

test("logprobs, several choices, a stop string", async () => {
  const { choices } = await chat({ logprobs: true, top_logprobs: 2, n: 2, max_tokens: 4 });
  const tops = choices.map((choice) => choice.logprobs.content.map((token) => token.top_logprobs.length));
  assert.deepEqual(tops, [[2, 2, 2, 2], [2, 2, 2, 2]]);
  const text = await content();
  const stop = text.slice(8, 11);
  assert.equal(await content({ stop }), text.slice(0, text.indexOf(stop)));
});

test("responses, whole and as a stream", async () => {
  const asked = { model, input: messages[0].content, temperature: 0, max_output_tokens: 24 };
  const whole = await client.responses.create(asked);
  assert.equal(whole.output_text, await content());
  let text = "";
  for await (const event of await client.responses.create({ ...asked, stream: true })) {
    if (event.type === "response.output_text.delta") text += event.delta;
  }
  assert.equal(text, whole.output_text);
});

test("errors are of their kind", async () => {
  await assert.rejects(chat({ model: "other" }), (error) => error instanceof OpenAI.NotFoundError && error.code === "model_not_found");
  await assert.rejects(chat({ top_p: 2 }), (error) => error instanceof OpenAI.BadRequestError && error.param === "top_p");
});
