// A model's calibrator versions: the active one, its guarantee and diagrams, activation, and fits.

import { reliabilityDiagram, riskCoverageCurve } from "./charts.js";
import { byId, element, light, saveBlob } from "./elements.js";
import { FitForm } from "./fit_form.js";
import { candidateTable, certifiedLevels, decisionSentence, table } from "./fit_report.js";
import { date, number } from "./formats.js";
import * as service from "./service.js";

export class CalibrationPanel {
  #requests = new service.Latest();

  // `onProblem` gets an error and a function to repeat; `onChange` is called after an activation.
  constructor(onProblem, onChange) {
    this.onProblem = onProblem;
    this.onChange = onChange;
    this.fit = new FitForm((job) => this.#onFit(job), onProblem);
  }

  // Shows a model's versions and the running fit; opens the active version, or the given one.
  async load(model, shownId = null) {
    this.model = model;
    byId("calibration").setAttribute("aria-busy", "true");
    if (!shownId) this.#run(() => this.fit.show(model.name), () => this.load(model));
    await this.#run(async () => {
      const { value, stale } = await this.#requests.run(async (signal) => {
        const listing = await service.getJson(`/calibrators?${service.queryOf({ model: model.name })}`, { signal });
        const shown = listing.calibrators.find((version) => (shownId ? version.id === shownId : version.active)) ?? listing.calibrators[0];
        const report = shown && await service.getJson(`/calibrators/${shown.id}/report`, { signal });
        return { listing, shown, report };
      });
      if (stale) return;
      byId("calibration").setAttribute("aria-busy", "false");
      this.#showVersion(value);
      this.#showVersions(value);
    }, () => this.load(model, shownId));
  }

  async #run(work, repeat) {
    try {
      await work();
    } catch (error) {
      byId("calibration").setAttribute("aria-busy", "false");
      if (!service.isAbort(error)) this.onProblem(error, repeat);
    }
  }

  #showVersion({ shown, report }) {
    if (!shown) {
      const damage = this.model.calibrator_damage;
      byId("version").replaceChildren(element("h2", {}, "No calibrator yet"),
        element("p", {}, damage ?? `${this.model.name} answers with the plain softmax. Calibrate it on labelled images below.`));
      return;
    }
    const state = shown.active
      ? shown.stale ? light("bad", "Active, and stale:", "recent images differ from those of the fit; calibrate again.") : light("good", "Active,", "no drift found in recent images.")
      : light("unknown", "Not active.", "");
    const diagrams = [report.reliability && reliabilityDiagram(report.reliability), report.risk_coverage && riskCoverageCurve(report.risk_coverage)];
    byId("version").replaceChildren(element("div", { class: "version" }, element("div", {},
      element("h2", {}, shown.active ? "Active version" : "Version"),
      element("p", {}, element("code", { id: "version-id" }, shown.id)), state,
      element("p", {}, `${shown.method}, fitted ${date(shown.fitted_at)} on ${shown.images} images. Image-wise ECE on held-out images `
        + `${number(shown.ece_before)} before, ${number(shown.ece_after)} after.${shown.note ? ` Note: ${shown.note}.` : ""}`),
      decisionSentence(report),
      element("h3", {}, "What it guarantees"), certifiedLevels(shown.thresholds, report.certification)),
      element("div", { class: "charts" }, ...diagrams.filter(Boolean))),
      element("details", {}, element("summary", {}, "Metrics of all candidates"), candidateTable(report)),
      element("div", { class: "buttons" },
        this.#button("Download the archive", async () => saveBlob(await service.getBlob(`/calibrators/${shown.id}/archive`), `${shown.id}.zip`)),
        this.#button("Report as JSON", async () => saveBlob(new Blob([JSON.stringify(report, null, 2)], { type: "application/json" }), `${shown.id}.json`))));
  }

  #showVersions({ listing, shown }) {
    const activeAt = listing.calibrators.findIndex((version) => version.active);
    const rows = listing.calibrators.map((version, index) => {
      const name = activeAt >= 0 && index > activeAt ? "Roll back" : "Activate";
      const actions = [
        this.#button(version.id === shown.id ? "Shown" : "Show", () => this.load(this.model, version.id), version.id, version.id === shown.id),
        version.active ? element("strong", { class: "badge" }, "active")
          : this.#button(name, () => this.#activate(version.id, name), version.id)];
      return [element("code", {}, version.id), actions, date(version.fitted_at), String(version.images), number(version.ece_before), number(version.ece_after), version.note];
    });
    const damaged = Object.entries(listing.damaged).map(([id, why]) => element("p", { class: "notice" }, `${id} is damaged: ${why}`));
    byId("versions").replaceChildren(
      rows.length ? table(["Version", "Choose", "Fitted", "Images", "ECE before", "ECE after", "Note"], rows) : element("p", {}, "None."),
      ...damaged);
  }

  // `of` completes the text for a screen reader, where several buttons have the same.
  #button(text, work, of = "", disabled = false) {
    const button = element("button", { type: "button", "aria-label": of ? `${text} ${of}` : null, disabled, onclick: async () => {
      button.disabled = true;
      await this.#run(work, work);
      button.disabled = disabled;
    } }, text);
    return button;
  }

  async #activate(id, name) {
    await service.postJson(`/calibrators/${id}/activate`, { reason: `${name} on the web page` });
    byId("status").textContent = `${id} is active.`;
    this.onChange();
    await this.load(this.model, id);
  }

  async #onFit(job) {
    if (!job.calibrator) return;
    this.onChange();
    await this.load(this.model, job.calibrator);
  }
}
