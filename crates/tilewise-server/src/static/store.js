// What the browser keeps: conversations and settings, in its local storage, and the API key for as long as the tab is open.
//
// A conversation is `{ id, changed, system, turns }`. Its turns alternate, the user's first: a turn of the user enters
// only together with its answer, so that a history can be sent as it is at any time.

const PREFIX = "tilewise.conversation.";
const SETTINGS = "tilewise.settings";
const KEY = "tilewise.key";
const DRAFT = "tilewise.draft";
const TITLE_LENGTH = 48;

/** The sampling parameters that the page knows; an empty one is not sent. */
export const SAMPLERS = ["temperature", "top_p", "top_k", "min_p", "seed", "max_tokens"];

function read(storage, name) {
  try {
    return JSON.parse(storage().getItem(name));
  } catch {
    return null;
  }
}

/** Whether the value could be kept: storage may be full, or be denied to the page. */
function write(storage, name, value) {
  try {
    if (value === null) storage().removeItem(name);
    else storage().setItem(name, JSON.stringify(value));
    return true;
  } catch {
    return false;
  }
}

// A browser that denies storage throws where it is named.
const lasting = () => window.localStorage;
const passing = () => window.sessionStorage;

/** A name that no other conversation has; `crypto.randomUUID` is for encrypted pages alone. */
function newId() {
  return `${Date.now().toString(36)}-${Math.random().toString(36).slice(2, 10)}`;
}

export function newConversation(system = "") {
  return { id: newId(), changed: Date.now(), system, turns: [] };
}

const isTurn = (turn, index) => turn?.role === (index % 2 ? "assistant" : "user") && typeof turn.content === "string";

function isWhole(conversation) {
  return typeof conversation?.id === "string" && Array.isArray(conversation.turns) &&
    conversation.turns.length % 2 === 0 && conversation.turns.every(isTurn);
}

/** All conversations, the one that changed last first; what cannot be read is passed over. */
export function conversations() {
  let names = [];
  try {
    names = Object.keys(lasting()).filter((name) => name.startsWith(PREFIX));
  } catch {
    // Nothing is kept then.
  }
  return names.map((name) => read(lasting, name)).filter(isWhole).sort((a, b) => b.changed - a.changed);
}

/** Keeps a conversation, if it says something; whether that could be done. */
export function keep(conversation) {
  conversation.changed = Date.now();
  return write(lasting, PREFIX + conversation.id, conversation.turns.length ? conversation : null);
}

export function remove(id) {
  write(lasting, PREFIX + id, null);
}

/** Calls back when another tab changed a conversation. */
export function onForeignChange(callback) {
  window.addEventListener("storage", (event) => {
    if (event.key === null || event.key.startsWith(PREFIX)) callback();
  });
}

/** The first words of the user. */
export function title(conversation) {
  const text = conversation.turns[0]?.content.trim().replace(/\s+/g, " ") ?? "";
  if (text.length <= TITLE_LENGTH) return text || "New chat";
  const words = text.slice(0, TITLE_LENGTH).replace(/\s\S*$/, "");
  return `${words}…`;
}

export const settings = () => read(lasting, SETTINGS) ?? {};
export const keepSettings = (values) => write(lasting, SETTINGS, values);
export const key = () => read(passing, KEY) ?? "";
export const keepKey = (value) => write(passing, KEY, value || null);
export const draft = () => read(passing, DRAFT) ?? "";
export const keepDraft = (value) => write(passing, DRAFT, value || null);

/** The body of a request for the answer that follows these turns. */
export function requestBody(system, turns, values) {
  const said = turns.map(({ role, content }) => ({ role, content }));
  const body = {
    messages: system.trim() ? [{ role: "system", content: system }, ...said] : said,
    stream: true,
    stream_options: { include_usage: true },
  };
  for (const name of SAMPLERS) {
    const text = values[name] ?? "";
    if (text !== "" && Number.isFinite(Number(text))) body[name] = Number(text);
  }
  if (values.thinking === "on" || values.thinking === "off") {
    body.chat_template_kwargs = { enable_thinking: values.thinking === "on" };
  }
  return body;
}
