"use strict";

// What the page shows comes from this server alone: the chat by /v1/chat/completions, the rest by /v1/loads.

const SECONDS = 120;
const element = (id) => document.getElementById(id);
const conversation = [];
const history = [];
let running = null;

function headers() {
  const key = element("key").value;
  return key ? { "Content-Type": "application/json", Authorization: `Bearer ${key}` } : { "Content-Type": "application/json" };
}

// Asks for a key once the server has refused to answer without one.
function showKey(status) {
  if (status === 401) element("key-field").hidden = false;
}

function addMessage(role, text) {
  const item = document.createElement("li");
  item.className = role;
  item.textContent = text;
  element("messages").append(item);
  item.scrollIntoView({ block: "end" });
  return item;
}

// The data of a stream's events as they come; comments and names are passed over.
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    text += value;
    let end;
    while ((end = text.indexOf("\n\n")) >= 0) {
      const event = text.slice(0, end);
      text = text.slice(end + 2);
      for (const line of event.split("\n")) {
        if (line.startsWith("data: ") && line !== "data: [DONE]") yield JSON.parse(line.slice(6));
      }
    }
  }
}

async function answer(item) {
  const request = {
    messages: conversation,
    temperature: Number(element("temperature").value),
    max_tokens: Number(element("max-tokens").value),
    stream: true,
    stream_options: { include_usage: true },
  };
  const started = performance.now();
  const response = await fetch("v1/chat/completions", {
    method: "POST", headers: headers(), body: JSON.stringify(request), signal: running.signal,
  });
  if (!response.ok) {
    showKey(response.status);
    throw new Error((await response.json()).error.message);
  }
  const thought = document.createElement("span");
  thought.className = "thought";
  const said = document.createElement("span");
  item.replaceChildren(thought, said);
  let first = 0, usage = null, reason = null;
  try {
    for await (const chunk of events(response)) {
      if (chunk.error) throw new Error(chunk.error.message);
      usage = chunk.usage ?? usage;
      const choice = chunk.choices[0];
      if (!choice) continue;
      reason = choice.finish_reason ?? reason;
      thought.textContent += choice.delta.reasoning_content ?? "";
      said.textContent += choice.delta.content ?? "";
      if (choice.delta.content && !first) first = performance.now();
      item.scrollIntoView({ block: "end" });
    }
  } finally {
    conversation.push({ role: "assistant", content: said.textContent });
  }
  const note = document.createElement("small");
  const seconds = (performance.now() - (first || started)) / 1000;
  const speed = usage && usage.completion_tokens > 1 ? (usage.completion_tokens - 1) / seconds : 0;
  note.textContent = usage
    ? `${usage.prompt_tokens} + ${usage.completion_tokens} tokens, ${usage.prompt_tokens_details.cached_tokens} cached, ` +
      `first after ${Math.round(first - started)} ms, ${speed.toFixed(1)} per second, ${reason}`
    : `${reason}`;
  item.append(note);
}

async function send(event) {
  event.preventDefault();
  const prompt = element("prompt").value.trim();
  if (!prompt || running) return;
  element("prompt").value = "";
  conversation.push({ role: "user", content: prompt });
  addMessage("user", prompt);
  const item = addMessage("assistant", "…");
  running = new AbortController();
  element("stop").hidden = false;
  element("send").disabled = true;
  try {
    await answer(item);
  } catch (error) {
    if (error.name === "AbortError") {
      item.append(Object.assign(document.createElement("small"), { textContent: "stopped" }));
    } else {
      item.classList.add("wrong");
      item.textContent = error.message;
      conversation.pop();
    }
  } finally {
    running = null;
    element("stop").hidden = true;
    element("send").disabled = false;
  }
}

// A line with the area under it; the newest value is at the right.
function draw(id, values, top) {
  const height = (value) => (40 - 38 * Math.min(value / (top || 1), 1)).toFixed(2);
  const points = values.map((value, index) => `${SECONDS - values.length + index + 1},${height(value)}`);
  const shape = (kind, attributes) => {
    const shape = document.createElementNS("http://www.w3.org/2000/svg", kind);
    for (const [name, value] of Object.entries(attributes)) shape.setAttribute(name, value);
    return shape;
  };
  const first = SECONDS - values.length + 1;
  element(id).replaceChildren(
    shape("polygon", { class: "area", points: `${first},40 ${points.join(" ")} ${SECONDS},40` }),
    shape("polyline", { class: "edge", points: points.join(" ") }),
  );
}

function show(load) {
  element("running").textContent = load.num_running_reqs;
  element("waiting").textContent = load.num_waiting_reqs;
  element("speed").textContent = Math.round(load.gen_throughput);
  element("hits").textContent = `${Math.round(load.cache_hit_rate * 100)} %`;
  element("usage-now").textContent = `${load.num_used_tokens} of ${load.max_total_num_tokens} tokens`;
  history.push(load);
  if (history.length > SECONDS) history.shift();
  const of = (value) => history.map(value);
  const speeds = of((load) => load.gen_throughput);
  const requests = of((load) => load.num_running_reqs + load.num_waiting_reqs);
  element("speed-max").textContent = `up to ${Math.round(Math.max(...speeds))}`;
  element("requests-max").textContent = `up to ${Math.max(...requests)}`;
  draw("speed-chart", speeds, Math.max(...speeds));
  draw("usage-chart", of((load) => load.token_usage), 1);
  draw("requests-chart", requests, Math.max(...requests));
}

async function look() {
  const health = element("health");
  try {
    const response = await fetch("v1/loads", { headers: headers() });
    showKey(response.status);
    if (!response.ok) throw new Error(response.status === 401 ? "needs an API key" : `answers ${response.status}`);
    show((await response.json()).loads[0]);
    if (!element("model").dataset.known) {
      const models = await (await fetch("v1/models", { headers: headers() })).json();
      element("model").textContent = models.data[0].id;
      element("model").dataset.known = "yes";
    }
    const alive = await fetch("health");
    health.textContent = alive.ok ? "ready" : "not ready";
    health.className = alive.ok ? "" : "wrong";
  } catch (error) {
    health.textContent = error.message;
    health.className = "wrong";
  }
  setTimeout(look, 1000);
}

element("form").addEventListener("submit", send);
element("stop").addEventListener("click", () => running?.abort());
element("clear").addEventListener("click", () => {
  conversation.length = 0;
  element("messages").replaceChildren();
});
element("prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey) send(event);
});
look();
