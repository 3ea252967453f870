// Small things that all parts of the page use.

import { Refused, make } from "/web/api.js";

const dialog = document.querySelector("#confirm");

/** Say something to those who listen to the page instead of seeing it. */
export function announce(text) {
  document.querySelector("#status").textContent = text;
}

/** Let the lists know that feedback has changed. */
export function tellLists() {
  document.dispatchEvent(new Event("feedback"));
}

/** What went wrong and the next step, as an alert. */
export function problem(error) {
  if (error instanceof Refused) {
    const hint = error.hint ? make("span", { class: "hint" }, sentence(error.hint)) : null;
    return make("p", { class: "problem", role: "alert" }, `${sentence(error.message)} `, hint);
  }
  const away = error instanceof TypeError ? "The server does not answer." : "The server's answer makes no sense.";
  return make("p", { class: "problem", role: "alert" }, away, " ", make("span", { class: "hint" }, "Try again in a moment."));
}

/** Back to the list, where only one of list and answer has room. */
export function backLink(href) {
  return make("a", { class: "back", href }, "‹ Back to the list");
}

/** A text of the API as a sentence of a page. */
export function sentence(text) {
  const whole = text.charAt(0).toUpperCase() + text.slice(1);
  return /[.!?…]$/.test(whole) ? whole : `${whole}.`;
}

const WHOLE = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "short" });
const DAY = new Intl.DateTimeFormat(undefined, { dateStyle: "medium" });
const HOUR = new Intl.DateTimeFormat(undefined, { timeStyle: "short" });

/** A time of the API, which is in Unix seconds. */
export function when(seconds) {
  return time(seconds, () => WHOLE);
}

/** The same in short: the time of today, the day of any other. */
export function roughly(seconds) {
  return time(seconds, (date) => (date.toDateString() === new Date().toDateString() ? HOUR : DAY));
}

function time(seconds, format) {
  const date = new Date(seconds * 1000);
  return make("time", { datetime: date.toISOString() }, format(date).format(date));
}

export function policyName(version) {
  return version === 0 ? "the base model" : `policy ${String(version).padStart(6, "0")}`;
}

/** The text of a message, which may be in parts, or a call of a tool. */
export function textOf(message) {
  const { content } = message;
  const text = Array.isArray(content) ? content.map((part) => part.text ?? `[${part.type}]`).join("\n") : (content ?? "");
  const calls = (message.tool_calls ?? []).map((one) => `${one.function?.name}(${one.function?.arguments})`);
  return [text, ...calls].filter(Boolean).join("\n");
}

/** Ask before something is done that cannot be undone. */
export function confirmed(title, why, yes) {
  dialog.querySelector("h2").textContent = title;
  dialog.querySelector("p").textContent = why;
  const agree = dialog.querySelector("#confirm-yes");
  agree.textContent = yes;
  dialog.returnValue = "";
  dialog.showModal();
  agree.onclick = () => dialog.close("yes");
  dialog.querySelector("#confirm-no").onclick = () => dialog.close();
  return new Promise((resolve) => dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true }));
}
