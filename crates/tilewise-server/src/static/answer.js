// An answer as it comes: its text, its thoughts, and how long they took.

export class Answer {
  constructor() {
    this.turn = { role: "assistant", content: "", thought: "" };
    this.started = performance.now();
    this.first = 0;
    this.saidFirst = 0;
    this.usage = null;
    this.reason = null;
  }

  take(chunk) {
    this.usage = chunk.usage ?? this.usage;
    const choice = chunk.choices?.[0];
    if (!choice) return;
    this.reason = choice.finish_reason ?? this.reason;
    const thought = choice.delta?.reasoning_content ?? "", said = choice.delta?.content ?? "";
    // A thought is made of tokens as well as what is said.
    if ((thought || said) && !this.first) this.first = performance.now();
    if (said && !this.saidFirst) this.saidFirst = performance.now();
    this.turn.thought += thought;
    this.turn.content += said;
  }

  saysSomething() {
    return Boolean(this.turn.content || this.turn.thought);
  }

  /** The turn that enters the history, with what is told below it. */
  end(isStopped) {
    const now = performance.now();
    if (this.turn.thought) this.turn.thoughtSeconds = ((this.saidFirst || now) - this.first) / 1000;
    this.turn.note = this.note(now, isStopped);
    return this.turn;
  }

  note(now, isStopped) {
    const parts = [];
    if (isStopped) parts.push("stopped");
    if (this.first) parts.push(`first token after ${milliseconds(this.first - this.started)}`);
    if (this.usage) {
      const { prompt_tokens: prompt, completion_tokens: made, prompt_tokens_details: details } = this.usage;
      if (made > 1 && now > this.first) parts.push(`${((made - 1) / (now - this.first) * 1000).toFixed(1)} tokens per second`);
      parts.push(`${prompt} + ${made} tokens, ${details?.cached_tokens ?? 0} cached`);
    }
    if (this.reason === "length") parts.push("cut off by the limit of tokens");
    else if (this.reason && this.reason !== "stop") parts.push(this.reason);
    return parts.join(" · ");
  }
}

function milliseconds(time) {
  return time < 1000 ? `${Math.round(time)} ms` : `${(time / 1000).toFixed(1)} s`;
}
