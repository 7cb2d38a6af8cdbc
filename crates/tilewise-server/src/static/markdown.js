// Markdown as DOM nodes. No HTML is ever made from text: what a model writes becomes text nodes and a few known elements.
//
// A text is cut into blocks by its lines first. While an answer streams, `Markdown` replaces only the blocks whose source
// changed, so that the reader can select and copy what stands above.

import { inline } from "./inline.js";

const FENCE = /^ {0,3}(`{3,}|~{3,})[ \t]*([^\s`]*)[^`]*$/;
const HEADING = /^ {0,3}(#{1,6})[ \t]+(.*?)[ \t]*#*[ \t]*$/;
const RULE = /^ {0,3}([-*_])[ \t]*(?:\1[ \t]*){2,}$/;
const ITEM = /^( {0,3})([-*+]|\d{1,9}[.)])([ \t]+|$)(.*)$/;
const QUOTE = /^ {0,3}> ?/;
const DELIMITERS = /^ {0,3}\|?[ \t]*:?-+:?[ \t]*(\|[ \t]*:?-+:?[ \t]*)*\|?[ \t]*$/;

// Lists and quotes in one another, beyond which text stays as it is.
const DEPTH = 12;

export function make(name, properties = {}, ...children) {
  const element = Object.assign(document.createElement(name), properties);
  element.append(...children);
  return element;
}

/** Keeps `root` showing a text that grows or changes. */
export class Markdown {
  constructor(root) {
    this.root = root;
    this.sources = [];
  }

  show(text) {
    const found = blocks(text.split(/\r?\n/));
    found.forEach((block, index) => {
      const source = `${block.kind}\n${block.lines.join("\n")}`;
      if (this.sources[index] === source) return;
      this.sources[index] = source;
      const [old, fresh] = [this.root.children[index], render(block, 0)];
      if (old) old.replaceWith(fresh);
      else this.root.append(fresh);
    });
    this.sources.length = found.length;
    while (this.root.children.length > found.length) this.root.lastElementChild.remove();
  }
}

/** Blocks of one level: each is a kind, its lines, and where its kind needs it, the match of its first line. */
function blocks(lines) {
  const found = [];
  let at = 0;
  while (at < lines.length) {
    if (!lines[at].trim()) {
      at += 1;
      continue;
    }
    const [kind, end, match] = block(lines, at);
    found.push({ kind, match, lines: lines.slice(at, end) });
    at = end;
  }
  return found;
}

/** The kind of the block that begins at a line, and the line after its last. */
function block(lines, at) {
  let match;
  if ((match = FENCE.exec(lines[at]))) return ["fence", fenceEnd(lines, at, match[1]), match];
  if ((match = HEADING.exec(lines[at]))) return ["heading", at + 1, match];
  if (RULE.test(lines[at])) return ["rule", at + 1];
  if (QUOTE.test(lines[at])) return ["quote", quoteEnd(lines, at)];
  if ((match = ITEM.exec(lines[at]))) return ["list", listEnd(lines, at, match), match];
  if (isTable(lines, at)) return ["table", skip(lines, at + 2, (line) => line.includes("|"))];
  return ["paragraph", paragraphEnd(lines, at)];
}

function skip(lines, at, holds) {
  while (at < lines.length && holds(lines[at])) at += 1;
  return at;
}

/** The line after the closing fence; all lines, as long as it has not come. */
function fenceEnd(lines, at, fence) {
  const closes = (line) => {
    const text = line.trim();
    return text.length >= fence.length && text === fence[0].repeat(text.length);
  };
  const end = skip(lines, at + 1, (line) => !closes(line));
  return Math.min(end + 1, lines.length);
}

function startsBlock(lines, at) {
  const line = lines[at];
  return FENCE.test(line) || HEADING.test(line) || RULE.test(line) || QUOTE.test(line) || isTable(lines, at);
}

function isTable(lines, at) {
  const next = lines[at + 1];
  return lines[at].includes("|") && next !== undefined && next.includes("-") && DELIMITERS.test(next) &&
    cells(lines[at]).length === cells(next).length;
}

function paragraphEnd(lines, at) {
  let end = at + 1;
  while (end < lines.length && lines[end].trim() && !startsBlock(lines, end)) {
    const item = ITEM.exec(lines[end]);
    // A number begins a list within a paragraph only if it is 1: a line may begin with a year.
    if (item && item[4] && /^([-*+]|1[.)])$/.test(item[2])) break;
    end += 1;
  }
  return end;
}

function quoteEnd(lines, at) {
  let end = at + 1;
  while (end < lines.length && lines[end].trim() && (QUOTE.test(lines[end]) || !startsBlock(lines, end))) end += 1;
  return end;
}

/** A list goes on with items of its kind, with lines that are indented, and with lines that wrap. */
function listEnd(lines, at, first) {
  const ordered = /\d/.test(first[2]);
  let end = at + 1, wasBlank = false;
  for (let next = at + 1; next < lines.length; next += 1) {
    const line = lines[next], item = ITEM.exec(line);
    if (!line.trim()) {
      wasBlank = true;
      continue;
    }
    const isItem = item && !RULE.test(line) && /\d/.test(item[2]) === ordered;
    const isInside = /^( {2,}|\t)/.test(line);
    if (!isItem && !isInside && (wasBlank || item || startsBlock(lines, next))) break;
    wasBlank = false;
    end = next + 1;
  }
  return end;
}

function render({ kind, lines, match }, depth) {
  switch (kind) {
    case "fence": return code(lines, match);
    // The page's own headings are above those of an answer.
    case "heading": return make(`h${Math.min(match[1].length + 2, 6)}`, {}, ...inline(match[2]));
    case "rule": return make("hr");
    case "quote": return make("blockquote", {}, ...children(lines.map((line) => line.replace(QUOTE, "")), depth));
    case "list": return list(lines, match, depth);
    case "table": return table(lines);
    default: return make("p", {}, ...inline(lines.join("\n").trim()));
  }
}

function children(lines, depth) {
  if (depth >= DEPTH) return [make("p", {}, lines.join("\n"))];
  return blocks(lines).map((block) => render(block, depth + 1));
}

function code(lines, match) {
  const indent = /^ */.exec(lines[0])[0].length;
  const last = lines.length > 1 && lines.at(-1).trim();
  const isClosed = last && last.length >= match[1].length && last === match[1][0].repeat(last.length);
  const body = lines.slice(1, isClosed ? -1 : undefined).map((line) => line.slice(Math.min(indent, line.search(/\S|$/))));
  // The line that has just begun is none yet.
  const text = body.join("\n").replace(/\n$/, "");
  const button = make("button", { type: "button", className: "copy", textContent: "Copy" });
  button.dataset.copy = text;
  const head = make("div", { className: "code-head" }, make("span", { textContent: match[2] || "text" }), button);
  const pre = make("pre", { tabIndex: 0 }, make("code", { textContent: text }));
  return make("div", { className: "code" }, head, pre);
}

function list(lines, first, depth) {
  const ordered = /\d/.test(first[2]);
  const items = [];
  const base = first[1].length;
  for (const line of lines) {
    const item = ITEM.exec(line);
    if (item && /\d/.test(item[2]) === ordered && item[1].length < base + 2) {
      const width = item[1].length + item[2].length + Math.min(item[3].length || 1, 4);
      items.push({ width, lines: [item[4]] });
    } else {
      const { width, lines: own } = items.at(-1);
      const indent = /^[ \t]*/.exec(line)[0].replaceAll("\t", "    ");
      own.push(" ".repeat(Math.max(indent.length - width, 0)) + line.trimStart());
    }
  }
  const isLoose = items.some((item) => item.lines.some((line, index) => !line.trim() && index < item.lines.length - 1));
  const element = make(ordered ? "ol" : "ul", {}, ...items.map((item) => listItem(item.lines, isLoose, depth)));
  if (ordered) element.start = Number.parseInt(first[2], 10);
  return element;
}

function listItem(lines, isLoose, depth) {
  const item = make("li");
  const task = /^\[([ xX])\] /.exec(lines[0]);
  if (task) lines = [lines[0].slice(4), ...lines.slice(1)];
  const inside = children(lines, depth).flatMap((child) => (child.tagName === "P" && !isLoose ? [...child.childNodes] : [child]));
  if (task) item.append(task[1] === " " ? "☐ " : "☑ ");
  item.append(...inside);
  return item;
}

/** Cells of a line; a bar after a backslash or within code is none between cells. */
function cells(line) {
  const parts = line.trim().replace(/^\|/, "").match(/(?:\\.|`[^`]*`|[^|\\])+|\|/g) ?? [];
  const found = [""];
  for (const part of parts) {
    if (part === "|") found.push("");
    else found[found.length - 1] += part;
  }
  if (/\|\s*$/.test(line)) found.pop();
  return found.map((cell) => cell.trim().replaceAll("\\|", "|"));
}

function table([head, delimiters, ...rows]) {
  const sides = cells(delimiters).map((cell) => (cell.endsWith(":") ? (cell.startsWith(":") ? "center" : "right") : ""));
  const row = (line, kind) => {
    const given = cells(line);
    return make("tr", {}, ...sides.map((className, index) => make(kind, { className }, ...inline(given[index] ?? ""))));
  };
  const body = make("tbody", {}, ...rows.map((line) => row(line, "td")));
  const element = make("table", {}, make("thead", {}, row(head, "th")), body);
  return make("div", { className: "table", tabIndex: 0 }, element);
}
