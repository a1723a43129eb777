// Builds and finds elements of the page.

export const byId = (id) => document.getElementById(id);

// Creates an element. Attributes whose names begin with "on" are event listeners; null and false
// leave an attribute out.
export function element(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

const SVG = "http://www.w3.org/2000/svg";

export function svgElement(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== null && value !== false) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null));
  return node;
}

// A coloured square; a style attribute would violate the page's policy, a property does not.
export function swatch(color) {
  const node = element("span", { class: "swatch", "aria-hidden": "true" });
  node.style.backgroundColor = color;
  return node;
}

// A light whose word says the same as its colour: "good", "warning", "bad" or "unknown".
export function light(level, word, detail) {
  return element("p", { class: `light ${level}` },
    element("span", { class: "lamp", "aria-hidden": "true" }), element("span", {}, element("strong", {}, word), ` ${detail}`));
}

export function saveBlob(blob, name) {
  const link = element("a", { href: URL.createObjectURL(blob), download: name });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}
