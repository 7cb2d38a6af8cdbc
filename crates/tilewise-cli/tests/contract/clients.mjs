// Vercel's AI SDK takes the server for OpenAI's. Usage: node --test clients.mjs, with SERVER and MODEL.
import assert from "node:assert/strict";
import test from "node:test";

import { createOpenAI } from "@ai-sdk/openai";
import { generateObject, generateText, stepCountIs, streamText, tool } from "ai";
import OpenAI from "openai";
import { zodResponseFormat } from "openai/helpers/zod";
import { z } from "zod";

const baseURL = `${process.env.SERVER}/v1`;
const model = createOpenAI({ baseURL, apiKey: "none" })(process.env.MODEL);
const city = z.object({ city: z.enum(["Oslo", "Rome"]) });
const asked = { model, prompt: "How is the weather in Rome?", temperature: 0 };

test("a text, whole and as a stream", async () => {
  const whole = await generateText({ ...asked, maxOutputTokens: 16 });
  let text = "";
  for await (const delta of streamText({ ...asked, maxOutputTokens: 16 }).textStream) text += delta;
  assert.ok(whole.text);
  assert.equal(text, whole.text);
  assert.equal(whole.finishReason, "length");
});

test("an object, and a loop of tools", async () => {
  const { object } = await generateObject({ ...asked, schema: city, maxOutputTokens: 80 });
  assert.ok(["Oslo", "Rome"].includes(object.city));
  const called = [];
  const execute = async (input) => {
    called.push(input.city);
    return "Sunny";
  };
  const weather = tool({ description: "The weather", inputSchema: city, execute });
  const steps = { tools: { weather }, toolChoice: "required", stopWhen: stepCountIs(3), maxOutputTokens: 120 };
  assert.equal((await generateText({ ...asked, ...steps })).steps.length, 3);
  assert.equal(called.length, 3);
});

test("a conversation goes on, by references to items", async () => {
  const user = { role: "user", content: asked.prompt };
  const first = await generateText({ model, temperature: 0, messages: [user], maxOutputTokens: 16 });
  const messages = [user, ...first.response.messages, user];
  assert.ok((await generateText({ model, temperature: 0, messages, maxOutputTokens: 16 })).text);
});

test("what openai-node parses goes back", async () => {
  const client = new OpenAI({ baseURL, apiKey: "none", maxRetries: 0, timeout: 60_000 });
  const user = { role: "user", content: asked.prompt };
  const more = { model: process.env.MODEL, temperature: 0, max_tokens: 60, response_format: zodResponseFormat(city, "city") };
  const first = (await client.chat.completions.parse({ ...more, messages: [user] })).choices[0].message;
  assert.ok(first.parsed.city);
  const again = await client.chat.completions.parse({ ...more, messages: [user, first, user] });
  assert.ok(again.choices[0].message.parsed.city);
});
