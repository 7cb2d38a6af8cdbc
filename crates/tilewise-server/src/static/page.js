// The page at `/`: what its buttons and fields do.

import { Chat } from "./chat.js";
import { Follow } from "./follow.js";
import { watch } from "./load.js";
import { make } from "./markdown.js";
import * as store from "./store.js";

const FIELDS = [...store.SAMPLERS, "view", "thinking"];

const element = (id) => document.getElementById(id);
const box = element("prompt");
const follow = new Follow(element("scroller"), element("to-end"));
/** The turn that the text in the box takes the place of. */
let editing = null;
/** What stood in the box before a turn was edited. */
let draft = "";

const chat = new Chat(element("messages"), { changed, grew: () => follow.grew(), gaveBack, failed });
chat.isPlain = () => store.settings().view === "plain";

function changed(isKept = true) {
  const isRunning = Boolean(chat.run);
  element("stop").hidden = !isRunning;
  element("send").hidden = isRunning;
  element("chat").classList.toggle("running", isRunning);
  element("welcome").hidden = element("messages").childElementCount > 0;
  element("clear").hidden = element("welcome").hidden === false;
  element("status").textContent = isRunning ? "The answer is being written." : "";
  if (!isKept) note("This browser keeps no more conversations: its storage is full or closed to the page.");
  list();
}

function note(text) {
  element("note").textContent = text;
  element("note").hidden = !text;
}

/** The conversations, by the user's first words. */
function list() {
  const kept = store.conversations();
  const item = (conversation) => {
    const open = make("button", { type: "button", className: "open", textContent: store.title(conversation), title: store.title(conversation) });
    const remove = make("button", { type: "button", className: "remove", textContent: "×", title: "Delete", ariaLabel: `Delete ${store.title(conversation)}` });
    const isOpen = conversation.id === chat.conversation.id;
    if (isOpen) open.setAttribute("aria-current", "true");
    open.addEventListener("click", () => (isOpen ? drawer(false) : openConversation(conversation.id)));
    remove.addEventListener("click", () => removeConversation(conversation));
    return make("li", {}, open, remove);
  };
  element("conversations").replaceChildren(...kept.map(item));
}

function openConversation(id) {
  chat.stop();
  show(store.conversations().find((one) => one.id === id) ?? store.newConversation());
}

function show(conversation) {
  setEditing(null);
  note("");
  chat.open(conversation);
  element("system").value = conversation.system;
  countSettings();
  follow.toEnd();
  drawer(false);
}

function newChat() {
  const { system } = chat.conversation;
  show(store.newConversation(system));
  box.focus();
}

function removeConversation(conversation) {
  if (!confirm(`Delete “${store.title(conversation)}”?`)) return;
  if (conversation.id === chat.conversation.id) {
    chat.clear();
    show(store.newConversation(chat.conversation.system));
  } else {
    store.remove(conversation.id);
    list();
  }
}

function clear() {
  if (!confirm("Delete all messages of this chat?")) return;
  chat.clear();
  setEditing(null);
  note("");
}

function send(event) {
  event?.preventDefault();
  const text = box.value.trim();
  if (!text || chat.run) return;
  const index = editing ?? undefined;
  editing = null;
  setBox(draft);
  setEditing(null);
  note("");
  follow.isAtEnd = true;
  chat.send(text, index);
  follow.toEnd();
}

/** A message that was not answered goes back into the box, before what has been typed since. */
function gaveBack(text, index) {
  const typed = box.value.trim() ? box.value : "";
  if (index < chat.conversation.turns.length) {
    setEditing(index);
    draft = typed;
    setBox(text);
  } else {
    setBox(typed ? `${text}\n\n${typed}` : text);
  }
}

function failed(error) {
  if (error.status === 401) askKey();
}

function setBox(text) {
  box.value = text;
  fit();
}

/** The box grows with its text, up to what its style allows. */
function fit() {
  box.style.height = "auto";
  box.style.height = `${box.scrollHeight + 2}px`;
}

function setEditing(index) {
  if (index !== null && editing === null) draft = box.value;
  if (index === null && editing !== null) setBox(draft);
  if (index === null) draft = "";
  editing = index;
  element("editing").hidden = index === null;
  for (const item of element("messages").children) {
    item.classList.toggle("replaced", index !== null && Number(item.dataset.index) >= index);
  }
}

