// The page in a browser, with answers that this script makes up: what the embedded model does not do. Each claim has a
// browser of its own, without a history.
// Usage: node page_chat.mjs [PART OF A CLAIM], with SERVER, and SCREENSHOTS for a folder to write into.
import assert from "node:assert/strict";
import { join } from "node:path";

import { launch, Scripted, watch } from "./browser.mjs";

const server = process.env.SERVER;
const PHONE = { width: 390, height: 844 };
const MARKDOWN = [
  "## Adding two numbers", "A function with **bold**, *italic* and `inline code`, and <img src=x onerror=\"window.harm = 1\">:",
  "```python\ndef add(a, b):\n    \"\"\"Returns the sum, <b>always</b>.\"\"\"\n    return a + b\n```",
  "1. First, read [the manual](https://docs.python.org/3/).\n2. Not [this](javascript:window.harm=2).\n   - within",
  "| call | result |\n|:--|--:|\n| `add(1, 2)` | 3 |\n| `add(-1, 1)` | 0 |", "> A quote ends it.",
].join("\n\n");
const LINES = Array.from({ length: 120 }, (_, index) => `Paragraph ${index}.`).join("\n\n");

const claims = {
  async markdown_becomes_nodes_and_never_html({ page, chats }) {
    await send(page, "Add two numbers");
    const chat = await chats.next();
    chat.say(MARKDOWN.slice(0, 200));
    await page.waitForSelector(".markdown pre");
    await page.evaluate(() => (window.heading = document.querySelector(".markdown h4")));
    for (const piece of MARKDOWN.slice(200).match(/.{1,9}/gs)) chat.say(piece);
    chat.end();
    await whole(page);
    const html = (selector) => page.locator(`.markdown ${selector}`).first().innerHTML();
    assert.ok(await page.evaluate(() => window.heading.isConnected), "what stands is not made again");
    assert.equal(await html("h4"), "Adding two numbers");
    assert.equal(await html("strong"), "bold");
    assert.equal(await html("em"), "italic");
    assert.match(await html("> p"), /&lt;img src=x onerror=/);
    assert.equal(await page.locator("ol > li").nth(2).count() + await page.locator(".markdown ol > li").count(), 3);
    assert.equal(await html("ol ul li"), "within");
    assert.equal(await page.locator(".markdown td").nth(1).textContent(), "3");
    assert.equal(await page.locator(".markdown blockquote").count(), 1);
    const links = await page.locator(".markdown a").evaluateAll((all) => all.map((link) => [link.href, link.rel]));
    assert.deepEqual(links, [["https://docs.python.org/3/", "noopener noreferrer"]]);
    await page.click(".code .copy");
    assert.equal(await clipboard(page), "def add(a, b):\n    \"\"\"Returns the sum, <b>always</b>.\"\"\"\n    return a + b");
    await page.click(".assistant .actions .copy");
    assert.equal(await clipboard(page), MARKDOWN);
    assert.equal(await page.evaluate(() => window.harm), undefined);
    await shots(page, "markdown");
  },

  async thoughts_fold_and_the_first_token_is_theirs({ page, chats }) {
    await send(page, "Think");
    const chat = await chats.next();
    assert.equal(chat.body.chat_template_kwargs, undefined);
    chat.think("The user wants a thought.");
    await page.waitForSelector(".thought:visible");
    assert.equal(await page.locator(".thought summary").textContent(), "Thinking…");
    assert.equal(await page.locator(".thought-text").isVisible(), false);
    await page.waitForTimeout(1200);
    chat.answer("Done.");
    await whole(page);
    await page.click(".thought summary");
    assert.equal(await page.locator(".thought-text:visible").textContent(), "The user wants a thought.");
    assert.match(await page.locator(".thought summary").textContent(), /^Thought for [1-9]\.\d s$/);
    assert.match(await page.locator(".note").textContent(), /^first token after \d+ ms · .* · 11 \+ 22 tokens, 3 cached$/);
    assert.equal(await page.locator(".said").textContent(), "Done.");
    for (const [value, want] of [["off", { enable_thinking: false }], ["on", { enable_thinking: true }], ["", undefined]]) {
      await page.selectOption("#thinking", value);
      await send(page, "Again");
      const chat = await chats.next();
      assert.deepEqual(chat.body.chat_template_kwargs, want);
      assert.deepEqual(chat.body.messages[1], { role: "assistant", content: "Done." });
      chat.answer("Done.");
      await whole(page);
    }
  },

  async an_empty_setting_is_not_sent({ page, chats }) {
    await send(page, "Hello");
    const chat = await chats.next();
    assert.deepEqual(Object.keys(chat.body), ["messages", "stream", "stream_options"]);
    chat.answer("**Hello.**");
    await whole(page);
    assert.equal(await page.locator(".said").textContent(), "Hello.");
    await page.click("#settings-open");
    const values = { temperature: 0, top_p: 0.9, top_k: 40, min_p: 0.05, seed: 7, max_tokens: 100 };
    for (const [name, value] of Object.entries(values)) await page.fill(`#${name}`, String(value));
    await page.fill("#system", "Be brief.");
    await shots(page, "settings");
    await page.selectOption("#view", "plain");
    await page.click("#settings-close");
    assert.equal(await page.locator(".plain").textContent(), "**Hello.**");
    await page.reload();
    assert.equal(await page.locator("#settings-open").textContent(), "Settings (7)");
    await send(page, "Again");
    const again = await chats.next();
    for (const [name, value] of Object.entries(values)) assert.equal(again.body[name], value, name);
    assert.equal(again.roles(), "system user assistant user");
    assert.equal(again.body.messages[0].content, "Be brief.");
    again.answer("Yes.");
    await whole(page);
  },

  async enter_sends_unless_it_composes_or_breaks_a_line({ page, chats }) {
    await page.fill("#prompt", "こんにちは");
    for (const event of [{ key: "Enter", isComposing: true }, { key: "Enter", keyCode: 229 }]) {
      await page.dispatchEvent("#prompt", "keydown", event);
    }
    await page.press("#prompt", "Shift+Enter");
    assert.equal(await page.locator("#messages li").count(), 0);
    assert.equal(await page.inputValue("#prompt"), "こんにちは\n");
    await page.press("#prompt", "Enter");
    (await chats.next()).answer("はい");
    await whole(page);
    assert.equal(await page.inputValue("#prompt"), "");
  },

  async an_error_keeps_what_was_typed({ page, chats, wrong }) {
    const failures = [
      [(chat) => chat.refuse(400, "application/json", '{"error": {"message": "top_k is too large"}}'), "top_k is too large"],
      [(chat) => chat.refuse(502, "text/html", "<html>Bad Gateway</html>"), "The server answered 502 Bad Gateway"],
      [(chat) => { chat.say("Half"); chat.send({ error: { message: "the engine failed" } }); chat.response.end(); }, "the engine failed"],
      [(chat) => { chat.say("Half"); chat.response.end(); }, "The connection ended before the answer did."],
      [(chat) => { chat.say("Half"); setTimeout(() => chat.response.destroy(), 200); }, "The connection broke."],
      [(chat) => chat.response.destroy(), "The server cannot be reached."],
    ];
    for (const [fail, message] of failures) {
      await send(page, "A long question");
      const chat = await chats.next();
      assert.equal(chat.roles(), "user", message);
      fail(chat);
      await page.waitForSelector(".failed");
      assert.equal(await page.locator(".failed .wrong").textContent(), message);
      assert.equal(await page.inputValue("#prompt"), "A long question");
      assert.equal(await page.locator("#messages .user").count(), 0);
      assert.ok(await page.locator("#send").isVisible());
    }
    await shots(page, "error");
    // What is typed while an answer is on its way stays too.
    await send(page, "First");
    const chat = await chats.next();
    await page.fill("#prompt", "Second");
    fail500(chat);
    await page.waitForFunction(() => document.getElementById("prompt").value === "First\n\nSecond");
    await send(page, "Well");
    (await chats.next()).answer("Yes.");
    await whole(page);
    assert.equal(await page.locator(".failed").count(), 0);
    wrong.length = 0;
  },

  async stop_and_clear_leave_a_history_that_can_be_sent({ page, chats }) {
    await send(page, "One");
    await chats.next();
    await page.click("#stop");
    assert.equal(await page.inputValue("#prompt"), "One");
    assert.equal(await page.locator("#messages li").count(), 0);
    await send(page, "Two");
    let chat = await chats.next();
    assert.equal(chat.roles(), "user");
    chat.say("Half an ans");
    await page.waitForFunction(() => document.querySelector(".said")?.textContent === "Half an ans");
    await page.click("#stop");
    assert.match(await page.locator(".note").textContent(), /^stopped/);
    await send(page, "Three");
    chat = await chats.next();
    assert.deepEqual(chat.body.messages.map((message) => message.content), ["Two", "Half an ans", "Three"]);
    assert.equal(chat.roles(), "user assistant user");
    chat.say("Unfinished");
    await page.click("#clear");
    assert.equal(await page.locator("#messages li").count(), 0);
    await send(page, "Four");
    chat = await chats.next();
    assert.equal(chat.roles(), "user");
    chat.answer("4");
    await whole(page);
    assert.equal(await page.locator("#messages li").count(), 2);
  },

  async a_page_that_is_left_keeps_what_was_said({ page, chats }) {
    await send(page, "Tell me");
    const chat = await chats.next();
    chat.say("So far");
    await page.waitForFunction(() => document.querySelector(".said")?.textContent === "So far");
    await page.fill("#prompt", "A draft");
    await page.reload();
    assert.equal(await page.locator(".said").textContent(), "So far");
    assert.equal(await page.inputValue("#prompt"), "A draft");
  },

  async a_reader_who_goes_back_is_left_there({ page, chats }) {
    await send(page, "Much");
    const chat = await chats.next();
    const top = () => page.locator("#scroller").evaluate((box) => box.scrollTop);
    const rest = () => page.locator("#scroller").evaluate((box) => box.scrollHeight - box.scrollTop - box.clientHeight);
    const grown = (count) => page.waitForFunction((count) => document.querySelectorAll(".said p").length >= count, count);
    chat.say(LINES);
    await grown(120);
    assert.ok(await rest() < 2, "the end is followed");
    await page.hover("#scroller");
    await page.mouse.wheel(0, -1500);
    await page.waitForSelector("#to-end:visible");
    const at = await top();
    chat.say(`\n\n${LINES}`);
    await grown(240);
    assert.equal(await top(), at, "the reader was moved");
    await page.click("#to-end");
    assert.ok(await rest() < 2);
    chat.say(`\n\n${LINES}`);
    await grown(360);
    assert.ok(await rest() < 2, "the end is followed again");
    assert.equal(await page.locator("#to-end").isVisible(), false);
    chat.end();
    await whole(page);
  },

  async answers_are_made_again_and_questions_edited({ page, chats }) {
    await send(page, "One");
    (await chats.next()).answer("1");
    await whole(page);
    await send(page, "Two");
    (await chats.next()).answer("2");
    await whole(page);
    await page.click(".assistant:last-child .regenerate");
    let chat = await chats.next();
    assert.equal(chat.roles(), "user assistant user");
    chat.answer("two");
    await whole(page);
    assert.deepEqual(await said(page), ["1", "two"]);
    // One that fails leaves the old answer.
    await page.click(".assistant:last-child .regenerate");
    fail500(await chats.next());
    await page.waitForSelector(".failed");
    assert.deepEqual([await said(page), await page.inputValue("#prompt")], [["1", "two"], ""]);
    // So does an edit that fails, and it goes on from there.
    await page.fill("#prompt", "a draft");
    await page.locator(".user .edit").first().click();
    assert.equal(await page.inputValue("#prompt"), "One");
    await page.keyboard.press("Escape");
    assert.equal(await page.inputValue("#prompt"), "a draft");
    await page.locator(".user .edit").first().click();
    await send(page, "Uno");
    chat = await chats.next();
    assert.deepEqual(chat.body.messages, [{ role: "user", content: "Uno" }]);
    fail500(chat);
    await page.waitForSelector(".failed");
    assert.deepEqual([await said(page), await page.inputValue("#prompt")], [["1", "two"], "Uno"]);
    await page.click("#send");
    chat = await chats.next();
    assert.deepEqual(chat.body.messages, [{ role: "user", content: "Uno" }]);
    chat.answer("uno");
    await whole(page);
    assert.deepEqual([await said(page), await page.inputValue("#prompt")], [["uno"], "a draft"]);
  },

  async conversations_stay_in_the_browser({ page, chats }) {
    const titles = () => page.locator("#conversations .open").allTextContents();
    for (const [question, answer] of [["Why is the sky blue, and why is it red when the sun goes down?", "Air."], ["And the sea?", "Water."]]) {
      await page.click("#new");
      await send(page, question);
      (await chats.next()).answer(answer);
      await whole(page);
    }
    const first = "Why is the sky blue, and why is it red when the…";
    assert.deepEqual(await titles(), ["And the sea?", first]);
    await page.reload();
    assert.deepEqual([await titles(), await said(page)], [["And the sea?", first], ["Water."]]);
    await page.locator("#conversations .open").nth(1).click();
    assert.deepEqual(await said(page), ["Air."]);
    await send(page, "More");
    const chat = await chats.next();
    assert.equal(chat.roles(), "user assistant user");
    // An answer that is on its way belongs to the conversation that asked for it.
    chat.say("Light");
    await page.waitForFunction(() => [...document.querySelectorAll(".said")].at(-1)?.textContent === "Light");
    await page.locator("#conversations .open", { hasText: "sea" }).click();
    assert.deepEqual(await said(page), ["Water."]);
    await page.locator("#conversations .open", { hasText: "sky" }).click();
    assert.deepEqual(await said(page), ["Air.", "Light"]);
    await page.locator("#conversations li", { hasText: "sky" }).locator(".remove").click();
    assert.deepEqual([await titles(), await said(page)], [["And the sea?"], []]);
    await page.reload();
    assert.deepEqual(await titles(), ["And the sea?"]);
  },

  async a_browser_that_keeps_nothing_says_so_and_chats({ page, chats }) {
    await page.evaluate(() => {
      Storage.prototype.setItem = () => { throw new DOMException("full", "QuotaExceededError"); };
    });
    for (const roles of ["user", "user assistant user"]) {
      await send(page, "Hello");
      const chat = await chats.next();
      assert.equal(chat.roles(), roles);
      chat.answer("Hello.");
      await whole(page);
      assert.match(await page.locator("#note").textContent(), /keeps no more conversations/);
    }
  },

  async on_a_phone_the_box_stays_in_reach({ page, chats }) {
    await page.setViewportSize(PHONE);
    await page.reload();
    await shots(page, "phone-empty");
    await send(page, "Much");
    const chat = await chats.next();
    chat.think("Short.");
    chat.say(`${MARKDOWN}\n\n${LINES}\n\n${MARKDOWN}`);
    chat.end();
    await whole(page);
    for (const id of ["prompt", "send", "settings-open", "menu"]) {
      const { x, y, width, height } = await page.locator(`#${id}`).boundingBox();
      assert.ok(x >= 0 && y >= 0 && x + width <= PHONE.width && y + height <= PHONE.height, `#${id} is out of view`);
    }
    const widths = await page.evaluate(() => [document.documentElement.scrollWidth, document.getElementById("scroller").scrollWidth]);
    assert.ok(Math.max(...widths) <= PHONE.width, `the page is ${widths} wide`);
    assert.equal(await page.locator("#running").isVisible(), false);
    await shots(page, "phone");
    await page.click("#menu");
    await page.click("#live summary");
    assert.ok(await page.locator("#running").isVisible());
    await shots(page, "phone-menu");
  },
};

