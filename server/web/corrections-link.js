// A link to one exchange, `/corrections#token=…&completion=…`: it opens that exchange and needs no key.

const LINK = "apprentice-link";

/** Whether the address bar holds a link's token. */
export function hasLink() {
  return new URLSearchParams(location.hash.slice(1)).has("token");
}

/** The link that this tab was opened with. Its token leaves the address bar and the history at once. */
export function takeLink() {
  if (hasLink()) {
    const given = new URLSearchParams(location.hash.slice(1));
    keep({ token: given.get("token"), completion: given.get("completion") ?? "", sent: [] });
    history.replaceState(null, "", location.pathname);
  }
  return JSON.parse(sessionStorage.getItem(LINK));
}

/** The feedback that was sent in this tab by its link, newest first: the only one that its reader is shown. */
export function sentByLink() {
  return takeLink()?.sent ?? [];
}

export function rememberSent(id) {
  const link = takeLink();
  if (link) keep({ ...link, sent: [id, ...link.sent] });
}

export function leaveLink() {
  sessionStorage.removeItem(LINK);
  location.reload();
}

function keep(link) {
  sessionStorage.setItem(LINK, JSON.stringify(link));
}
