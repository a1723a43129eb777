// Segments one image and shows its labels and confidence; the threshold is applied in the browser.
const $ = (id) => document.getElementById(id);
const state = { image: null, labels: null, confidence: null, heat: null, result: null, file: null, models: [] };

function headers() {
  const token = $("token").value;
  return token ? { Authorization: `Bearer ${token}` } : {};
}

function showMessage(text, isError = false) {
  $("message").textContent = text;
  $("message").classList.toggle("error", isError);
}

async function pixelsOf(blob) {
  const bitmap = await createImageBitmap(blob, { colorSpaceConversion: "none" });
  const canvas = new OffscreenCanvas(bitmap.width, bitmap.height);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(bitmap, 0, 0);
  return context.getImageData(0, 0, bitmap.width, bitmap.height);
}

const blobOf = (base64) => fetch(`data:image/png;base64,${base64}`).then((r) => r.blob());

async function segment() {
  if (!state.file) return;
  showMessage("Segmenting …");
  // A canvas has 8 bits for each colour: labels of more than 255 classes come as runs, not as a PNG.
  const selected = state.models.find((m) => m.name === $("model").value);
  const labels = selected?.num_classes > 255 ? "rle" : "mask";
  const query = new URLSearchParams({ include: `${labels},confidence`, calibrator: $("calibrator").value });
  if ($("model").value) query.set("model", $("model").value);
  // The service answers 409 if the active calibrator has no certified threshold for this error.
  if ($("max-error").value) query.set("max_error", Number($("max-error").value) / 100);
  const form = new FormData();
  form.append("image", state.file);
  const started = performance.now();
  const response = await fetch(`/segment?${query}`, { method: "POST", body: form, headers: headers() });
  const body = await response.json();
  if (response.status === 401) $("token-field").hidden = false;
  if (!response.ok) { $("result").hidden = true; showMessage(body.detail, true); return; }
  state.result = body;
  const heatmap = await fetch(body.links.heatmap, { headers: headers() });
  [state.labels, state.confidence, state.heat] = await Promise.all([
    body.rle ? paintRuns(body) : blobOf(body.mask.data).then(pixelsOf),
    blobOf(body.confidence.data).then(pixelsOf),
    heatmap.blob().then(pixelsOf),
  ]);
  state.image = await imageOf(body);
  const seconds = ((performance.now() - started) / 1000).toFixed(2);
  showMessage(`${body.width}×${body.height} pixels in ${seconds} s, mean confidence ${percent(body.mean_confidence)}`);
  $("result").hidden = false;
  showTable(body);
  setMinThreshold(body.threshold);
  draw();
}

// Decodes COCO's compressed counts: lengths of runs outside and inside of a class in turns.
function runLengths(counts) {
  const lengths = [];
  for (let at = 0; at < counts.length;) {
    let value = 0, shift = 0, digit;
    do {
      digit = counts.charCodeAt(at++) - 48;
      value |= (digit & 31) << shift;
      shift += 5;
    } while (digit & 32);
    if (digit & 16) value |= -1 << shift;
    if (lengths.length > 2) value += lengths.at(-2);
    lengths.push(value);
  }
  return lengths;
}

// Colours the pixels of each class, whose runs go down the columns.
function paintRuns(body) {
  const out = new ImageData(body.width, body.height);
  const colors = new Map(body.classes.map((entry) => [entry.id, entry.color]));
  for (const { class_id: id, counts } of body.rle) {
    const color = [1, 3, 5].map((i) => parseInt(colors.get(id).slice(i, i + 2), 16));
    let position = 0;
    runLengths(counts).forEach((length, index) => {
      for (let i = position; index % 2 && i < position + length; i++) {
        out.data.set(color, 4 * ((i % body.height) * body.width + Math.floor(i / body.height)));
      }
      position += length;
    });
  }
  return out;
}

// Pixels below the service's threshold have no label: the slider starts there.
function setMinThreshold(threshold) {
  const minimum = Math.ceil(100 * (threshold ?? 0));
  $("threshold").min = minimum;
  if (threshold !== null) $("threshold").value = minimum;
}

// Browsers may not decode TIFF; the labels are then shown on grey.
async function imageOf(body) {
  try {
    const pixels = await pixelsOf(state.file);
    return pixels.width === body.width && pixels.height === body.height ? pixels : null;
  } catch { return null; }
}

const percent = (p) => `${(100 * p).toFixed(1)}%`;