function act(event) {
  const button = event.target.closest("button");
  if (!button) return;
  const index = Number(button.closest("li").dataset.index);
  if (button.dataset.copy !== undefined) return copy(button.dataset.copy, button);
  const turn = chat.conversation.turns[index];
  if (button.dataset.action === "copy") copy((turn ?? chat.run?.user)?.content ?? "", button);
  if (chat.run) return;
  if (button.dataset.action === "regenerate") {
    setEditing(null);
    note("");
    follow.isAtEnd = true;
    chat.regenerate();
    follow.toEnd();
  }
  if (button.dataset.action === "edit" && turn) {
    setEditing(index);
    setBox(turn.content);
    box.focus();
  }
}

async function copy(text, button) {
  let isDone = true;
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // Without encryption, a page may copy only what is selected.
    const hidden = make("textarea", { value: text, className: "unseen" });
    document.body.append(hidden);
    hidden.select();
    isDone = document.execCommand("copy");
    hidden.remove();
  }
  button.textContent = isDone ? "Copied" : "Not copied";
  setTimeout(() => (button.textContent = "Copy"), 1500);
}

function drawer(isOpen) {
  element("side").classList.toggle("open", isOpen);
  element("veil").hidden = !isOpen;
  element("menu").setAttribute("aria-expanded", String(isOpen));
}

/** An empty field is one that requests do not have. */
function keepFields() {
  store.keepSettings(Object.fromEntries(FIELDS.map((name) => [name, element(name).value])));
  countSettings();
}

function countSettings() {
  const values = store.settings();
  const count = store.SAMPLERS.filter((name) => values[name]).length + (chat.conversation.system.trim() ? 1 : 0);
  element("settings-open").textContent = count ? `Settings (${count})` : "Settings";
}

function setUpSettings() {
  const values = store.settings();
  for (const name of FIELDS) {
    element(name).value = values[name] ?? "";
    element(name).addEventListener("input", keepFields);
  }
  element("view").addEventListener("input", () => chat.run || show(chat.conversation));
  element("system").addEventListener("input", () => {
    chat.conversation.system = element("system").value;
    store.keep(chat.conversation);
    countSettings();
  });
  const dialog = element("settings");
  element("settings-open").addEventListener("click", () => dialog.showModal());
  element("settings-close").addEventListener("click", () => dialog.close());
  element("settings-reset").addEventListener("click", () => {
    for (const name of FIELDS) element(name).value = "";
    keepFields();
  });
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
}

/** A key is asked for once the server has refused to answer without one. */
function askKey() {
  element("key-field").hidden = false;
}

function known({ id, max_model_len: length }) {
  element("key-field").hidden = true;
  element("model").textContent = id;
  element("model").title = length ? `${length} tokens of context` : "";
}

function setUpKey() {
  element("key").value = store.key();
  element("key").addEventListener("change", () => {
    store.keepKey(element("key").value);
    watch(known, askKey);
  });
}

function setUpBox() {
  // The key that ends the composition of a character (Japanese, Chinese, Korean) is Enter too.
  const composes = (event) => event.isComposing || event.keyCode === 229;
  // Phones have no other key for a new line.
  const isTouch = window.matchMedia("(pointer: coarse)").matches;
  box.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !isTouch && !composes(event)) send(event);
    if (event.key === "Escape" && editing !== null) setEditing(null);
  });
  box.addEventListener("input", fit);
  setBox(store.draft());
  // What was typed, or asked and not answered yet, is there when the page is loaded again.
  window.addEventListener("pagehide", () => {
    chat.stop();
    store.keepDraft(box.value);
  });
}

element("form").addEventListener("submit", send);
element("stop").addEventListener("click", () => chat.stop());
element("clear").addEventListener("click", clear);
element("new").addEventListener("click", newChat);
element("new-small").addEventListener("click", newChat);
element("menu").addEventListener("click", () => drawer(!element("side").classList.contains("open")));
element("veil").addEventListener("click", () => drawer(false));
element("editing-cancel").addEventListener("click", () => setEditing(null));
element("messages").addEventListener("click", act);
element("live").open = !window.matchMedia("(max-width: 52rem)").matches;
setUpSettings();
setUpKey();
setUpBox();
store.onForeignChange(list);
const [last] = store.conversations();
if (last) show(last);
else changed();
watch(known, askKey);
