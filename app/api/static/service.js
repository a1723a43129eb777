// Requests to the service. Every failure is a ServiceError with a sentence for the page.

import { token } from "./token_field.js";

export class ServiceError extends Error {
  // `status` is 0 where no response came.
  constructor(message, { status = 0, retryAfterS = null } = {}) {
    super(message);
    this.status = status;
    this.retryAfterS = retryAfterS;
  }
}

const UNREACHABLE = "The service does not respond. Check that it runs and that this machine is connected, then try again.";

export const isAbort = (error) => error.name === "AbortError";

// Sends a request with the token; resolves to a response of 200 to 299.
export async function send(path, { method = "GET", body, accept, signal } = {}) {
  const headers = { ...authorization(), ...(accept && { Accept: accept }) };
  let response;
  try {
    response = await fetch(path, { method, body, headers, signal, cache: "no-store" });
  } catch (error) {
    if (isAbort(error)) throw error;
    throw new ServiceError(UNREACHABLE);
  }
  if (!response.ok) throw await failure(response);
  return response;
}

// The body may break off after the headers, as where the server stops.
async function bodyOf(response, read) {
  try {
    return await read(response);
  } catch (error) {
    if (isAbort(error)) throw error;
    throw new ServiceError("The response broke off or is not what this page expects. Try again.", { status: response.status });
  }
}

export async function getJson(path, options) {
  return bodyOf(await send(path, options), (response) => response.json());
}

export async function getBlob(path, options) {
  return bodyOf(await send(path, options), (response) => response.blob());
}

export function postJson(path, value, options) {
  const body = new Blob([JSON.stringify(value)], { type: "application/json" });
  return getJson(path, { ...options, method: "POST", body });
}

// Segments a file; `query` holds the options of POST /segment, empty ones are left out.
export async function segment(file, query, { accept = "application/json", signal } = {}) {
  const body = new FormData();
  body.append("image", file);
  return send(`/segment?${queryOf(query)}`, { method: "POST", body, accept, signal });
}

export function queryOf(query) {
  const given = Object.entries(query).filter(([, value]) => value !== null && value !== undefined && value !== "");
  return new URLSearchParams(given);
}

// Uploads a form; `onProgress` gets the sent fraction, which fetch does not tell.
export function upload(path, form, { onProgress, signal }) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open("POST", path);
    for (const [name, value] of Object.entries(authorization())) request.setRequestHeader(name, value);
    request.upload.addEventListener("progress", (event) => onProgress(event.loaded / event.total));
    request.addEventListener("load", async () => {
      const type = request.getResponseHeader("Content-Type") ?? "";
      const retry = request.getResponseHeader("Retry-After");
      const headers = { "Content-Type": type, ...(retry && { "Retry-After": retry }) };
      const response = new Response(request.response, { status: request.status, statusText: request.statusText, headers });
      if (response.ok) resolve(bodyOf(response, (r) => r.json()));
      else reject(await failure(response));
    });
    request.addEventListener("error", () => reject(new ServiceError(UNREACHABLE)));
    request.addEventListener("abort", () => reject(new DOMException("cancelled", "AbortError")));
    signal?.addEventListener("abort", () => request.abort());
    request.send(form);
  });
}

function authorization() {
  return token() ? { Authorization: `Bearer ${token()}` } : {};
}

// Errors of the service are problems (RFC 9457); a proxy in front of it sends its own pages.
async function failure(response) {
  const { status } = response;
  const wait = Number(response.headers.get("Retry-After"));
  const retryAfterS = wait > 0 ? wait : null;
  if (response.headers.get("Content-Type")?.startsWith("application/problem+json")) {
    const problem = await response.json().catch(() => null);
    if (problem?.detail) return new ServiceError(sentence(problem.detail), { status, retryAfterS });
  }
  const name = [status, response.statusText].filter(Boolean).join(" ");
  return new ServiceError(
    `A proxy between this page and the service answered ${name}: the service may be starting, stopped or overloaded.`,
    { status, retryAfterS });
}

const sentence = (detail) => `${detail[0].toUpperCase()}${detail.slice(1)}${/[.!?]$/.test(detail) ? "" : "."}`;

// Runs one task at a time: a newer one aborts the older, whose result is never used.
export class Latest {
  #controller = null;
  #number = 0;

  // Resolves to {value, stale}; `stale` is true where a newer task has started.
  async run(task) {
    this.cancel();
    const number = this.#number;
    const controller = this.#controller = new AbortController();
    try {
      const value = await task(controller.signal);
      return { value, stale: number !== this.#number };
    } catch (error) {
      if (number !== this.#number) return { stale: true };
      throw error;
    }
  }

  cancel() {
    this.#number += 1;
    this.#controller?.abort();
  }
}
