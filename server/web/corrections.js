// The page's frame: who reads it (a key, or a link to one exchange), and which list and exchange are open.

import { actAs, make, signOut, signedIn } from "/web/api.js";
import { exchangePanel, feedbackPanel } from "/web/corrections-exchange.js";
import { openedItem, showLists } from "/web/corrections-list.js";
import { problem } from "/web/corrections-parts.js";

const LINK = "apprentice-link";
const detail = document.querySelector("#detail");
const out = document.querySelector("#sign-out");
let open = null;
let leaving = new AbortController();

/** The link that this tab was opened with. Its token leaves the address bar and the history at once. */
function takeLink() {
  const given = new URLSearchParams(location.hash.slice(1));
  if (given.has("token")) {
    const link = { token: given.get("token"), completion: given.get("completion") };
    sessionStorage.setItem(LINK, JSON.stringify(link));
    history.replaceState(null, "", location.pathname);
  }
  return JSON.parse(sessionStorage.getItem(LINK));
}

/** Put a panel into the place for it; focus its heading when somebody has just asked for it. */
async function show(make, focus) {
  leaving.abort();
  leaving = new AbortController();
  const { signal } = leaving;
  detail.setAttribute("aria-busy", "true");
  let panel;
  try {
    panel = await make(signal);
  } catch (error) {
    panel = problem(error);
  }
  if (signal.aborted) return;
  detail.replaceChildren(panel);
  detail.removeAttribute("aria-busy");
  if (focus) detail.querySelector("h2")?.focus();
}

async function route(focus) {
  const at = new URLSearchParams(location.hash.slice(1));
  if (at.has("token")) return location.reload();
  const list = at.get("list") === "corrections" ? "corrections" : "answers";
  const back = list === "corrections" ? "#list=corrections" : "#";
  const before = open;
  open = at.get("completion") ?? at.get("feedback");
  document.body.classList.toggle("opened", open !== null);
  showLists(list, open);
  if (open !== null) {
    const panel = at.has("completion") ? exchangePanel : feedbackPanel;
    if (open !== before) await show((signal) => panel(open, { signal, back }), focus);
  } else {
    leaving.abort();
    detail.removeAttribute("aria-busy");
    detail.replaceChildren(make("p", { class: "muted welcome" }, "Choose an answer to see it whole and to say how it should have been."));
    if (before !== null) openedItem(before)?.focus();
  }
}

/** The exchange of a link, or why the link does not open it. */
async function linkedPanel(completion, signal) {
  try {
    return await exchangePanel(completion, { signal, linked: true });
  } catch (error) {
    if (![401, 403, 404].includes(error.status)) throw error;
    const next = "Links end after a while. Ask whoever gave it to you for a new one.";
    return make("p", { class: "problem", role: "alert" }, "This link does not open an answer. ", make("span", { class: "hint" }, next));
  }
}

const link = takeLink();
if (link) {
  document.body.classList.add("linked");
  out.textContent = "Leave this link";
  out.addEventListener("click", () => {
    sessionStorage.removeItem(LINK);
    location.reload();
  });
  window.addEventListener("hashchange", () => route(true));
  actAs(link.token);
  await show((signal) => linkedPanel(link.completion ?? "", signal), false);
} else {
  out.addEventListener("click", signOut);
  await signedIn(async () => {
    window.addEventListener("hashchange", () => route(true));
    await route(false);
  });
}
