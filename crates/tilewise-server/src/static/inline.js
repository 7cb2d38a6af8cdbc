// What stands within a line of Markdown: code, emphasis, links. Text becomes text nodes.

const DELIMITERS = ["***", "**", "*", "___", "__", "_", "~~"];
const TAGS = { "**": "strong", __: "strong", "*": "em", _: "em", "~~": "del" };
const ESCAPED = /[!-/:-@[-`{-~]/;
const WORD = /[\p{L}\p{N}_]/u;
const ADDRESS = /https?:\/\/[^\s<>"'`|]+/iy;
const DEPTH = 12;

// The longest text and address of a link, so that open brackets without end cost little.
const LINK_TEXT = 1000, LINK_ADDRESS = 4000;

/** Nodes of a text. */
export function inline(text, depth = 0) {
  if (depth >= DEPTH) return [text];
  return new Inline(text, depth).read();
}

class Inline {
  constructor(text, depth) {
    Object.assign(this, { text, depth, at: 0, plain: "", nodes: [] });
    // Delimiters that nothing closes from some place on: looking again would take quadratic time.
    this.unclosed = new Set();
  }

  read() {
    while (this.at < this.text.length) {
      const read = this.special(this.text[this.at]);
      if (read) continue;
      this.plain += this.text[this.at];
      this.at += 1;
    }
    this.flush();
    return this.nodes;
  }

  flush() {
    if (this.plain) this.nodes.push(document.createTextNode(this.plain));
    this.plain = "";
  }

  put(node, end) {
    this.flush();
    this.nodes.push(node);
    this.at = end;
    return true;
  }

  special(character) {
    switch (character) {
      case "\\": return this.escape();
      case "`": return this.code();
      case "*": case "_": case "~": return this.emphasis();
      case "!": return this.text[this.at + 1] === "[" && this.link(this.at + 1);
      case "[": return this.link(this.at);
      case "<": return this.angle();
      case "h": case "H": return this.address();
      default: return false;
    }
  }

  escape() {
    const next = this.text[this.at + 1];
    if (next === undefined || !ESCAPED.test(next)) return false;
    this.plain += next;
    this.at += 2;
    return true;
  }

  code() {
    const ticks = run(this.text, this.at);
    const end = this.closing(ticks, (from) => codeEnd(this.text, from, ticks.length));
    if (end < 0) {
      this.plain += ticks;
      this.at += ticks.length;
      return true;
    }
    let inside = this.text.slice(this.at + ticks.length, end).replaceAll("\n", " ");
    if (/^ .*[^ ].* $/.test(inside)) inside = inside.slice(1, -1);
    const element = document.createElement("code");
    element.textContent = inside;
    return this.put(element, end + ticks.length);
  }

  /** Where a delimiter that opens here is closed, by `find` from behind it; -1 if nowhere. */
  closing(delimiter, find) {
    if (this.unclosed.has(delimiter)) return -1;
    const end = find(this.at + delimiter.length);
    if (end < 0) this.unclosed.add(delimiter);
    return end;
  }

  emphasis() {
    const opened = run(this.text, this.at);
    const before = this.text[this.at - 1] ?? " ", after = this.text[this.at + opened.length] ?? " ";
    const isOpen = !/\s/.test(after) && (opened[0] !== "_" || !WORD.test(before));
    const delimiter = DELIMITERS.find((one) => opened === one);
    const end = isOpen && delimiter ? this.closing(delimiter, (from) => emphasisEnd(this.text, from, delimiter)) : -1;
    if (end < 0) {
      this.plain += opened;
      this.at += opened.length;
      return true;
    }
    const inside = inline(this.text.slice(this.at + delimiter.length, end), this.depth + 1);
    const both = delimiter.length === 3;
    const element = document.createElement(both ? "strong" : TAGS[delimiter]);
    const inner = both ? element.appendChild(document.createElement("em")) : element;
    inner.append(...inside);
    return this.put(element, end + delimiter.length);
  }

  /** `[text](address)`; an image is a link too, since the page asks no other server for anything. */
  link(open) {
    const close = matching(this.text, open, "[", "]", LINK_TEXT);
    if (close < 0 || this.text[close + 1] !== "(") return false;
    const end = matching(this.text, close + 1, "(", ")", LINK_ADDRESS);
    if (end < 0) return false;
    const target = this.text.slice(close + 2, end).trim().replace(/\s+(".*"|'.*')$/s, "").replace(/^<(.*)>$/, "$1");
    const label = inline(this.text.slice(open + 1, close), this.depth + 1);
    const element = anchor(target, label);
    return element ? this.put(element, end + 1) : false;
  }

  /** `<https://..>`, and the one tag that models write in tables. */
  angle() {
    const [, tag] = /^<(br ?\/?|https?:\/\/[^\s<>]+)>/i.exec(this.text.slice(this.at, this.at + LINK_ADDRESS)) ?? [];
    if (!tag) return false;
    const element = /^br/i.test(tag) ? document.createElement("br") : anchor(tag, [tag]);
    return element ? this.put(element, this.at + tag.length + 2) : false;
  }

  address() {
    if (WORD.test(this.text[this.at - 1] ?? " ")) return false;
    ADDRESS.lastIndex = this.at;
    let [found] = ADDRESS.exec(this.text) ?? [""];
    found = found.replace(/[.,;:!?*_~\]]+$/, "");
    while (found.endsWith(")") && count(found, ")") > count(found, "(")) found = found.slice(0, -1);
    const element = found && anchor(found, [found]);
    return element ? this.put(element, this.at + found.length) : false;
  }
}

/** A link that leaves the page, if it is one of the web. */
function anchor(target, label) {
  if (!/^https?:\/\//i.test(target) || !URL.canParse(target)) return null;
  const element = document.createElement("a");
  Object.assign(element, { href: target, rel: "noopener noreferrer", target: "_blank" });
  element.append(...label);
  return element;
}

const count = (text, character) => text.split(character).length - 1;

/** The same character as often as it stands from a place on. */
function run(text, at) {
  let end = at;
  while (text[end] === text[at]) end += 1;
  return text.slice(at, end);
}

function codeEnd(text, from, length) {
  for (let at = text.indexOf("`", from); at >= 0; at = text.indexOf("`", at)) {
    const ticks = run(text, at);
    if (ticks.length === length) return at;
    at += ticks.length;
  }
  return -1;
}

/** Where the closing delimiter begins; code and what is escaped is passed over. */
function emphasisEnd(text, from, delimiter) {
  const [character] = delimiter;
  for (let at = from; at < text.length; at += 1) {
    if (text[at] === "\\") at += 1;
    else if (text[at] === "`") {
      const ticks = run(text, at);
      const end = codeEnd(text, at + ticks.length, ticks.length);
      at = (end < 0 ? at : end) + ticks.length - 1;
    } else if (text[at] === character) {
      const { length } = run(text, at);
      const closes = !/\s/.test(text[at - 1]) && (character !== "_" || !WORD.test(text[at + length] ?? " "));
      if (closes && at > from && (length === delimiter.length || length === 3)) return at + length - delimiter.length;
      at += length - 1;
    }
  }
  return -1;
}

/** The bracket that closes the one at a place, within some characters. */
function matching(text, open, left, right, most) {
  const end = Math.min(text.length, open + most);
  for (let at = open, depth = 0; at < end; at += 1) {
    if (text[at] === "\\") at += 1;
    else if (text[at] === left) depth += 1;
    else if (text[at] === right && (depth -= 1) === 0) return at;
  }
  return -1;
}
