/** Pages that are left may come back as they were, and those that nobody looked at may have lost their connection. */

/** `leave()` is called when the page is left, and `wake()` when it may have slept. */
export function watchForSleep({ leave, wake }) {
  window.addEventListener("pagehide", leave);
  window.addEventListener("pageshow", wake);
  window.addEventListener("online", wake);
  document.addEventListener("visibilitychange", () => document.hidden || wake());
}
