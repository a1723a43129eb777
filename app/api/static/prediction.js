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

// The image of a file as the browser shows it, upright; null where it can't decode the format, as
// TIFF, or where its size differs from the mask's.
export async function imageOf(file, prediction) {
  try {
    const bitmap = await createImageBitmap(file);
    return bitmap.width === prediction.width && bitmap.height === prediction.height ? bitmap : null;
  } catch {
    return null;
  }
}
