// How turns look: a message of the user, an answer with its foldable thoughts, and an attempt that failed.

import { make, Markdown } from "./markdown.js";

function button(action, label, title) {
  const element = make("button", { type: "button", className: action, textContent: label, title });
  element.dataset.action = action;
  return element;
}

export function userTurn(turn, index) {
  const text = make("div", { className: "text", textContent: turn.content });
  const actions = make("div", { className: "actions" }, button("edit", "Edit", "Change this message and answer it again"), button("copy", "Copy", "Copy this message"));
  const item = make("li", { className: "user" }, text, actions);
  item.dataset.index = index;
  return item;
}

/** An answer that may still grow. */
export class AnswerView {
  constructor(index, isPlain) {
    this.summary = make("summary", { textContent: "Thinking…" });
    this.thought = make("div", { className: "thought-text" });
    this.thoughts = make("details", { className: "thought", hidden: true }, this.summary, this.thought);
    this.said = make("div", { className: isPlain ? "said plain" : "said markdown" });
    this.markdown = isPlain ? null : new Markdown(this.said);
    this.note = make("small", { className: "note" });
    this.actions = make("div", { className: "actions", hidden: true },
      button("copy", "Copy", "Copy this answer as it was written"), button("regenerate", "Regenerate", "Answer again"));
    this.waiting = make("div", { className: "waiting", textContent: "…" });
    this.item = make("li", { className: "assistant" }, this.thoughts, this.said, this.waiting, make("footer", {}, this.actions, this.note));
    this.item.dataset.index = index;
  }

  show(turn) {
    this.thoughts.hidden = !turn.thought;
    if (this.thought.textContent !== turn.thought) this.thought.textContent = turn.thought ?? "";
    if (this.markdown) this.markdown.show(turn.content);
    else this.said.textContent = turn.content;
    this.waiting.hidden = Boolean(turn.content || turn.thought);
  }

  /** What is true once the answer is whole, or was stopped. */
  end(turn) {
    this.show(turn);
    this.waiting.hidden = true;
    if (turn.thought) this.summary.textContent = `Thought for ${(turn.thoughtSeconds ?? 0).toFixed(1)} s`;
    if (!turn.content) this.said.replaceChildren(make("p", { className: "empty", textContent: "(no text)" }));
    this.note.textContent = turn.note ?? "";
    this.actions.hidden = false;
  }
}

/** What came before an answer failed, and why it did; it is no part of the history. */
export function failedTurn(turn, message, isBack) {
  const item = make("li", { className: "failed" });
  if (turn.content) item.append(make("div", { className: "text", textContent: turn.content }));
  item.append(make("p", { className: "wrong", textContent: message }));
  if (isBack) item.append(make("p", { className: "hint", textContent: "Your message is back in the box." }));
  return item;
}
