// The page in a browser: a chat is streamed, the numbers and charts move, and nobody else is asked for anything.
// Usage: node page.mjs, with SERVER, and SCREENSHOT for a file to write.
import assert from "node:assert/strict";

import { chromium } from "playwright-core";

const server = process.env.SERVER;
const args = [
  "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
  "--disable-component-update", "--disable-sync",
];
const browser = await chromium.launch({ executablePath: "/usr/bin/chromium", args });
try {
  const page = await browser.newPage({ viewport: { width: 1280, height: 900 } });
  const asked = [], wrong = [];
  page.on("request", (request) => asked.push(request.url()));
  page.on("console", (message) => message.type() === "error" && wrong.push(message.text()));
  page.on("pageerror", (error) => wrong.push(error.message));
  const text = (id) => page.locator(`#${id}`).textContent();
  const heights = async (id) => {
    const points = await page.locator(`#${id} polyline`).getAttribute("points");
    return points.trim().split(" ").map((point) => point.split(",")[1]);
  };

  await page.goto(server);
  await page.waitForFunction(() => document.getElementById("health").textContent === "ready");
  assert.equal(await text("model"), process.env.MODEL);
  assert.equal(await text("running"), "0");

  // A text that grows is a stream.
  const prompt = "Write a class for a binary tree with all its methods";
  await page.fill("#max-tokens", "900");
  await page.fill("#temperature", "0");
  await page.fill("#prompt", prompt);
  const lengths = await page.evaluate(() => {
    window.lengths = [];
    new MutationObserver(() => {
      const said = document.querySelector("#messages .assistant");
      if (said) window.lengths.push(said.textContent.length);
    }).observe(document.getElementById("messages"), { childList: true, subtree: true, characterData: true });
    return window.lengths.length;
  });
  assert.equal(lengths, 0);
  await page.click("#send");
  await page.waitForFunction(() => document.querySelector("#messages .assistant small"), null, { timeout: 60_000 });
  const grown = await page.evaluate(() => window.lengths);
  assert.ok(new Set(grown).size > 10, `the text came in ${new Set(grown).size} pieces`);
  assert.match(await page.locator("#messages .assistant small").textContent(), /\d+ \+ \d+ tokens, .* per second/);
  assert.match(await page.locator("#messages .user").textContent(), /binary tree/);

  // What others have running is seen live, and drawn.
  const others = Array.from({ length: 6 }, (_, index) => fetch(`${server}/v1/completions`, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ prompt: `# ${index}\ndef f${index}(`, max_tokens: 900, ignore_eos: true }),
  }));
  await page.waitForFunction(() => Number(document.getElementById("running").textContent) > 0, null, { timeout: 30_000 });
  await page.waitForFunction(() => Number(document.getElementById("speed").textContent) > 0, null, { timeout: 30_000 });
  await page.screenshot({ path: process.env.SCREENSHOT });
  for (const answer of await Promise.all(others)) assert.equal(answer.status, 200);
  await page.waitForFunction(() => document.getElementById("running").textContent === "0", null, { timeout: 30_000 });
  for (const chart of ["speed-chart", "usage-chart", "requests-chart"]) {
    assert.ok(new Set(await heights(chart)).size > 1, `${chart} is a flat line`);
  }

  // A new conversation begins empty, and an answer that is stopped says so; this one would not end by itself so soon.
  await page.route("**/v1/chat/completions", (route) => {
    route.continue({ postData: JSON.stringify({ ...route.request().postDataJSON(), ignore_eos: true }) });
  });
  await page.click("#clear");
  assert.equal(await page.locator("#messages li").count(), 0);
  await page.fill("#prompt", prompt);
  await page.click("#send");
  await page.waitForSelector("#stop:visible");
  await page.click("#stop");
  await page.waitForFunction(() => [...document.querySelectorAll("#messages .assistant small")].at(-1)?.textContent === "stopped");

  const foreign = asked.filter((url) => !url.startsWith(server) && !url.startsWith("data:"));
  assert.deepEqual([foreign, wrong], [[], []]);
  console.log(`${asked.length} requests, all to the server; the text came in ${new Set(grown).size} pieces`);
} finally {
  await browser.close();
}
