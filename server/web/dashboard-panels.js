// What `GET /v1/overview` and `GET /v1/learning` say: health, traffic, learner, feedback, log.

import { make } from "/web/api.js";
import { Chart } from "/web/dashboard-charts.js";
import { bytes, duration, hour, moment, number, percent, plural, rate, render, say, table, terms, text, time, whole } from "/web/dashboard-format.js";

const at = (selector) => document.querySelector(selector);
const MARKS = { bad: "✕ Act now", warn: "! Look", note: "· Note" };
const ACTIONS = { resume: "Resume learning", "learn-held": "Learn them again …" };

/** The sentence, and what is to be done; `act(action)` is what an item's button does. */
export function health(overview, act) {
  const section = at("#health");
  section.classList.remove("good", "note", "warn", "bad");
  section.classList.add(overview.health.level);
  say(at("#says"), overview.health.says);
  at("#todo-part").hidden = overview.todo.length === 0;
  render(at("#todo"), [overview.todo, overview.caller.admin], ([todo, mayAct]) =>
    todo.map((one) =>
      make(
        "li",
        {},
        make("span", { class: `mark ${one.level}` }, MARKS[one.level]),
        make("span", {}, `${one.what[0].toUpperCase()}${one.what.slice(1)}`, one.since ? ", since " : "", one.since ? time(one.since) : ""),
        make("span", { class: "do small" }, ...text(one.do)),
        one.action && mayAct
          ? make("button", { type: "button", class: "quiet", "data-key": one.code, onclick: () => act(one.action) }, ACTIONS[one.action])
          : null,
      ),
    ),
  );
}

const clock = { label: "Time", time: true, format: moment, tick: hour };
const requests = new Chart(at("#chart-requests"), "Answers a second", clock, [
  { label: "all", format: rate },
  { label: "errors", format: rate },
]);
const latency = new Chart(at("#chart-latency"), "Time to answer", clock, [
  { label: "half within", format: duration },
  { label: "95 % within", format: duration },
  { label: "first token, half within", format: duration },
]);

export function traffic({ now, hour: sums, history }) {
  render(at("#traffic-now"), [now, sums], () =>
    terms([
      ["answers / s", rate(now.requests_per_s)],
      ["in flight", whole(now.in_flight)],
      ["half within", duration(sums.p50_s)],
      ["95 % within", duration(sums.p95_s)],
      ["first token", duration(sums.first_token_p50_s)],
      ["answers", whole(sums.answers)],
      ["errors", whole(sums.errors)],
    ]),
  );
  requests.show([history.at, history.requests_per_s ?? [], history.errors_per_s ?? []]);
  latency.show([history.at, history.p50_s ?? [], history.p95_s ?? [], history.first_token_p50_s ?? []]);
  render(at("#traffic-errors"), [sums.by_outcome, sums.refusals], () => {
    const errors = Object.entries(sums.by_outcome).filter(([outcome]) => outcome !== "ok");
    const rows = [
      ...errors.map(([reason, count]) => ["answers ended as", make("code", {}, reason), whole(count)]),
      ...Object.entries(sums.refusals).map(([reason, count]) => ["requests refused as", make("code", {}, reason), whole(count)]),
    ];
    if (!rows.length) return make("p", { class: "muted small" }, "No error and no refusal in this time.");
    return [make("h3", {}, "Errors and refusals"), table("Errors and refusals by reason", ["What", "Reason", "Count"], rows, [2])];
  });
}

/** What the learner does, and why it does not train when it does not. */
export function learner(learning) {
  const { state, why, round, step, steps, loss, reported, paused, paused_by, pending, rehearsed, requests: asked } = learning;
  render(at("#learner-now"), [state, why, round, step, steps, loss, paused, paused_by, pending, rehearsed, asked], () => [
    make(
      "p",
      {},
      make("strong", { class: ["silent", "failed", "stopped", null].includes(state) ? "bad" : paused ? "warn" : "" }, state ?? "unknown"),
      round != null ? ` · round ${round}` : "",
      steps ? ` · step ${step ?? 0} of ${steps}` : "",
      loss != null ? ` · loss ${number(loss)}` : "",
    ),
    steps ? make("progress", { max: steps, value: step ?? 0, "aria-label": `Steps of round ${round}` }) : null,
    why ? make("p", { class: "muted said" }, why) : null,
    make(
      "p",
      { class: "small" },
      `${plural(pending, "piece")} of feedback pending; ${plural(rehearsed, "good rating")} to rehearse; ${plural(asked.length, "round")} asked for.`,
    ),
  ].filter(Boolean));
  const heard = at("#learner-now");
  heard.title = reported ? `Last heard of at ${moment(reported)}` : "";
  at("#pause").hidden = paused;
  at("#resume").hidden = !paused;
}

export function log(found) {
  render(at("#log"), found, () => {
    const facts = [
      ["journal", found.free == null ? "in memory" : `${bytes(found.used)}${found.limit ? ` of ${bytes(found.limit)} (${percent(found.used / found.limit)})` : ""}`],
      ["free disk", found.free == null ? "–" : bytes(found.free)],
      ["takes records", found.writable ? "yes" : make("strong", { class: "bad" }, "no")],
      ["view", found.unreadable ? make("strong", { class: "bad" }, found.unreadable) : found.lag ? `${plural(found.lag, "record")} behind` : "up to date"],
      ["waits for broker", found.pending ? make("span", {}, `${plural(found.pending, "record")}, the oldest of `, time(found.pending_since)) : "nothing"],
      ["set aside", found.set_aside ? make("strong", { class: "warn" }, plural(found.set_aside, "record")) : "none"],
    ];
    for (const [type, count] of Object.entries(found.passed_over)) facts.push(["not readable", `${whole(count)} × ${type}`]);
    if (found.unreadable_messages) facts.push(["no records", plural(found.unreadable_messages, "message")]);
    return facts.flatMap(([term, value]) => [make("dt", {}, term), make("dd", {}, value)]);
  });
}

const arrivals = new Chart(at("#chart-feedback"), "Received by the hour, the last day", { ...clock, label: "Hour from" }, [
  { label: "pieces", format: (value) => (Number.isInteger(value) ? whole(value) : ""), bars: true },
]);
const FATES = ["served", "trained", "training", "accepted", "received", "skipped", "quarantined", "refused", "held", "superseded", "withdrawn", "erased"];

export function feedback({ by_status, by_reason, arrived }) {
  arrivals.show([arrived.map((one) => one.at), arrived.map((one) => one.count)]);
  render(at("#fates"), [by_status, by_reason], () => {
    const most = Math.max(1, ...Object.values(by_status));
    const fates = FATES.filter((status) => by_status[status]).map((status) => [status, bar(by_status[status] / most), whole(by_status[status])]);
    if (!fates.length) return make("p", { class: "muted small" }, "No feedback yet.");
    const reasons = by_reason.map(({ status, reason, count }) => [status, make("div", { class: "said" }, reason), whole(count)]);
    return [
      make("div", {}, make("h3", {}, "What became of it"), table("Feedback by status", ["Status", make("span", { class: "unseen" }, "Share"), "Count"], fates, [2])),
      make("div", {}, make("h3", {}, "Why not"), reasons.length ? table("Feedback by reason", ["Status", "Reason", "Count"], reasons, [2]) : make("p", { class: "muted small" }, "Nothing was turned away.")),
    ];
  });
}

function bar(share) {
  const drawn = make("span", {});
  drawn.style.width = `${Math.max(2, 100 * share)}%`;
  return make("div", { class: "bar", "aria-hidden": "true" }, drawn);
}
