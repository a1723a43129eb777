// Images from the file picker, a drop anywhere, the clipboard and the camera.

import { byId } from "./elements.js";

// `onImage` gets a File; `onProblem` a sentence. `enabled` tells whether the page takes images now.
export function connectImageInput(onImage, onProblem, enabled) {
  byId("file").addEventListener("change", (event) => {
    const [file] = event.target.files;
    event.target.value = ""; // the same file may be chosen again
    if (file) onImage(file);
  });
  connectDrop(onImage, onProblem, enabled);
  document.addEventListener("paste", (event) => {
    const file = [...(event.clipboardData?.files ?? [])].find((entry) => entry.type.startsWith("image/"));
    if (!file || !enabled()) return;
    event.preventDefault();
    onImage(file);
  });
  connectCamera(onImage, onProblem);
}

function connectDrop(onImage, onProblem, enabled) {
  const hint = byId("drop-hint");
  const isForPage = (event) => event.dataTransfer?.types.includes("Files") && event.target.type !== "file";
  document.addEventListener("dragover", (event) => {
    if (!isForPage(event)) return;
    event.preventDefault(); // otherwise the browser opens the file
    hint.hidden = !enabled();
  });
  document.addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) hint.hidden = true;
  });
  document.addEventListener("drop", (event) => {
    hint.hidden = true;
    if (!isForPage(event)) return;
    event.preventDefault();
    if (!enabled()) return;
    const [file] = event.dataTransfer.files;
    if (file) onImage(file);
    else onProblem("Expected an image file, got a drop without one.");
  });
}

function connectCamera(onImage, onProblem) {
  const dialog = byId("camera-dialog");
  const video = byId("video");
  // Browsers offer the camera on secure origins and localhost only.
  byId("camera").hidden = !navigator.mediaDevices?.getUserMedia;
  byId("camera").addEventListener("click", async () => {
    try {
      video.srcObject = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment", width: { ideal: 1280 } } });
      byId("shoot").disabled = true;
      dialog.showModal();
    } catch (error) {
      onProblem(`The browser gives no access to a camera: ${error.message}.`);
    }
  });
  video.addEventListener("playing", () => { byId("shoot").disabled = false; });
  dialog.addEventListener("close", () => {
    for (const track of video.srcObject?.getTracks() ?? []) track.stop();
    video.srcObject = null;
  });
  byId("camera-close").addEventListener("click", () => dialog.close());
  byId("shoot").addEventListener("click", async () => {
    const canvas = new OffscreenCanvas(video.videoWidth, video.videoHeight);
    canvas.getContext("2d").drawImage(video, 0, 0);
    const blob = await canvas.convertToBlob({ type: "image/png" });
    dialog.close();
    onImage(new File([blob], "camera.png", { type: blob.type }));
  });
}
