// Entry point: connects the panels, and segments one image at a time.

import { CalibrationPanel } from "./calibration_panel.js";
import { DecisionPanel } from "./decision_panel.js";
import { connectDownloads, showCodeLines } from "./download_panel.js";
import { byId } from "./elements.js";
import { date, number, percent, versionName } from "./formats.js";
import { connectImageInput } from "./image_input.js";
import { cutOut, ImageView } from "./image_view.js";
import { Legend } from "./legend.js";
import { decodePng } from "./png.js";
import { imageOf, minLevel, predict, uncalibratedConfidence } from "./prediction.js";
import { showSamples } from "./samples.js";
import * as service from "./service.js";
import { Progress } from "./progress.js";
import { askForToken, connectTokenField, token } from "./token_field.js";

const READY_POLL_MS = 1000;

// The page's state. `base` is the answer without a threshold, `shown` that or the certified one.
class Page {
  models = [];
  versions = [];
  file = null;
  base = null;
  shown = null;
  image = null;
  uncalibrated = null;

  #segmentations = new service.Latest();
  #comparisons = new service.Latest();
  #listings = new service.Latest();
  #progress = new Progress();
  #repeat = null; // what failed last, to be tried again

  constructor(heat) {
    this.view = new ImageView(heat, (x, y, index) => this.readOut(x, y, index));
    this.legend = new Legend((style) => this.view.setStyle(style));
    this.decision = new DecisionPanel(() => this.showThreshold(), () => this.segment());
    this.calibration = new CalibrationPanel(
      (error, repeat) => this.report(error, repeat), () => this.loadVersions());
    this.#connect();
  }

  get model() {
    return this.models.find((model) => model.name === byId("model").value);
  }

