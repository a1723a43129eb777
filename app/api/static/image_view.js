// The image under a slider: labels to the left of it, confidence to the right. Zoom and pan.
//
// Each frame is composed at the screen's resolution: the colours of labels and confidence are read
// from the maps pixel by pixel, so that they are sharp at every zoom and a frame costs the same for
// an image of any size.

import { byId } from "./elements.js";
import { channels, minLevel } from "./prediction.js";

const MAX_ZOOM = 64;
const ZOOM_STEP = 1.5;
const PAN_STEP = 40; // CSS pixels for an arrow key
const HANDLE = 22; // half the width of the slider's handle, as in page.css
const HIDDEN = [0xd0302c28, 0xe0c8c4c0]; // ABGR: ground and stripes of hidden pixels
const GREY = "#808080"; // instead of an image that the browser can't decode

export class ImageView {
  #canvas = byId("canvas");
  #context = this.#canvas.getContext("2d");
  #frame = byId("frame");
  #slider = byId("slider");
  #tint = new OffscreenCanvas(1, 1);
  #scene = null; // {prediction, image, colors}
  #zoom = 1; // 1 shows the whole image
  #center = { x: 0.5, y: 0.5 }; // of the view, as fractions of the image
  #pointers = new Map();
  #scheduled = false;
  #heat;

  // `heat` are 256 colours, three bytes each. `onPixel` gets the index of the pixel to read out.
  constructor(heat, onPixel) {
    this.#heat = packed(heat, 255);
    this.onPixel = onPixel;
    this.style = { threshold: 0, opacity: 0.5, hiddenClasses: new Set(), highlighted: null };
    this.#connect();
  }

  show(prediction, image, classes) {
    const other = !this.#scene || this.#scene.image !== image || this.#scene.prediction.width !== prediction.width
      || this.#scene.prediction.height !== prediction.height;
    this.#scene = { prediction, image, classes };
    this.#frame.style.aspectRatio = `${prediction.width} / ${prediction.height}`;
    // A tall image takes at most two thirds of the window's height.
    this.#frame.parentElement.style.maxWidth = `calc(68vh * ${prediction.width / prediction.height})`;
    if (other) this.fit();
    this.draw();
  }

  setStyle(changes) {
    Object.assign(this.style, changes);
    this.draw();
  }

  fit() {
    this.#zoom = 1;
    this.#center = { x: 0.5, y: 0.5 };
    this.draw();
  }

  // Multiplies the zoom; the point `at` (CSS pixels in the frame, by default its middle) stays.
  zoomBy(factor, at = this.#middle()) {
    const before = this.#toImage(at);
    this.#zoom = Math.min(MAX_ZOOM, Math.max(1, this.#zoom * factor));
    const after = this.#toImage(at);
    this.#center.x += before.x - after.x;
    this.#center.y += before.y - after.y;
    this.draw();
  }

  draw() {
    if (this.#scheduled || !this.#scene) return;
    this.#scheduled = true;
    requestAnimationFrame(() => {
      this.#scheduled = false;
      this.#keepInside();
      this.#paint();
    });
  }

  #middle() {
    return { x: this.#canvas.clientWidth / 2, y: this.#canvas.clientHeight / 2 };
  }

  // CSS pixels in the frame to fractions of the image.
  #toImage({ x, y }) {
    return {
      x: this.#center.x + (x / this.#canvas.clientWidth - 0.5) / this.#zoom,
      y: this.#center.y + (y / this.#canvas.clientHeight - 0.5) / this.#zoom,
    };
  }

