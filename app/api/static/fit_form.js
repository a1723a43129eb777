// Uploads validation data, follows the fit and shows its report.

import { byId, element } from "./elements.js";
import { bytes, percent } from "./formats.js";
import * as service from "./service.js";
import { zipArchive } from "./zip.js";

const POLL_MS = 1000;
const ENDED = ["succeeded", "failed", "cancelled", "interrupted"];

export class FitForm {
  #form = byId("fit-form");
  #jobs = new service.Latest();
  #uploads = new service.Latest();
  #shown = null;

  // `onEnd` gets the ended job; `onProblem` an error.
  constructor(onEnd, onProblem) {
    this.onEnd = onEnd;
    this.onProblem = onProblem;
    this.#form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.submit();
    });
    byId("fit-kind").addEventListener("change", () => {
      byId("fit-images").hidden = this.#kind !== "images";
      byId("fit-logits").hidden = this.#kind !== "logits";
    });
  }

  get #kind() {
    return new FormData(this.#form).get("kind");
  }

  // Shows a model's running fit. An upload or fit of the same model that is shown goes on.
  async show(model) {
    if (model === this.#shown) return;
    this.model = model;
    this.#shown = null;
    this.#jobs.cancel();
    this.#uploads.cancel();
    byId("job").replaceChildren();
    const { jobs } = await service.getJson("/calibrate");
    if (this.model !== model) return;
    this.#shown = model;
    const running = jobs.find((job) => job.model === model && !ENDED.includes(job.state));
    if (running) this.follow(running);
  }

  async submit() {
    const button = this.#form.querySelector("button");
    button.disabled = true;
    try {
      const form = await this.#data();
      const { value, stale } = await this.#uploads.run((signal) => service.upload("/calibrate", form, {
        signal, onProgress: (fraction) => this.#showBar(`Uploading, ${percent(fraction, 0)}`, fraction,
          { id: "cancel-upload", text: "Cancel the upload", onclick: () => this.#uploads.cancel() }),
      }));
      if (stale) byId("job").replaceChildren();
      else this.follow(value);
    } catch (error) {
      byId("job").replaceChildren();
      this.onProblem(error, error.status === 401 ? () => this.submit() : null);
    } finally {
      button.disabled = false;
    }
  }

  async #data() {
    const entered = new FormData(this.#form);
    const form = new FormData();
    form.append("model", this.model);
    for (const name of ["method", "activate", "note"]) if (entered.get(name)) form.append(name, entered.get(name));
    if (this.#kind === "images") {
      form.append("images", await archiveOf(entered.getAll("images"), "images"));
      form.append("labels", await archiveOf(entered.getAll("labels"), "label maps"));
      return form;
    }
    const [logits, labels] = ["logits", "logit-labels"].map((name) => entered.get(name));
    if (!logits.size) throw new service.ServiceError("Expected a file of logits, got none.");
    form.append("logits", logits);
    if (labels.size) form.append("labels", labels);
    return form;
  }

  // Asks for the job's status until it has ended; goes on through short interruptions.
  async follow(job) {
    try {
      await this.#jobs.run(async (signal) => {
        for (let current = job; ;) {
          this.#showJob(current);
          if (ENDED.includes(current.state)) return this.onEnd(current);
          await pause(POLL_MS, signal);
          try {
            current = await service.getJson(`/calibrate/${job.id}`, { signal });
          } catch (error) {
            if (service.isAbort(error) || [401, 404].includes(error.status)) throw error;
            byId("job").firstElementChild.textContent = `${error.message} The page keeps trying; the fit goes on in the service.`;
          }
        }
      });
    } catch (error) {
      if (!service.isAbort(error)) this.onProblem(error, () => this.follow(job));
    }
  }

  // The elements stay as they are between two calls, so that a button keeps the focus.
  #showBar(text, fraction, { id, text: label, onclick }) {
    if (byId("job").lastElementChild?.id !== id) {
      byId("job").replaceChildren(element("p", {}), element("progress", { max: 1, "aria-label": "Progress" }),
        element("button", { type: "button", id, onclick }, label));
    }
    const [line, bar] = byId("job").children;
    line.textContent = text;
    bar.value = fraction;
  }

  #showJob(job) {
    if (!ENDED.includes(job.state)) {
      const remaining = job.remaining_s === null ? "" : `, about ${Math.ceil(job.remaining_s)} s left`;
      const stage = job.state === "queued" ? "Waiting" : `Running: ${job.stage}`;
      this.#showBar(`${stage}, ${percent(job.progress, 0)}${remaining}`, job.progress,
        { id: "cancel-job", text: "Cancel the fit", onclick: () => this.#cancel(job) });
      announce(stage);
      return;
    }
    const sentences = {
      succeeded: job.activated ? "The new version is better and is active." : "The new version was fitted and is not active; the report says why.",
      failed: `The fit failed: ${job.error}`, cancelled: "The fit was cancelled.", interrupted: `The fit was interrupted: ${job.error ?? "the service stopped"}`,
    };
    announce(sentences[job.state]);
    byId("job").replaceChildren(element("p", { class: `notice ${job.state === "succeeded" ? "good" : ""}`, id: "job-end" }, sentences[job.state]));
  }

  async #cancel(job) {
    try {
      await service.getJson(`/calibrate/${job.id}`, { method: "DELETE" });
    } catch (error) {
      this.onProblem(error);
    }
  }
}

// A screen reader reads the status when it changes.
function announce(text) {
  if (byId("status").textContent !== text) byId("status").textContent = text;
}

// One zip archive as it is; several files, or one image, are put into an archive.
async function archiveOf(files, what) {
  const given = files.filter((file) => file.size);
  if (!given.length) throw new service.ServiceError(`Expected a zip archive of ${what} or the files, got none.`);
  if (given.length === 1 && /\.zip$/i.test(given[0].name)) return given[0];
  try {
    return new File([await zipArchive(given)], "files.zip", { type: "application/zip" });
  } catch (error) {
    const total = bytes(given.reduce((sum, file) => sum + file.size, 0));
    throw new service.ServiceError(`The ${what} (${given.length} files, ${total}) could not be read: ${error.message}`);
  }
}

function pause(milliseconds, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, milliseconds);
    signal.addEventListener("abort", () => {
      clearTimeout(timer);
      reject(new DOMException("cancelled", "AbortError"));
    });
  });
}