async function send(page, text) {
  await page.fill("#prompt", text);
  await page.click("#send");
}

/** Waits until nothing is being written. */
const whole = (page) => page.waitForSelector("#send:visible");
const said = (page) => page.locator(".said").allTextContents();
const clipboard = (page) => page.evaluate(() => navigator.clipboard.readText());
const fail500 = (chat) => chat.refuse(500, "application/json", '{"error": {"message": "no"}}');

async function shots(page, name) {
  for (const colorScheme of ["light", "dark"]) {
    await page.emulateMedia({ colorScheme, reducedMotion: "reduce" });
    await page.screenshot({ path: join(process.env.SCREENSHOTS, `page-${name}-${colorScheme}.png`) });
  }
}

/** Holds the page to one claim. */
async function hold(browser, name, claim) {
  const chats = new Scripted();
  const context = await browser.newContext({ viewport: { width: 1200, height: 900 }, permissions: ["clipboard-read", "clipboard-write"] });
  try {
    const page = await context.newPage();
    page.setDefaultTimeout(15_000);
    page.on("dialog", (dialog) => dialog.accept());
    const { wrong } = watch(page);
    await chats.intercept(page, await chats.listen());
    await page.goto(server);
    await page.waitForFunction(() => document.getElementById("health").textContent === "ready");
    await claim({ page, chats, wrong });
    // A browser itself writes a line for each answer that is an error.
    assert.deepEqual(wrong.filter((text) => !/Failed to load resource/.test(text)), []);
    console.log(name);
  } catch (error) {
    error.message = `${name}: ${error.message}`;
    throw error;
  } finally {
    await context.close();
    chats.close();
  }
}

const browser = await launch();
try {
  for (const [name, claim] of Object.entries(claims)) {
    if (name.includes(process.argv[2] ?? "")) await hold(browser, name, claim);
  }
} finally {
  await browser.close();
}
