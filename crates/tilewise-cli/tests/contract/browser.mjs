// A browser for the tests of the page, and a server whose answers they write themselves.
import { createServer } from "node:http";

import { chromium } from "playwright-core";

const args = [
  "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
  "--disable-component-update", "--disable-sync",
];

export const launch = () => chromium.launch({ executablePath: "/usr/bin/chromium", args });

/** Collects what a page asks for, and errors that it did not expect. */
export function watch(page) {
  const asked = [], wrong = [];
  page.on("request", (request) => asked.push(request.url()));
  page.on("console", (message) => message.type() === "error" && wrong.push(message.text()));
  page.on("pageerror", (error) => wrong.push(error.message));
  return { asked, wrong };
}

/** Answers chats of a page as a test says: `next()` is the request that comes next, to be answered by its methods. */
export class Scripted {
  constructor() {
    this.requests = [];
    this.waiting = [];
    this.server = createServer((request, response) => {
      let body = "";
      request.on("data", (data) => (body += data));
      request.on("end", () => this.take(new Exchange(JSON.parse(body), response)));
    });
  }

  async listen() {
    await new Promise((ready) => this.server.listen(0, "127.0.0.1", ready));
    return `http://127.0.0.1:${this.server.address().port}/`;
  }

  /** Has a page's chats answered here; the page sees its own server. */
  async intercept(page, url) {
    await page.route("**/v1/chat/completions", (route) => route.continue({ url }));
  }

  take(exchange) {
    const waits = this.waiting.shift();
    if (waits) waits(exchange);
    else this.requests.push(exchange);
  }

  next() {
    const exchange = this.requests.shift();
    return exchange ? Promise.resolve(exchange) : new Promise((resolve) => this.waiting.push(resolve));
  }

  close() {
    this.server.closeAllConnections();
    this.server.close();
  }
}

class Exchange {
  constructor(body, response) {
    Object.assign(this, { body, response });
  }

  roles() {
    return this.body.messages.map((message) => message.role).join(" ");
  }

  send(data) {
    if (!this.response.headersSent) this.response.writeHead(200, { "content-type": "text/event-stream" });
    this.response.write(`data: ${JSON.stringify(data)}\n\n`);
  }

  say(content) {
    this.send({ choices: [{ index: 0, delta: { content } }] });
  }

  think(reasoning_content) {
    this.send({ choices: [{ index: 0, delta: { reasoning_content } }] });
  }

  end(finish_reason = "stop") {
    this.send({ choices: [{ index: 0, delta: {}, finish_reason }] });
    this.send({ choices: [], usage: { prompt_tokens: 11, completion_tokens: 22, prompt_tokens_details: { cached_tokens: 3 } } });
    this.response.end("data: [DONE]\n\n");
  }

  answer(content) {
    this.say(content);
    this.end();
  }

  refuse(status, type, body) {
    this.response.writeHead(status, { "content-type": type });
    this.response.end(body);
  }
}