  #keepInside() {
    const half = 0.5 / this.#zoom;
    for (const axis of ["x", "y"]) this.#center[axis] = Math.min(1 - half, Math.max(half, this.#center[axis]));
    this.#frame.classList.toggle("zoomed", this.#zoom > 1);
    byId("zoom-value").textContent = `${Number(this.#zoom.toFixed(1))}×`;
  }

  #paint() {
    const { prediction, image } = this.#scene;
    const ratio = window.devicePixelRatio || 1;
    const width = Math.max(1, Math.round(this.#canvas.clientWidth * ratio));
    const height = Math.max(1, Math.round(this.#canvas.clientHeight * ratio));
    if (this.#canvas.width !== width) this.#canvas.width = width;
    if (this.#canvas.height !== height) this.#canvas.height = height;
    const view = {
      left: (this.#center.x - 0.5 / this.#zoom) * prediction.width, width: prediction.width / this.#zoom,
      top: (this.#center.y - 0.5 / this.#zoom) * prediction.height, height: prediction.height / this.#zoom,
    };
    if (image) {
      this.#context.imageSmoothingEnabled = view.width > width;
      this.#context.imageSmoothingQuality = "high";
      this.#context.drawImage(image, view.left, view.top, view.width, view.height, 0, 0, width, height);
    } else {
      this.#context.fillStyle = GREY;
      this.#context.fillRect(0, 0, width, height);
    }
    this.#tint.width = width;
    this.#tint.height = height;
    this.#tint.getContext("2d").putImageData(this.#colors(view, width, height), 0, 0);
    this.#context.drawImage(this.#tint, 0, 0);
    this.#drawDivider(width, height, ratio);
  }

  #splitAt(width) {
    const handle = HANDLE / this.#canvas.clientWidth;
    const value = Number(this.#slider.value) / 100;
    return Math.round(width * (handle + value * (1 - 2 * handle)));
  }

  #colors(view, width, height) {
    const { prediction } = this.#scene;
    const { labels, confidence, abstain } = prediction;
    const pixels = new ImageData(width, height);
    const out = new Uint32Array(pixels.data.buffer);
    const table = this.#labelColors();
    const minimum = minLevel(this.style.threshold);
    const split = this.#splitAt(width);
    const columns = Int32Array.from({ length: width }, (_, x) =>
      Math.min(prediction.width - 1, Math.floor(view.left + (x + 0.5) * view.width / width)));
    for (let y = 0; y < height; y++) {
      const row = prediction.width * Math.min(prediction.height - 1, Math.floor(view.top + (y + 0.5) * view.height / height));
      for (let x = 0; x < width; x++) {
        const index = row + columns[x];
        if (x >= split) out[y * width + x] = this.#heat[confidence[index]];
        else if (labels[index] === abstain || confidence[index] < minimum) out[y * width + x] = HIDDEN[+((x + y) % 12 < 3)];
        else out[y * width + x] = table[labels[index]];
      }
    }
    return pixels;
  }

  // ABGR of each class id; transparent for classes that are switched off.
  #labelColors() {
    const { hiddenClasses, highlighted, opacity } = this.style;
    const classes = this.#scene.classes;
    const table = new Uint32Array(Math.max(...classes.map((entry) => entry.id)) + 1);
    for (const { id, color } of classes) {
      let alpha = Math.round(255 * opacity);
      if (hiddenClasses.has(id)) alpha = 0;
      else if (highlighted !== null) alpha = id === highlighted ? Math.max(alpha, 205) : 25;
      table[id] = packed(channels(color), alpha)[0];
    }
    return table;
  }

  #drawDivider(width, height, ratio) {
    const split = this.#splitAt(width);
    this.#context.fillStyle = "#fff";
    this.#context.fillRect(split - ratio, 0, 2 * ratio, height);
    this.#context.fillStyle = "rgb(0 0 0 / 45%)";
    this.#context.fillRect(split + ratio, 0, ratio, height);
    this.#context.fillRect(split - 2 * ratio, 0, ratio, height);
  }

  #connect() {
    new ResizeObserver(() => this.draw()).observe(this.#canvas);
    this.#slider.addEventListener("input", () => this.draw());
    byId("zoom-in").addEventListener("click", () => this.zoomBy(ZOOM_STEP));
    byId("zoom-out").addEventListener("click", () => this.zoomBy(1 / ZOOM_STEP));
    byId("zoom-fit").addEventListener("click", () => this.fit());
    this.#frame.addEventListener("keydown", (event) => this.#onKey(event));
    // Without Ctrl the wheel scrolls the page; a pinch on a touchpad arrives with it.
    this.#canvas.addEventListener("wheel", (event) => {
      if (!event.ctrlKey && !event.metaKey) return;
      event.preventDefault();
      this.zoomBy(Math.exp(-event.deltaY / 200), { x: event.offsetX, y: event.offsetY });
    }, { passive: false });
    this.#canvas.addEventListener("dblclick", (event) => this.zoomBy(2, { x: event.offsetX, y: event.offsetY }));
    this.#canvas.addEventListener("pointerdown", (event) => {
      this.#canvas.setPointerCapture(event.pointerId);
      this.#pointers.set(event.pointerId, event);
      this.#read({ x: event.offsetX, y: event.offsetY });
    });
    this.#canvas.addEventListener("pointermove", (event) => this.#onMove(event));
    for (const name of ["pointerup", "pointercancel"]) {
      this.#canvas.addEventListener(name, (event) => this.#pointers.delete(event.pointerId));
    }
  }

  #onKey(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const zooms = { "+": ZOOM_STEP, "=": ZOOM_STEP, "-": 1 / ZOOM_STEP };
    const pans = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    if (event.key in zooms) this.zoomBy(zooms[event.key]);
    else if (event.key === "0") this.fit();
    else if (event.key in pans && event.target === this.#frame) {
      this.#panBy(...pans[event.key].map((sign) => sign * PAN_STEP));
    } else return;
    event.preventDefault();
    this.#keepInside();
    this.#read(this.#middle());
  }

  #panBy(x, y) {
    this.#center.x += x / this.#canvas.clientWidth / this.#zoom;
    this.#center.y += y / this.#canvas.clientHeight / this.#zoom;
    this.draw();
  }

  // One pointer pans, two pinch.
  #onMove(event) {
    const previous = this.#pointers.get(event.pointerId);
    if (previous) {
      const others = [...this.#pointers.values()].filter((pointer) => pointer.pointerId !== event.pointerId);
      const distance = (pointer) => Math.hypot(pointer.offsetX - others[0].offsetX, pointer.offsetY - others[0].offsetY);
      if (others.length) this.zoomBy(distance(event) / Math.max(1, distance(previous)), { x: event.offsetX, y: event.offsetY });
      else this.#panBy(previous.offsetX - event.offsetX, previous.offsetY - event.offsetY);
      this.#pointers.set(event.pointerId, event);
    }
    this.#read({ x: event.offsetX, y: event.offsetY });
  }

  #read(at) {
    if (!this.#scene) return;
    const { width, height } = this.#scene.prediction;
    const point = this.#toImage(at);
    const x = Math.min(width - 1, Math.max(0, Math.floor(point.x * width)));
    const y = Math.min(height - 1, Math.max(0, Math.floor(point.y * height)));
    this.onPixel(x, y, y * width + x);
  }
}

// Colours of three bytes each as ABGR words, the order of ImageData in memory.
function packed(colors, alpha) {
  return Uint32Array.from({ length: colors.length / 3 }, (_, i) =>
    (alpha << 24 | colors[3 * i + 2] << 16 | colors[3 * i + 1] << 8 | colors[3 * i]) >>> 0);
}

// The image without the pixels that are hidden, as a PNG; `keep` tells which indices stay.
export function cutOut(prediction, image, keep) {
  const canvas = new OffscreenCanvas(prediction.width, prediction.height);
  const context = canvas.getContext("2d");
  context.drawImage(image, 0, 0);
  const pixels = context.getImageData(0, 0, prediction.width, prediction.height);
  for (let i = 0; i < prediction.labels.length; i++) if (!keep(i)) pixels.data[4 * i + 3] = 0;
  context.putImageData(pixels, 0, 0);
  return canvas.convertToBlob({ type: "image/png" });
}
