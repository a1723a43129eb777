// Sample images, offered where a served model fits them, one click away.

import { byId, element } from "./elements.js";
import { getBlob } from "./service.js";

// A model fits a sample if it has these classes.
const SAMPLES = [
  { file: "street.jpg", title: "Street", classes: ["road", "sky"] },
  { file: "nuclei.png", title: "Cell nuclei", classes: ["nucleus"] },
];

// Shows the samples. `onSelect` gets a function that loads the file, and the model's name.
export function showSamples(models, onSelect) {
  const offered = SAMPLES
    .map((sample) => ({ ...sample, model: fittingModel(sample, models) }))
    .filter((sample) => sample.model);
  byId("samples").replaceChildren(...offered.map(({ file, title, model }) =>
    element("button", { type: "button", class: "sample", id: `sample-${file.split(".")[0]}`, title: `with ${model}`, onclick: () => onSelect(() => load(file), model) },
      element("img", { src: `/static/samples/${file}`, alt: "", width: 120, height: 90 }),
      element("span", {}, element("span", { class: "prefix" }, "Sample: "), title))));
}

// The default model is preferred.
function fittingModel({ classes }, models) {
  const fitting = models.filter((model) => classes.every((name) => model.classes.some((entry) => entry.name === name)));
  return (fitting.find((model) => model.default) ?? fitting[0])?.name;
}

async function load(name) {
  const blob = await getBlob(`/static/samples/${name}`);
  return new File([blob], name, { type: blob.type });
}