function draw() {
  const { labels, confidence, heat, image } = state;
  const threshold = Number($("threshold").value) * 2.55;
  const opacity = Number($("opacity").value) / 100;
  const out = new ImageData(labels.width, labels.height);
  let accepted = 0;
  for (let i = 0; i < out.data.length; i += 4) {
    const isAccepted = confidence.data[i] >= threshold;
    accepted += isAccepted;
    for (let c = 0; c < 3; c++) {
      const background = image ? image.data[i + c] : 128;
      out.data[i + c] = isAccepted
        ? background + (labels.data[i + c] - background) * opacity : background * 0.35;
    }
    out.data[i + 3] = 255;
  }
  paint($("overlay"), out);
  paint($("heat"), heat);
  $("threshold-value").textContent = `${$("threshold").value}%`;
  $("coverage").textContent = percent(accepted / (labels.width * labels.height));
}

function paint(canvas, pixels) {
  canvas.width = pixels.width;
  canvas.height = pixels.height;
  canvas.getContext("2d").putImageData(pixels, 0, 0);
}

function showTable(body) {
  $("classes").replaceChildren(...body.classes.map((entry) => {
    const row = document.createElement("tr");
    const name = row.insertCell();
    const swatch = document.createElement("span");
    swatch.className = "swatch";
    swatch.style.backgroundColor = entry.color;
    name.append(swatch, entry.name);
    for (const value of [entry.fraction, entry.mean_confidence]) {
      const cell = row.insertCell();
      cell.className = "number";
      cell.textContent = percent(value);
    }
    return row;
  }));
  const c = body.calibration;
  $("calibration").textContent = c.calibrator === "none"
    ? "The confidence is the plain softmax: no calibrator is active."
    : `Calibrated by ${c.calibrator} (${c.method}), fitted ${c.fitted_at} on ${c.images} images; ` +
      `image-wise ECE on held-out images ${c.ece_before.toFixed(4)} before, ${c.ece_after.toFixed(4)} after` +
      (c.in_distribution === null ? "" : `; in-distribution score of this image ${c.in_distribution.toFixed(2)}` +
        (c.in_distribution === 0 ? " (unlike those of the fit: temperature scaling only)" : "")) +
      (c.guarantee ? `; ${c.guarantee.applies === false ? "no error is certified for this image: " : ""}` +
        c.guarantee.detail : "") +
      (c.stale ? "; stale: the statistics of recent images differ from those of the fit" : "") + ".";
  $("links").replaceChildren(...Object.entries(body.links).flatMap(([name, url]) => {
    const link = document.createElement("a");
    link.href = url;
    link.textContent = name;
    link.addEventListener("click", (event) => download(event, url));
    return [link, " "];
  }));
}

// A link sends no token: with one, its file is fetched and saved.
async function download(event, url) {
  if (!$("token").value) return;
  event.preventDefault();
  const response = await fetch(url, { headers: headers() });
  if (!response.ok) { showMessage((await response.json()).detail, true); return; }
  const link = document.createElement("a");
  link.href = URL.createObjectURL(await response.blob());
  link.download = url.split("/").pop();
  link.click();
  URL.revokeObjectURL(link.href);
}

function showPixel(event) {
  const box = event.target.getBoundingClientRect();
  const x = Math.floor((event.offsetX / box.width) * state.labels.width);
  const y = Math.floor((event.offsetY / box.height) * state.labels.height);
  const i = 4 * (y * state.labels.width + x);
  const color = [0, 1, 2].map((c) => state.labels.data[i + c].toString(16).padStart(2, "0")).join("");
  const entry = state.result.classes.find((e) => e.color.toLowerCase() === `#${color}`);
  $("pixel").textContent = `At ${x}, ${y}: ${entry ? entry.name : "not labelled"}, ${percent(state.confidence.data[i] / 255)}`;
}

function selectFile(file) {
  if (file) { state.file = file; run(); }
}

function run() {
  segment().catch((error) => showMessage(`The service did not respond: ${error.message}`, true));
}

$("file").addEventListener("change", (event) => selectFile(event.target.files[0]));
for (const id of ["model", "calibrator", "max-error", "token"]) $(id).addEventListener("change", run);
for (const id of ["threshold", "opacity"]) $(id).addEventListener("input", draw);
for (const id of ["overlay", "heat"]) $(id).addEventListener("mousemove", showPixel);
$("form").addEventListener("submit", (event) => event.preventDefault());
for (const name of ["dragover", "dragleave", "drop"]) {
  $("drop").addEventListener(name, (event) => {
    event.preventDefault();
    $("drop").classList.toggle("over", name === "dragover");
    if (name === "drop") selectFile(event.dataTransfer.files[0]);
  });
}

const listing = await fetch("/models").then((response) => response.json()).catch(() => null);
if (listing?.models) {
  state.models = listing.models;
  $("model").replaceChildren(...listing.models.map(
    (m) => new Option(m.title || m.name, m.name, m.default, m.default)));
} else {
  showMessage(listing?.detail ?? "The service does not respond.", true);
}
