// Keeps the end of a growing text in view, unless the reader has gone back to read.

const NEAR = 48;

export class Follow {
  /** `box` scrolls; `button` shows while its end is out of view, and leads there. */
  constructor(box, button) {
    this.box = box;
    this.button = button;
    this.isAtEnd = true;
    this.last = 0;
    box.addEventListener("scroll", () => this.scrolled(), { passive: true });
    button.addEventListener("click", () => this.toEnd());
    // A keyboard that opens on a phone makes the box smaller.
    new ResizeObserver(() => this.grew()).observe(box);
  }

  distance() {
    return this.box.scrollHeight - this.box.scrollTop - this.box.clientHeight;
  }

  scrolled() {
    // Growth alone moves the end away too: only a reader moves back.
    if (this.distance() < NEAR) this.isAtEnd = true;
    else if (this.box.scrollTop < this.last) this.isAtEnd = false;
    this.last = this.box.scrollTop;
    this.button.hidden = this.isAtEnd;
  }

  grew() {
    if (this.isAtEnd) this.toEnd();
    else this.button.hidden = this.distance() < NEAR;
  }

  toEnd() {
    this.isAtEnd = true;
    this.box.scrollTop = this.box.scrollHeight;
    this.last = this.box.scrollTop;
    this.button.hidden = true;
  }
}
