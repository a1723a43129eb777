// One answer of POST /segment, decoded: labels and confidence of each pixel.

import { bytesOfBase64, decodePng } from "./png.js";
import * as service from "./service.js";

const LEVELS = 255; // of the confidence map

// A decoded answer. `labels` are class ids, `abstain` where the service abstained; `confidence` is
// round(255 p). `body` is the JSON without the maps.
class Prediction {
  constructor(body, mask, confidence) {
    this.body = body;
    this.width = mask.width;
    this.height = mask.height;
    this.labels = mask.values;
    this.confidence = confidence.values;
    this.abstain = mask.values.BYTES_PER_ELEMENT === 1 ? 255 : 65535;
  }

  // The fraction of pixels that are labelled and at least as sure as a threshold in 0..1.
  keptFraction(threshold) {
    const minimum = minLevel(threshold);
    let kept = 0;
    for (let i = 0; i < this.labels.length; i++) {
      kept += this.labels[i] !== this.abstain && this.confidence[i] >= minimum;
    }
    return kept / this.labels.length;
  }

  confidenceAt(index) {
    return this.confidence[index] / LEVELS;
  }
}

export function minLevel(threshold) {
  return threshold * LEVELS;
}

// Segments a file and decodes mask and confidence; `query` holds the options of POST /segment.
export async function predict(file, query, signal) {
  const response = await service.segment(file, { ...query, include: "mask,confidence" }, { signal });
  const body = await response.json();
  const [mask, confidence] = await Promise.all(
    [body.mask, body.confidence].map((part) => decodePng(bytesOfBase64(part.data))));
  delete body.mask;
  delete body.confidence;
  return new Prediction(body, mask, confidence);
}

// Returns the confidence map of the plain softmax, round(255 p), for comparison.
export async function uncalibratedConfidence(file, model, signal) {
  const response = await service.segment(file, { model, calibrator: "none", include: "confidence" }, { signal });
  const body = await response.json();
  return (await decodePng(bytesOfBase64(body.confidence.data))).values;
}

// The image of a file, upright; null where neither the browser nor the overlay gives it.
export async function imageOf(file, prediction, signal) {
  try {
    const bitmap = await createImageBitmap(file);
    if (bitmap.width === prediction.width && bitmap.height === prediction.height) return bitmap;
  } catch {
    // Most browsers do not decode TIFF.
  }
  try {
    return await imageOfOverlay(prediction, signal);
  } catch (error) {
    if (service.isAbort(error)) throw error;
    return null; // the result has expired or was larger than the service keeps
  }
}

// The service's overlay is the mean of the image and the classes' colours, which are known.
async function imageOfOverlay({ body, labels, width, height }, signal) {
  const overlay = await createImageBitmap(await service.getBlob(body.links.overlay, { signal }));
  const canvas = new OffscreenCanvas(width, height);
  const context = canvas.getContext("2d");
  context.drawImage(overlay, 0, 0);
  const pixels = context.getImageData(0, 0, width, height);
  const colors = new Map(body.classes.map(({ id, color }) => [id, channels(color)]));
  for (let i = 0; i < labels.length; i++) {
    const color = colors.get(labels[i]);
    for (let c = 0; c < 3; c++) pixels.data[4 * i + c] = 2 * pixels.data[4 * i + c] - color[c];
  }
  context.putImageData(pixels, 0, 0);
  return createImageBitmap(canvas);
}

// Red, green and blue in 0..255 of "#rrggbb".
export function channels(color) {
  return [1, 3, 5].map((at) => parseInt(color.slice(at, at + 2), 16));
}
