// The bearer token, kept for this tab in sessionStorage and sent in a header, never in an address.

import { byId } from "./elements.js";

const KEY = "segcal-token";

export const token = () => sessionStorage.getItem(KEY) ?? "";

// Calls `onChange` when another token is entered.
export function connectTokenField(onChange) {
  const form = byId("token-form");
  byId("token").value = token();
  show();
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const value = byId("token").value.trim();
    if (value) sessionStorage.setItem(KEY, value);
    else sessionStorage.removeItem(KEY);
    show();
    byId("token-menu").open = false;
    byId("token-reason").textContent = "";
    onChange();
  });
}

function show() {
  byId("token-state").textContent = token() ? "Token set" : "Token";
}

// Opens the field after a 401, with the reason.
export function askForToken(reason) {
  byId("token-reason").textContent = reason;
  byId("token-menu").open = true;
  byId("token").focus();
}
