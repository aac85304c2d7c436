/** What the page has to say, in words, until it is read. */

import { element } from "./dom.js";

const MOST = 4;

export class Notices {
  #place;

  constructor(place) {
    this.#place = place;
  }

  /** Say something. `parts` are texts and elements. */
  tell(...parts) {
    this.#add("notice", parts);
  }

  /** Say something in place of what was said before about the same. */
  tellAbout(topic, text) {
    this.#place.querySelector(`[data-topic="${topic}"]`)?.remove();
    this.#add("notice", [text]).dataset.topic = topic;
  }

  /** Say what went wrong. */
  warn(error) {
    this.#add("notice bad", [sentence(error.message ?? String(error))], error.code);
  }

  clear() {
    this.#place.replaceChildren();
  }

  #add(className, parts, code) {
    const close = element("button", { type: "button", className: "plain", ariaLabel: "Dismiss" }, "×");
    const notice = element("div", { className }, element("p", {}, ...parts), close);
    if (code) notice.dataset.code = code;
    close.onclick = () => notice.remove();
    for (const same of this.#place.children) {
      if (same.textContent === notice.textContent) same.remove();
    }
    this.#place.prepend(notice);
    while (this.#place.children.length > MOST) this.#place.lastChild.remove();
    return notice;
  }
}

export function sentence(text) {
  return `${text.charAt(0).toUpperCase()}${text.slice(1)}${/[.!?]$/.test(text) ? "" : "."}`;
}
