// The page in a browser, with the embedded model: a chat is streamed, the numbers and charts move, and nobody else is
// asked for anything.
// Usage: node page.mjs, with SERVER, MODEL, and SCREENSHOT for a file to write; KEY where the server asks for one.
import assert from "node:assert/strict";

import { launch, watch } from "./browser.mjs";

const server = process.env.SERVER;
const browser = await launch();
try {
  const page = await browser.newPage({ viewport: { width: 1200, height: 900 } });
  const { asked, wrong } = watch(page);
  const text = (id) => page.locator(`#${id}`).textContent();
  const isText = (id, text) => page.waitForFunction(([id, text]) => document.getElementById(id).textContent === text, [id, text]);
  const heights = async (id) => {
    const points = await page.locator(`#${id} polyline`).getAttribute("points");
    return points.trim().split(" ").map((point) => point.split(",")[1]);
  };

  await page.goto(server);
  if (process.env.KEY) {
    await isText("health", "needs an API key");
    await page.fill("#key", "wrong");
    await page.press("#key", "Tab");
    await page.fill("#key", process.env.KEY);
    await page.press("#key", "Tab");
  }
  await isText("health", "ready");
  assert.equal(await page.locator("#key").isVisible(), false);
  assert.equal(await text("model"), process.env.MODEL);
  assert.equal(await text("running"), "0");

  // A text that grows is a stream. The model alone would end it soon.
  await page.route("**/v1/chat/completions", (route) => {
    route.continue({ postData: JSON.stringify({ ...route.request().postDataJSON(), ignore_eos: true }) });
  });
  const prompt = "Write a class for a binary tree with all its methods";
  await page.click("#settings-open");
  await page.fill("#max_tokens", "900");
  await page.fill("#temperature", "0");
  await page.click("#settings-close");
  await page.fill("#prompt", prompt);
  await page.evaluate(() => {
    window.lengths = [];
    new MutationObserver(() => {
      const said = document.querySelector("#messages .assistant .said");
      if (said) window.lengths.push(said.textContent.length);
    }).observe(document.getElementById("messages"), { childList: true, subtree: true, characterData: true });
  });
  await page.click("#send");
  await page.waitForSelector("#messages .assistant .actions .copy:visible", { timeout: 60_000 });
  const pieces = await page.evaluate(() => new Set(window.lengths).size);
  assert.ok(pieces > 10, `the text came in ${pieces} pieces`);
  assert.match(await page.locator("#messages .note").textContent(), /first token after .* per second · \d+ \+ \d+ tokens/);
  assert.match(await page.locator("#messages .user").textContent(), /binary tree/);

  // What others have running is seen live, and drawn.
  const headers = { "Content-Type": "application/json", Authorization: `Bearer ${process.env.KEY ?? ""}` };
  const others = Array.from({ length: 6 }, (_, index) => fetch(`${server}/v1/completions`, {
    method: "POST",
    headers,
    body: JSON.stringify({ prompt: `# ${index}\ndef f${index}(`, max_tokens: 900, ignore_eos: true }),
  }));
  for (const id of ["running", "speed"]) {
    await page.waitForFunction((id) => Number(document.getElementById(id).textContent) > 0, id, { timeout: 30_000 });
  }
  await page.screenshot({ path: process.env.SCREENSHOT });
  for (const answer of await Promise.all(others)) assert.equal(answer.status, 200);
  await isText("running", "0");
  for (const chart of ["speed-chart", "usage-chart", "requests-chart"]) {
    assert.ok(new Set(await heights(chart)).size > 1, `${chart} is a flat line`);
  }

  // An answer that is stopped says so and frees what it held.
  await page.click("#new");
  assert.equal(await page.locator("#messages li").count(), 0);
  await page.fill("#prompt", prompt);
  await page.click("#send");
  await page.waitForFunction(() => document.querySelector("#messages .said")?.textContent.length > 5);
  await page.click("#stop");
  assert.match(await page.locator("#messages .note").textContent(), /^stopped/);
  await isText("running", "0");

  const foreign = asked.filter((url) => !url.startsWith(server) && !url.startsWith("data:"));
  // A browser itself writes a line for each 401.
  const unexpected = wrong.filter((text) => !(process.env.KEY && /401/.test(text)));
  assert.deepEqual([foreign, unexpected], [[], []]);
  assert.ok(wrong.length <= 2, `without its key the page asked ${wrong.length} times`);
  console.log(`${asked.length} requests, all to the server; the text came in ${pieces} pieces`);
} finally {
  await browser.close();
}
