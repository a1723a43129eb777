// What can be taken away: images, arrays, and the command lines that give the same.

import { byId, element, saveBlob } from "./elements.js";
import * as service from "./service.js";

const ARTEFACTS = [
  { name: "mask", title: "Mask" }, { name: "overlay", title: "Overlay" },
  { name: "confidence", title: "Confidence" }, { name: "heatmap", title: "Heatmap" },
  { name: "data", title: "Data (.npz)" },
];
const NPZ = "application/x-npz";

// `current` returns {file, query, links, linksMatch}; `cutOut` a PNG or null; `onProblem` gets errors.
export function connectDownloads(current, cutOut, onProblem) {
  const guarded = (work) => async (event) => {
    const { target } = event;
    target.disabled = true;
    try {
      await work();
    } catch (error) {
      onProblem(error);
    } finally {
      target.disabled = false;
    }
  };
  const buttons = ARTEFACTS.map(({ name, title }) => element("button", { type: "button", id: `download-${name}`, onclick: guarded(async () => {
    const { file } = current();
    saveBlob(await artefact(name, current()), fileName(file, name, name === "data" ? "npz" : "png"));
  }) }, title));
  const cut = element("button", { type: "button", id: "download-cut-out", onclick: guarded(async () => {
    const blob = await cutOut();
    if (blob) saveBlob(blob, fileName(current().file, "cut-out", "png"));
    else onProblem(new service.ServiceError("Expected an image that this browser can decode for the cut-out; it can't decode this format."));
  }) }, "Cut-out");
  byId("downloads").replaceChildren(...buttons.slice(0, -1), cut, buttons.at(-1));
}

// The stored result where it has the shown threshold; else, or once it has expired, the image is
// segmented again.
async function artefact(name, { file, query, links, linksMatch }) {
  if (linksMatch) {
    try {
      return await service.getBlob(links[name]);
    } catch (error) {
      if (error.status !== 404) throw error;
    }
  }
  const options = name === "data" ? query : { ...query, output: name };
  const response = await service.segment(file, options, { accept: name === "data" ? NPZ : "image/png" });
  return response.blob();
}

const fileName = (file, name, suffix) => `${file.name.replace(/\.[^.]*$/, "")}-${name}.${suffix}`;

// Shows the lines for a shell and for Python that segment the same image with the same options.
export function showCodeLines(file, query, withToken) {
  const address = `${location.origin}/segment?${service.queryOf(query)}`;
  const lines = { curl: curlLines(address, file.name, withToken), Python: pythonLines(address, file, withToken) };
  byId("code-lines").replaceChildren(...Object.entries(lines).map(([title, text]) => {
    const button = element("button", { type: "button", "aria-label": `Copy the ${title} lines`, onclick: () => copy(text, button) }, "Copy");
    return element("div", { class: "code" }, element("h3", {}, title), button,
      element("pre", { tabindex: 0, role: "region", "aria-label": `${title} lines` }, element("code", { id: `code-${title.toLowerCase()}` }, text)));
  }));
}

async function copy(text, button) {
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
  } catch {
    button.textContent = "Select and copy"; // the clipboard needs a secure origin
  }
  setTimeout(() => { button.textContent = "Copy"; }, 2000);
}

const shellQuoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;

function curlLines(address, name, withToken) {
  const header = withToken ? ' -H "Authorization: Bearer $SEGCAL_TOKEN"' : "";
  // curl reads a name with a comma or a semicolon in quotes of its own.
  const field = /^[\w.-]+$/.test(name) ? `image=@${name}` : shellQuoted(`image=@"${name.replaceAll('"', '\\"')}"`);
  return `curl${header} -F ${field} \\\n  ${shellQuoted(address)}`;
}

function pythonLines(address, file, withToken) {
  const headers = { "Content-Type": file.type || "image/tiff" };
  const shown = JSON.stringify(headers).slice(0, -1) + (withToken ? `, "Authorization": "Bearer " + os.environ["SEGCAL_TOKEN"]` : "");
  return [
    `import json, ${withToken ? "os, " : ""}urllib.request`, "",
    `with open(${JSON.stringify(file.name)}, "rb") as image:`,
    `    request = urllib.request.Request(`,
    `        ${JSON.stringify(address)},`,
    `        data=image.read(), headers=${shown}})`,
    `answer = json.load(urllib.request.urlopen(request))`,
    `print(answer["mean_confidence"], answer["calibration"]["calibrator"])`,
  ].join("\n");
}
