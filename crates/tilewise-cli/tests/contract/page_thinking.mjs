// The page with a model that thinks, by Qwen3's own template: thoughts are folded, and the switch turns them off.
// Usage: node page_thinking.mjs, with SERVER.
import assert from "node:assert/strict";

import { launch, watch } from "./browser.mjs";

const browser = await launch();
try {
  const page = await browser.newPage();
  const { wrong } = watch(page);
  await page.goto(process.env.SERVER);
  const answers = page.locator("#messages .assistant");
  const chat = async (think) => {
    const place = await answers.count();
    await page.click("#settings-open");
    await page.selectOption("#thinking", think);
    await page.click("#settings-close");
    await page.fill("#prompt", "Hi");
    await page.click("#send");
    const last = answers.nth(place);
    await last.locator(".actions .copy").waitFor();
    return { said: (await last.locator(".said").innerText()).trim(), thoughts: await last.locator("details:visible").count() };
  };
  assert.deepEqual(await chat("on"), { said: "Hello world!", thoughts: 1 });
  assert.match(await answers.last().locator("details:visible").textContent(), /hm/);
  assert.deepEqual(await chat("off"), { said: "Hello world!", thoughts: 0 });
  assert.deepEqual(wrong, []);
} finally {
  await browser.close();
}