  #connect() {
    connectTokenField(() => this.tryAgain());
    connectImageInput((file) => this.open(file), (text) => this.report(new service.ServiceError(text)), () => this.acceptsImages);
    connectDownloads(() => this.answer, () => this.cutOut(), (error) => this.report(error));
    byId("model").addEventListener("change", () => this.selectModel(byId("model").value));
    byId("calibrator").addEventListener("change", () => this.segmentAnew());
    byId("opacity").addEventListener("input", () => this.view.setStyle({ opacity: Number(byId("opacity").value) / 100 }));
    byId("retry").addEventListener("click", () => this.tryAgain());
    byId("cancel").addEventListener("click", () => {
      this.#segmentations.cancel();
      this.#progress.end("Cancelled.");
      byId("result").removeAttribute("aria-busy");
    });
    window.addEventListener("hashchange", () => this.route());
  }

  get acceptsImages() {
    return this.models.length > 0 && !byId("segment-section").hidden && !byId("camera-dialog").open;
  }

  // Waits for the models, which a starting service is still loading.
  async start() {
    this.#progress.begin("Loading the models");
    for (;;) {
      try {
        this.models = (await service.getJson("/models")).models;
        break;
      } catch (error) {
        if (error.status !== 503) {
          this.#progress.end("");
          this.report(error, () => this.start());
          return;
        }
        this.#progress.begin(error.message);
        await new Promise((resolve) => setTimeout(resolve, READY_POLL_MS));
      }
    }
    this.#progress.end("Nothing segmented yet.");
    byId("model").replaceChildren(...this.models.map((model) =>
      new Option(model.default ? `${model.name} (default)` : model.name, model.name, model.default, model.default)));
    for (const id of ["model", "file", "camera"]) byId(id).disabled = false;
    showSamples(this.models, async (load, model) => {
      try {
        await this.open(await load(), model);
      } catch (error) {
        this.report(error);
      }
    });
    await this.selectModel(byId("model").value);
    this.route();
    // "/?sample=street" opens with an answer.
    const sample = new URLSearchParams(location.search).get("sample");
    if (sample) document.getElementById(`sample-${sample}`)?.click();
  }

  route() {
    const calibration = location.hash === "#calibration";
    byId("status").textContent = "";
    byId("calibration-section").hidden = !calibration;
    byId("segment-section").hidden = calibration;
    for (const link of document.querySelectorAll("nav a")) {
      if (link.getAttribute("href") === (calibration ? "#calibration" : "#segment")) link.setAttribute("aria-current", "page");
      else link.removeAttribute("aria-current");
    }
    if (calibration && this.models.length) this.calibration.load(this.model);
    if (!calibration && !this.base) this.segment();
  }

  async selectModel(name) {
    byId("model").value = name;
    byId("model-title").textContent = [this.model.title, ...this.model.warnings].join(" ");
    byId("calibrator").replaceChildren(new Option("active", "active"));
    this.decision.reset();
    await this.loadVersions();
    if (location.hash === "#calibration") this.calibration.load(this.model);
    await this.segmentAnew();
  }

  // Lists the model's versions for the selection of a calibrator and of certified levels.
  async loadVersions() {
    const { name } = this.model;
    try {
      const { value, stale } = await this.#listings.run((signal) => service.getJson(`/calibrators?${service.queryOf({ model: name })}`, { signal }));
      if (stale) return;
      this.versions = value.calibrators;
    } catch (error) {
      this.versions = [];
      this.report(error, () => this.loadVersions());
    }
    const chosen = byId("calibrator").value;
    const active = this.versions.find((version) => version.active);
    byId("calibrator").replaceChildren(
      new Option(active ? `active: ${active.method}, ${date(active.fitted_at)}` : "active: none, the plain softmax", "active"),
      new Option("none: the plain softmax", "none"),
      ...this.versions.filter((version) => !version.active).map((version) => new Option(versionName(version), version.id)));
    if ([...byId("calibrator").options].some((option) => option.value === chosen)) byId("calibrator").value = chosen;
    this.offerLevels();
  }

  offerLevels() {
    const chosen = byId("calibrator").value;
    this.decision.offer(this.versions.find((version) => (chosen === "active" ? version.active : version.id === chosen)));
  }

  async open(file, model = byId("model").value) {
    this.file = file;
    if (model !== byId("model").value) await this.selectModel(model);
    else await this.segmentAnew();
  }

  async segmentAnew() {
    this.base = null;
    this.offerLevels();
    await this.segment();
  }

  // Segments the file where needed, and once more where a certified level is chosen.
  async segment() {
    if (!this.file || byId("segment-section").hidden) return; // `route` comes back to it
    const { file } = this;
    const query = { model: byId("model").value, calibrator: byId("calibrator").value };
    this.clearProblem();
    this.#progress.begin(`Segmenting ${file.name}`, { cancellable: true });
    byId("result").setAttribute("aria-busy", "true");
    const started = performance.now();
    try {
      const { value, stale } = await this.#segmentations.run(async (signal) => {
        const base = this.base ?? await predict(file, query, signal);
        const image = this.base ? this.image : await imageOf(file, base, signal);
        if (!this.decision.maxError) return { base, image, shown: base };
        // Named by its id, the version is the same and the image does not count as another one for drift.
        const certified = { ...query, calibrator: base.body.calibration.calibrator, max_error: this.decision.maxError };
        return { base, image, shown: await predict(file, certified, signal) };
      });
      if (stale) return;
      this.#progress.end(`Segmented in ${((performance.now() - started) / 1000).toFixed(2)} s.`);
      this.#show(file, value);
    } catch (error) {
      this.#progress.end("");
      byId("result").removeAttribute("aria-busy");
      this.report(error, () => this.segment());
      // An answer for another image or model must not stay beside the new choice.
      if (!this.base) byId("result").hidden = true;
      else {
        this.decision.reset();
        this.showThreshold();
      }
    }
  }

  #show(file, { base, image, shown }) {
    const other = this.shownModel !== base.body.model;
    const anew = this.base !== base;
    Object.assign(this, { base, image, shown, shownModel: base.body.model });
    const { body } = base;
    byId("start").classList.add("compact");
    byId("segment-title").className = "visually-hidden";
    byId("tagline").hidden = true;
    byId("result").hidden = false;
    byId("result").removeAttribute("aria-busy");
    byId("summary").textContent = `${file.name}: ${base.width} × ${base.height} pixels, ${body.model}, `
      + `mean confidence ${percent(body.mean_confidence)}${image ? "" : "; this browser does not decode the format, so that the image is grey"}`;
    const largest = [...body.classes].sort((a, b) => b.fraction - a.fraction).slice(0, 3);
    byId("view-label").textContent = `Segmented image: ${largest.map((entry) => `${entry.name} ${percent(entry.fraction, 0)}`).join(", ")}`;
    byId("calibrator-detail").textContent = calibratorSentence(body.calibration);
    this.legend.show(body.classes, { reset: other });
    this.showThreshold();
    if (anew) this.compare(file, body);
  }

  showThreshold() {
    if (!this.base) return;
    if (!this.decision.maxError) this.shown = this.base;
    const { threshold } = this.decision;
    this.view.setStyle({ threshold });
    this.view.show(this.shown, this.image, this.base.body.classes);
    this.decision.show(this.shown, this.shown.keptFraction(threshold));
    showCodeLines(this.file, this.query, Boolean(token()));
  }

  // The query of what is shown. "active" stays "active" in the lines that a person takes away.
  get query() {
    const calibrator = byId("calibrator").value;
    return {
      model: this.base.body.model, calibrator: calibrator === "active" ? "" : calibrator,
      min_confidence: this.decision.threshold || "", max_error: this.decision.maxError,
    };
  }

  get answer() {
    return {
      file: this.file, links: this.shown.body.links, linksMatch: !this.decision.threshold,
      query: { ...this.query, calibrator: this.base.body.calibration.calibrator },
    };
  }

  cutOut() {
    if (!this.image) return null;
    const { labels, confidence, abstain } = this.shown;
    const minimum = minLevel(this.decision.threshold);
    return cutOut(this.shown, this.image, (index) => labels[index] !== abstain
      && confidence[index] >= minimum && !this.legend.hidden.has(labels[index]));
  }

  // Gets the plain softmax's confidence for the read-out, after the answer is on the screen.
  async compare(file, { model, calibration }) {
    this.uncalibrated = null;
    this.#comparisons.cancel();
    if (calibration.calibrator === "none") return;
    try {
      const { value, stale } = await this.#comparisons.run((signal) => uncalibratedConfidence(file, model, signal));
      if (!stale) this.uncalibrated = value;
    } catch {
      // The read-out then lacks one number; the answer is complete without it.
    }
  }

  readOut(x, y, index) {
    const { shown, base } = this;
    if (!shown) return;
    const entry = base.body.classes.find(({ id }) => id === base.labels[index]);
    const isKept = shown.labels[index] !== shown.abstain && shown.confidence[index] >= minLevel(this.decision.threshold);
    const before = this.uncalibrated ? `, ${percent(this.uncalibrated[index] / 255)} uncalibrated` : "";
    byId("readout").textContent = `${entry ? entry.name : "unlabelled"} at ${x}, ${y}: confidence ${percent(shown.confidenceAt(index))}${before}`
      + (isKept ? "" : " (hidden)");
  }

  // Shows an error in its own words; `repeat` is offered where trying again may help.
  report(error, repeat = null) {
    this.#repeat = repeat;
    if (error.status === 401) askForToken(token() ? "The service does not accept this token." : "The service requires a token.");
    const wait = error.retryAfterS ? ` Try again in ${error.retryAfterS} s.` : "";
    byId("problem-text").textContent = `${error.message}${wait}`;
    byId("retry").hidden = !repeat;
    byId("problem").hidden = false;
    if (!(error instanceof service.ServiceError)) console.error(error);
  }

  // Repeats what failed last; with nothing failed, reads what another token may show.
  tryAgain() {
    const repeat = this.#repeat ?? (() => (this.models.length ? this.loadVersions() : this.start()));
    this.clearProblem();
    return repeat();
  }

  clearProblem() {
    this.#repeat = null;
    byId("problem").hidden = true;
    byId("problem-text").textContent = "";
  }
}

function calibratorSentence({ calibrator, method, fitted_at: fitted, images, ece_before: before, ece_after: after }) {
  if (calibrator === "none") return "No calibrator: the confidence is the plain softmax.";
  return `${calibrator}: ${method}, fitted ${date(fitted)} on ${images} images. Image-wise ECE on held-out images `
    + `${number(before)} before, ${number(after)} after.`;
}

const scale = await service.getBlob("/static/confidence_scale.png").then((blob) => blob.arrayBuffer());
const { palette } = await decodePng(new Uint8Array(scale));
await new Page(palette).start();
