// What is kept of an image: a threshold of one's own or a certified level, and what it guarantees.

import { byId, light } from "./elements.js";
import { level, percent } from "./formats.js";

const MIN_IN_DISTRIBUTION = 0.5; // the service's: below it no certified level applies to an image

export class DecisionPanel {
  #levels = [];

  // `onThreshold` is called when the threshold has moved, `onLevel` when a level was chosen.
  constructor(onThreshold, onLevel) {
    byId("threshold").addEventListener("input", () => {
      byId("level").value = "";
      this.#showThreshold();
      onThreshold();
    });
    byId("level").addEventListener("change", () => {
      byId("threshold").value = 0;
      this.#showThreshold();
      onLevel();
    });
  }

  // In 0..1; 0 where a certified level is chosen.
  get threshold() {
    return this.maxError ? 0 : Number(byId("threshold").value) / 100;
  }

  // The chosen level as the service's text, or "".
  get maxError() {
    return byId("level").value;
  }

  // Offers the certified levels of a calibrator version; null where there is none.
  offer(version) {
    const chosen = this.maxError;
    this.#levels = version?.thresholds ?? [];
    const options = this.#levels.map((entry) => new Option(
      `at most ${level(entry.max_error)} wrong, keeps ${percent(entry.coverage)}`, entry.max_error));
    const first = this.#levels.length ? "no limit" : "no level is certified";
    byId("level").replaceChildren(new Option(first, ""), ...options);
    byId("level").disabled = !this.#levels.length;
    byId("level").value = options.some((option) => option.value === chosen) ? chosen : "";
  }

  reset() {
    byId("level").value = "";
  }

  show(prediction, keptFraction) {
    const { calibration, threshold } = prediction.body;
    byId("kept").textContent = percent(keptFraction);
    this.#showThreshold(this.maxError ? threshold : null);
    byId("guarantee").textContent = this.#sentence(calibration);
    byId("lights").replaceChildren(...lights(calibration));
  }

  #showThreshold(certified = null) {
    const value = certified ?? this.threshold;
    byId("threshold-value").textContent = percent(value, certified === null ? 0 : 1);
    if (certified !== null) byId("threshold").value = 100 * certified;
  }

  #sentence({ calibrator, guarantee }) {
    const chosen = this.#levels.find((entry) => String(entry.max_error) === this.maxError);
    if (chosen && guarantee) {
      const base = `On average over images like the fit's at most ${level(chosen.max_error)} of the kept pixels are wrong; `
        + `the test on ${chosen.images} held-out images errs with a probability of at most ${level(chosen.delta)}.`;
      if (guarantee.applies === false) return `It does not apply to this image, which is unlike those of the fit. ${base}`;
      return guarantee.applies ? base : `${base} This calibrator does not measure whether this image is like them.`;
    }
    if (calibrator === "none") return "Nothing is guaranteed: the confidence is the plain softmax, without a calibrator.";
    if (!this.#levels.length) return "Nothing is guaranteed: no error level is certified for this calibrator. The section Calibration has the reasons.";
    return "A threshold of your own guarantees nothing; the certified levels do.";
  }
}

// In-distribution score and drift, as lights with words.
function lights({ calibrator, in_distribution: score, stale }) {
  if (calibrator === "none") return [light("unknown", "Not measured:", "likeness and drift need a calibrator.")];
  return [inDistributionLight(score), stale
    ? light("bad", "Drift:", "recent images differ from those of the fit; calibrate again.")
    : light("good", "No drift", "found in recent images.")];
}

function inDistributionLight(score) {
  if (score === null) return light("unknown", "Likeness not measured", "by this calibrator.");
  const text = `(in-distribution score ${score.toFixed(2)} of 1).`;
  if (score >= MIN_IN_DISTRIBUTION) return light("good", "Like the images of the fit", text);
  if (score > 0) return light("warning", "Partly unlike the images of the fit", text);
  return light("bad", "Unlike the images of the fit", `(in-distribution score 0): only temperature scaling applies.`);
}
