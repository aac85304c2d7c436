/** Who this tab is to servers. */

/** An id that nothing else has. Browsers offer `randomUUID` over https only. */
export function randomId() {
  if (crypto.randomUUID) return crypto.randomUUID();
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** The id of this tab, also when its page is loaded again. */
export function clientId() {
  return kept("longtake.client") ?? keep("longtake.client", randomId());
}

/** What this tab keeps under a name, also when its page is loaded again; null where there is nothing. */
export function kept(name) {
  try {
    return sessionStorage.getItem(name);
  } catch {
    return null; // There is no storage here, or none is allowed.
  }
}

/** Keep a text under a name, if there is a place for it. Gives the text. */
export function keep(name, text) {
  try {
    sessionStorage.setItem(name, text);
  } catch {
    return text;
  }
  return text;
}
