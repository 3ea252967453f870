// The page's frame: who reads it (a key, or a link to one exchange), and which list and exchange are open.

import { actAs, make, signOut, signedIn } from "/web/api.js";
import { exchangePanel, feedbackPanel } from "/web/corrections-exchange.js";
import { hasLink, leaveLink, takeLink } from "/web/corrections-link.js";
import { openedItem, showLists } from "/web/corrections-list.js";
import { backLink, problem } from "/web/corrections-parts.js";

const detail = document.querySelector("#detail");
const out = document.querySelector("#sign-out");
let open = null;
let turn = 0;

/** Put a panel into the place for it; focus its heading when somebody has just asked for it. */
async function show(panel, focus) {
  const mine = ++turn;
  detail.setAttribute("aria-busy", "true");
  const shown = await panel;
  if (mine !== turn) return; // something else was opened meanwhile
  detail.replaceChildren(shown);
  detail.removeAttribute("aria-busy");
  if (focus) detail.querySelector("h2")?.focus();
}

async function route(focus) {
  const at = new URLSearchParams(location.hash.slice(1));
  const list = at.get("list") === "corrections" ? "corrections" : "answers";
  const back = list === "corrections" ? "#list=corrections" : "#";
  const before = open;
  open = at.get("completion") ?? at.get("feedback");
  document.body.classList.toggle("opened", open !== null);
  showLists(list, open);
  if (open !== null) {
    const panel = at.has("completion") ? exchangePanel : feedbackPanel;
    if (open !== before) {
      const failed = (error) => make("div", {}, backLink(back), problem(error));
      await show(panel(open, { back }).catch(failed), focus);
    }
  } else {
    const welcome = "Choose an answer to see it whole and to say how it should have been.";
    await show(Promise.resolve(make("p", { class: "muted welcome" }, welcome)), false);
    if (before !== null) openedItem(before)?.focus();
  }
}

/** The exchange of a link, or why the link does not open it. */
async function linkedPanel(completion) {
  try {
    return await exchangePanel(completion, { linked: true });
  } catch (error) {
    if (![401, 403, 404].includes(error.status)) throw error;
    const next = "Links end after a while. Ask whoever gave it to you for a new one.";
    return make("p", { class: "problem", role: "alert" }, "This link does not open an answer. ", make("span", { class: "hint" }, next));
  }
}

window.addEventListener("hashchange", () => hasLink() && location.reload());

const link = takeLink();
if (link) {
  document.body.classList.add("linked");
  out.textContent = "Leave this link";
  out.addEventListener("click", leaveLink);
  actAs(link.token);
  await show(linkedPanel(link.completion).catch(problem), false);
} else {
  out.addEventListener("click", signOut);
  await signedIn(async () => {
    window.addEventListener("hashchange", () => route(true));
    await route(false);
  });
}
