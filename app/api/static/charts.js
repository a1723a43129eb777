// Reliability diagram and risk-coverage curve, before and after calibration, as SVG.

import { element, svgElement } from "./elements.js";

const SIZE = 300;
const MARGIN = { left: 58, right: 22, top: 10, bottom: 42 };
const TICKS = [0, 0.25, 0.5, 0.75, 1];

// Accuracy over confidence; each point is a bin, its area the bin's share of the pixels.
export function reliabilityDiagram({ before, after }) {
  const chart = new Chart("confidence", "accuracy", 1);
  chart.line([[0, 0], [1, 1]], "diagonal");
  for (const [bins, name] of [[before, "before"], [after, "after"]]) {
    const total = bins.reduce((sum, bin) => sum + bin.pixels, 0);
    chart.line(bins.map((bin) => [bin.confidence, bin.accuracy]), name);
    for (const bin of bins) chart.point(bin.confidence, bin.accuracy, 2 + 7 * Math.sqrt(bin.pixels / total), name);
  }
  return figure(chart, "Reliability diagram", "On the diagonal the confidence equals the accuracy. The size of a point is its share of the pixels.");
}

// The share of wrong pixels among the kept ones, by the share that is kept.
export function riskCoverageCurve({ before, after }) {
  const highest = Math.max(...[...before, ...after].map((point) => point.risk), 1e-6);
  const chart = new Chart("share kept", "errors among them", axisEnd(highest));
  for (const [points, name] of [[before, "before"], [after, "after"]]) {
    chart.line(points.map((point) => [point.coverage, point.risk]), name);
  }
  return figure(chart, "Risk–coverage curve", "The lower the curve, the fewer errors are among the pixels that are kept.");
}

// The least axis with four readable steps that holds a value.
function axisEnd(value) {
  const power = 10 ** Math.floor(Math.log10(value / 4));
  return 4 * power * [1, 2, 2.5, 5, 10].find((step) => 4 * step * power >= value);
}

class Chart {
  constructor(xLabel, yLabel, top) {
    this.top = top;
    this.svg = svgElement("svg", { viewBox: `0 0 ${SIZE} ${SIZE}`, class: "chart" });
    for (const tick of TICKS) {
      const [x, y] = [this.#x(tick), this.#y(tick * top)];
      this.svg.append(
        svgElement("path", { class: "grid", d: `M${x},${this.#y(0)}V${this.#y(top)}M${this.#x(0)},${y}H${this.#x(1)}` }),
        svgElement("text", { x, y: SIZE - MARGIN.bottom + 15, "text-anchor": "middle" }, tickLabel(tick)),
        svgElement("text", { x: MARGIN.left - 5, y: y + 4, "text-anchor": "end" }, tickLabel(tick * top)));
    }
    const middle = (SIZE - MARGIN.bottom + MARGIN.top) / 2;
    this.svg.append(
      svgElement("text", { x: (MARGIN.left + SIZE - MARGIN.right) / 2, y: SIZE - 6, "text-anchor": "middle" }, xLabel),
      svgElement("text", { x: 10, y: middle, "text-anchor": "middle", transform: `rotate(-90 10 ${middle})` }, yLabel));
  }

  #x(value) {
    return MARGIN.left + value * (SIZE - MARGIN.left - MARGIN.right);
  }

  #y(value) {
    return SIZE - MARGIN.bottom - value / this.top * (SIZE - MARGIN.bottom - MARGIN.top);
  }

  line(points, name) {
    const path = points.map(([x, y]) => `${this.#x(x).toFixed(1)},${this.#y(y).toFixed(1)}`).join("L");
    if (path) this.svg.append(svgElement("path", { class: `line ${name}`, d: `M${path}` }));
  }

  point(x, y, r, name) {
    this.svg.append(svgElement("circle", { class: `point ${name}`, cx: this.#x(x), cy: this.#y(y), r }));
  }
}

const tickLabel = (value) => `${Number((100 * value).toPrecision(2))} %`;

function figure(chart, title, explanation) {
  chart.svg.setAttribute("role", "img");
  chart.svg.setAttribute("aria-label", `${title}, before and after calibration. ${explanation}`);
  const key = (name, text) => element("span", { class: "key" },
    svgElement("svg", { viewBox: "0 0 24 8", width: 24, height: 8, "aria-hidden": "true" },
      svgElement("path", { class: `line ${name}`, d: "M0,4H24" })), text);
  return element("figure", {}, element("figcaption", {}, element("strong", {}, title), " ", key("before", "before"), key("after", "after")),
    chart.svg, element("p", { class: "hint" }, explanation));
}
