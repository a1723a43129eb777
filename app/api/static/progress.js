// What is under way, in words; silent for what ends at once.

import { byId } from "./elements.js";

const SHOWN_AFTER_MS = 250;
const STEP_MS = 5000; // of the elapsed time that is shown

export class Progress {
  #timer = null;
  #started = 0;
  #text = "";

  // Says what is under way, a moment later if it has not ended by then.
  begin(text, { cancellable = false } = {}) {
    const continues = this.#timer !== null && text === this.#text;
    this.#text = text;
    if (continues) return;
    this.#stop();
    this.#started = performance.now();
    this.#timer = setInterval(() => this.#show(cancellable), SHOWN_AFTER_MS);
  }

  end(text) {
    this.#stop();
    byId("status").textContent = text;
    byId("cancel").hidden = true;
    document.body.classList.remove("busy");
  }

  #show(cancellable) {
    const elapsed = performance.now() - this.#started;
    // In steps of 5 s, since a screen reader reads every change.
    const wait = elapsed < STEP_MS ? "" : ` for more than ${5 * Math.floor(elapsed / STEP_MS)} s`;
    const text = `${this.#text} …${wait}`;
    if (byId("status").textContent !== text) byId("status").textContent = text;
    byId("cancel").hidden = !cancellable;
    document.body.classList.add("busy");
  }

  #stop() {
    clearInterval(this.#timer);
    this.#timer = null;
  }
}
