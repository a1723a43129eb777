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

  // Uploads for one model at a time; `show` is called when another model is selected.
  async show(model) {
    this.model = model;
    this.#jobs.cancel();
    this.#uploads.cancel();
    byId("job").replaceChildren();
    const { jobs } = await service.getJson("/calibrate");
    const running = jobs.find((job) => job.model === model && !ENDED.includes(job.state));
    if (running && this.model === model) this.follow(running);
  }

  async submit() {
    const button = this.#form.querySelector("button");
    button.disabled = true;
    try {
      const form = await this.#data();
      const { value, stale } = await this.#uploads.run((signal) => service.upload("/calibrate", form, {
        signal, onProgress: (fraction) => this.#showBar(`Uploading, ${percent(fraction, 0)}`, fraction),
      }));
      if (!stale) this.follow(value);
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
            this.#showBar(`${error.message} The page keeps trying; the fit goes on in the service.`, current.progress);
          }
        }
      });
    } catch (error) {
      if (!service.isAbort(error)) this.onProblem(error, () => this.follow(job));
    }
  }

  #showBar(text, fraction, ...more) {
    let [line, bar] = byId("job").children;
    if (!bar) {
      line = element("p", {});
      bar = element("progress", { max: 1, "aria-label": "Progress" });
      byId("job").replaceChildren(line, bar);
    }
    if (line.textContent !== text) line.textContent = text;
    bar.value = fraction;
    while (byId("job").children.length > 2) byId("job").lastChild.remove();
    byId("job").append(...more);
  }

  #showJob(job) {
    if (!ENDED.includes(job.state)) {
      const remaining = job.remaining_s === null ? "" : `, about ${Math.ceil(job.remaining_s)} s left`;
      const cancel = element("button", { type: "button", id: "cancel-job", onclick: () => this.#cancel(job) }, "Cancel the fit");
      this.#showBar(`${job.state === "queued" ? "Waiting" : `Running: ${job.stage}`}, ${percent(job.progress, 0)}${remaining}`, job.progress, cancel);
      return;
    }
    const sentences = {
      succeeded: job.activated ? "The new version is better and is active." : "The new version was fitted and is not active; the report says why.",
      failed: `The fit failed: ${job.error}`, cancelled: "The fit was cancelled.", interrupted: `The fit was interrupted: ${job.error ?? "the service stopped"}`,
    };
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
