// The conversation that is open, and the answer that is being made for it.

import { Answer } from "./answer.js";
import { complete } from "./api.js";
import * as store from "./store.js";
import { AnswerView, failedTurn, userTurn } from "./turns.js";

export class Chat {
  /**
   * `list` gets the turns. `events` are told what happens: `changed()` after any change, `grew()` while an answer comes,
   * `gaveBack(text, before)` when a message was not answered and its text is the user's again, `failed(error)`.
   */
  constructor(list, events) {
    this.list = list;
    this.events = events;
    this.isPlain = () => false;
    this.run = null;
    this.conversation = store.newConversation();
  }

  /** Shows a conversation; an answer that is being made for another one is stopped. */
  open(conversation) {
    this.stop();
    this.conversation = conversation;
    this.render();
    this.events.changed();
  }

  render(turns = this.conversation.turns) {
    const items = turns.map((turn, index) => {
      if (turn.role === "user") return userTurn(turn, index);
      const view = new AnswerView(index, this.isPlain());
      view.end(turn);
      return view.item;
    });
    this.list.replaceChildren(...items);
  }

  /** Answers a text as the turn at `index`, in place of what stands there and after it. */
  send(text, index = this.conversation.turns.length) {
    return this.answer({ text, index, isTyped: true });
  }

  regenerate() {
    const index = this.conversation.turns.length - 2;
    if (index < 0) return Promise.resolve();
    return this.answer({ text: this.conversation.turns[index].content, index, isTyped: false });
  }

  async answer({ text, index, isTyped }) {
    if (this.run) return;
    const before = this.conversation.turns.slice(0, index);
    const user = { role: "user", content: text };
    const view = new AnswerView(index + 1, this.isPlain());
    const run = { before, user, isTyped, view, answer: new Answer(), controller: new AbortController() };
    this.run = run;
    this.render(before);
    this.list.append(userTurn(user, index), view.item);
    this.events.changed();
    try {
      const body = store.requestBody(this.conversation.system, [...before, user], store.settings());
      for await (const chunk of complete(body, run.controller.signal)) {
        run.answer.take(chunk);
        this.refresh(run);
      }
      if (this.run === run) this.commit(run, false);
    } catch (error) {
      // A run that was stopped has been settled at once.
      if (this.run === run) this.fail(run, error);
    }
  }

  /** Shows what came, once per frame. */
  refresh(run) {
    if (run.frame || this.run !== run) return;
    run.frame = requestAnimationFrame(() => {
      run.frame = 0;
      if (this.run !== run) return;
      run.view.show(run.answer.turn);
      this.events.grew();
    });
  }

  commit(run, isStopped) {
    const turn = run.answer.end(isStopped);
    this.run = null;
    this.conversation.turns = [...run.before, run.user, turn];
    const isKept = store.keep(this.conversation);
    run.view.end(turn);
    this.events.grew();
    this.events.changed(isKept);
  }

  /** The history is as it was before the message. */
  withdraw(run) {
    this.run = null;
    this.render();
    if (run.isTyped) this.events.gaveBack(run.user.content, run.before.length);
    this.events.changed();
  }

  fail(run, error) {
    run.controller.abort();
    this.withdraw(run);
    this.list.append(failedTurn(run.answer.turn, error.message, run.isTyped));
    this.events.failed(error);
    this.events.changed();
    this.events.grew();
  }

  /** What was said so far stays as the answer; if that is nothing, the user's message is taken back. */
  stop() {
    const { run } = this;
    if (!run) return;
    run.controller.abort();
    if (run.answer.saysSomething()) this.commit(run, true);
    else this.withdraw(run);
  }

  clear() {
    this.run?.controller.abort();
    this.run = null;
    this.conversation.turns = [];
    store.keep(this.conversation);
    this.render();
    this.events.changed();
  }
}
