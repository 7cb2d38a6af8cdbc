// What the server is doing, asked once a second and drawn over the last two minutes.

import { get, json } from "./api.js";

const SECONDS = 120;
const history = [];
const element = (id) => document.getElementById(id);
let timer = 0;
let isKnown = false;

/** A line with the area under it; the newest value is at the right. */
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

function say(text, isWrong) {
  element("health").textContent = text;
  element("health").className = isWrong ? "wrong" : "";
}

/**
 * Asks now and from then on: `known` is told the model, `refused` when a key is needed. After that, nothing is asked
 * until `watch` is called again.
 */
export async function watch(known, refused) {
  clearTimeout(timer);
  timer = 0;
  try {
    if (!document.hidden) await look(known);
  } catch (error) {
    say(error.status === 401 ? "needs an API key" : error.status ? `answers ${error.status}` : "cannot be reached", true);
    if (error.status === 401) {
      isKnown = false;
      return refused();
    }
  }
  // Two calls may have waited for their answers at once; one goes on.
  clearTimeout(timer);
  timer = setTimeout(() => watch(known, refused), 1000);
}

async function look(known) {
  show((await json("v1/loads")).loads[0]);
  if (!isKnown) {
    known((await json("v1/models")).data[0]);
    isKnown = true;
  }
  try {
    await get("health");
    say("ready", false);
  } catch (error) {
    if (error.status !== 503) throw error;
    say("not ready", true);
  }
}
