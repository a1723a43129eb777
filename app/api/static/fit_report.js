// The report of a fit: the decision, what is certified, and the metrics of every candidate.

import { element } from "./elements.js";
import { level, number, percent, signed } from "./formats.js";

const METRICS = [
  ["ece_image", "ECE by image"], ["ece_pooled", "ECE pooled"], ["nll", "NLL"], ["brier", "Brier"],
  ["auroc_misprediction", "AUROC of errors"], ["aurc", "AURC"], ["miou", "mIoU"],
];

export function decisionSentence({ decision }) {
  if (!decision) return element("p", {}, "This version has no report of its fit.");
  return element("p", {}, element("strong", {}, decision.activated ? "Activated by its fit: " : "Not activated by its fit: "), `${decision.why}.`);
}

// The levels that a version certifies, as a table, or why there are none.
export function certifiedLevels(thresholds, certification) {
  if (thresholds.length) {
    return element("div", {},
      element("p", {}, `For images like the fit's, at most the given share of the kept pixels is wrong on average; each test errs with a probability of at most ${level(thresholds[0].delta)}.`),
      table(["At most wrong", "Keeps", "Measured errors", "Confidence from"], thresholds.map((entry) =>
        [level(entry.max_error), percent(entry.coverage), percent(entry.error, 2), percent(entry.threshold)])));
  }
  const reasons = new Set(Object.values(certification?.uncertified ?? {}));
  return element("p", {}, `No error level is certified, so that nothing is guaranteed${reasons.size ? `: ${[...reasons].join("; ")}` : ""}.`);
}

export function candidateTable(report) {
  if (!report.uncalibrated) return "";
  const rows = [["uncalibrated", report.uncalibrated], ...report.candidates.map((entry) => [entry.method, entry])];
  const skipped = Object.entries(report.skipped ?? {});
  return element("div", {},
    table(["Method", ...METRICS.map(([, title]) => title), "Labels changed", "Fit"], rows.map(([name, entry]) => [
      name === report.chosen ? `${name} (chosen)` : name,
      ...METRICS.map(([key]) => number(entry[key])), percent(entry.labels_changed, 2), `${entry.fit_seconds.toFixed(1)} s`])),
    element("p", { class: "hint" }, `Measured on ${report.images.held_out} images held out from the fit of ${report.images.fit}. `
      + `${differenceSentence(report)}${skipped.length ? ` Skipped: ${skipped.map(([name, why]) => `${name} (${why})`).join("; ")}.` : ""}`));
}

function differenceSentence({ ece_difference: difference }) {
  if (!difference) return "";
  return `ECE by image against what was active: ${signed(difference.mean)} (95 % interval ${signed(difference.low)} to ${signed(difference.high)}).`;
}

// A table in a group of its own, which scrolls on narrow screens.
export function table(titles, rows) {
  return element("div", { class: "scroll", tabindex: 0, role: "group", "aria-label": `Table of ${titles.join(", ")}` },
    element("table", {},
      element("thead", {}, element("tr", {}, ...titles.map((title) => element("th", { scope: "col" }, title)))),
      element("tbody", {}, ...rows.map((cells) => element("tr", {}, ...cells.map((cell) =>
        element("td", {}, ...(Array.isArray(cell) ? cell : [cell]))))))));
}
