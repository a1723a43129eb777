// The classes of an image: their colours, shares and confidence; switched on and off, highlighted.

import { byId, element, swatch } from "./elements.js";
import { percent } from "./formats.js";

export class Legend {
  #hidden = new Set();

  // `onChange` gets the style of the image: {hiddenClasses, highlighted}.
  constructor(onChange) {
    this.onChange = onChange;
  }

  get hidden() {
    return this.#hidden;
  }

  // Shows the classes of an answer; those of another model are all switched on.
  show(classes, { reset }) {
    if (reset) this.#hidden = new Set();
    byId("legend").replaceChildren(...classes.map((entry) => this.#row(entry)));
    this.#changed(null);
  }

  #row({ id, name, color, fraction, mean_confidence: confidence }) {
    const box = element("input", { type: "checkbox", onchange: () => {
      if (box.checked) this.#hidden.delete(id);
      else this.#hidden.add(id);
      this.#changed(null);
    } });
    box.checked = !this.#hidden.has(id);
    const highlight = () => this.#changed(box.checked ? id : null);
    const end = () => this.#changed(null);
    return element("tr", { onmouseenter: highlight, onmouseleave: end, onfocusin: highlight, onfocusout: end },
      element("td", {}, element("label", {}, box, swatch(color), name)),
      element("td", { class: "number" }, percent(fraction)),
      element("td", { class: "number" }, percent(confidence)));
  }

  #changed(highlighted) {
    this.onChange({ hiddenClasses: this.#hidden, highlighted });
  }
}
