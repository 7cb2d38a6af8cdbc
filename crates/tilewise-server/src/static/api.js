// What the page asks of its server.

import { key } from "./store.js";

/** An answer that is no success, with its status; 0 where no server answered. */
export class ServerError extends Error {
  constructor(message, status = 0) {
    super(message);
    this.status = status;
  }
}

function headers(more = {}) {
  const given = key();
  return given ? { ...more, Authorization: `Bearer ${given}` } : more;
}

async function ask(path, options) {
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServerError("The server cannot be reached.");
  }
  if (!response.ok) throw new ServerError(await why(response), response.status);
  return response;
}

/** What an answer that is no success says; a proxy's may be no JSON. */
async function why(response) {
  const text = await response.text().catch(() => "");
  try {
    const { error, message } = JSON.parse(text);
    const said = error?.message ?? error ?? message;
    if (typeof said === "string") return said;
  } catch {
    // Its status says enough.
  }
  return `The server answered ${response.status} ${response.statusText}`.trim();
}

export const get = (path) => ask(path, { headers: headers() });
export const json = async (path) => (await get(path)).json();

/** The chunks of a streamed chat completion, until it says that it is done. */
export async function* complete(body, signal) {
  const options = { method: "POST", headers: headers({ "Content-Type": "application/json" }), body: JSON.stringify(body), signal };
  const response = await ask("v1/chat/completions", options);
  for await (const data of events(response)) {
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new ServerError(chunk.error.message ?? "The server failed.");
    yield chunk;
  }
  throw new ServerError("The connection ended before the answer did.");
}

/** The data of a stream's events as they come; comments and names are passed over. */
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await read(reader);
    if (done) return;
    text += value;
    const lines = text.split(/\r?\n/);
    text = lines.pop();
    for (const line of lines) {
      if (line.startsWith("data:")) yield line.slice(5).trim();
    }
  }
}

async function read(reader) {
  try {
    return await reader.read();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServerError("The connection broke.");
  }
}
