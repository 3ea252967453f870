// How numbers, times and small pieces of text are shown.

import { make } from "/web/api.js";

const count = new Intl.NumberFormat();
const clock = new Intl.DateTimeFormat(undefined, { timeStyle: "short" });
const day = new Intl.DateTimeFormat(undefined, { month: "short", day: "numeric", hour: "numeric", minute: "2-digit" });
export const NONE = "–";

export const whole = (value) => (value == null ? NONE : count.format(value));
export const number = (value, digits = 3) => (value == null ? NONE : value.toFixed(digits));
export const percent = (share) => (share == null ? NONE : `${Math.round(100 * share)} %`);
export const rate = (value) => (value == null ? NONE : value.toFixed(value < 10 ? 2 : 0));
export const plural = (value, word) => `${whole(value)} ${word}${value === 1 ? "" : "s"}`;

/** Seconds as people say them: 85 ms, 1.2 s, 3 min. */
export function duration(seconds) {
  if (seconds == null) return NONE;
  if (seconds < 1) return `${Math.round(1000 * seconds)} ms`;
  if (seconds < 90) return `${seconds.toFixed(seconds < 10 ? 1 : 0)} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  return `${Math.round(seconds / 3600)} h`;
}

export function bytes(value) {
  if (value == null) return NONE;
  const steps = ["B", "KB", "MB", "GB", "TB"];
  const step = value > 0 ? Math.min(Math.floor(Math.log2(value) / 10), steps.length - 1) : 0;
  return `${(value / 2 ** (10 * step)).toFixed(step > 1 ? 1 : 0)} ${steps[step]}`;
}

export const hour = (at) => clock.format(new Date(1000 * at));

/** A Unix time: the hour where it was today, else the day with it. */
export function moment(at) {
  const date = new Date(1000 * at);
  return (date.toDateString() === new Date().toDateString() ? clock : day).format(date);
}

export const time = (at) => make("time", { datetime: new Date(1000 * at).toISOString() }, moment(at));

/** Text whose `backticked` parts are code. */
export const text = (words) =>
  words.split("`").map((part, index) => (index % 2 ? make("code", {}, part) : part));

/** A list of terms for a <dl>: `[["term", value], …]`. */
export const terms = (pairs) =>
  pairs.map(([term, value]) => make("div", {}, make("dt", {}, term), make("dd", {}, value)));

/** A table. `head` names the columns, a row is a list of cells; numbers stand on the right. */
export function table(caption, head, rows, amounts = []) {
  const cell = (tag) => (value, column) =>
    make(tag, { class: amounts.includes(column) ? "amount" : null, scope: tag === "th" ? "col" : null }, value);
  return make(
    "table",
    {},
    make("caption", { class: "unseen" }, caption),
    make("thead", {}, make("tr", {}, ...head.map(cell("th")))),
    make("tbody", {}, ...rows.map((row) => make("tr", {}, ...row.map(cell("td"))))),
  );
}

const shown = new WeakMap();

/**
 * Fill `host` with what `build(data)` makes, only if the data has changed: what is open stays open, and the
 * focus stays where it was, by `data-key`.
 */
export function render(host, data, build) {
  const now = JSON.stringify(data);
  if (shown.get(host) === now) return;
  shown.set(host, now);
  const focused = host.contains(document.activeElement) ? document.activeElement.dataset.key : undefined;
  const open = [...host.querySelectorAll("details[open][data-key]")].map((one) => one.dataset.key);
  host.replaceChildren(...[build(data)].flat());
  for (const one of host.querySelectorAll("[data-key]")) {
    if (open.includes(one.dataset.key)) one.open = true;
    if (focused !== undefined && one.dataset.key === focused) one.focus();
  }
}

/** Set an element's text, only if it changed, so that a live region speaks only then. */
export function say(element, words) {
  if (element.textContent !== words) element.textContent = words;
}
