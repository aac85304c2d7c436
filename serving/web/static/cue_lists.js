/** The cues of a session in words: those to come, which can be changed, and those that have been shown. */

import { element } from "./dom.js";

const LISTED = 200;

export class CueLists {
  #pending;
  #applied;
  #actions;
  #listed = "";

  /** `actions`: `edit(cue)` and `remove(cue)`. */
  constructor(pending, applied, actions) {
    this.#pending = pending;
    this.#applied = applied;
    this.#actions = actions;
  }

  /** Show cues. What has not changed is left alone: somebody may be about to press it. */
  show({ pending, applied }, watches) {
    const listed = JSON.stringify([pending, applied, watches]);
    if (listed === this.#listed) return;
    this.#listed = listed;
    const coming = pending.slice(0, LISTED).map((cue) => this.#coming(cue, watches));
    const past = applied.slice(-LISTED).reverse().map((cue) => row(cue.frame, cue.text));
    this.#pending.replaceChildren(...(coming.length ? coming : [row(null, "Nothing is scheduled.")]));
    this.#applied.replaceChildren(...(past.length ? past : [row(null, "Nothing has been shown.")]));
  }

  #coming(cue, watches) {
    const edit = element("button", { type: "button", className: "plain", ariaLabel: `Edit: ${cue.text}` }, "Edit");
    const remove = element("button", { type: "button", className: "plain", ariaLabel: `Delete: ${cue.text}` }, "Delete");
    edit.dataset.testid = "edit";
    remove.dataset.testid = "remove";
    edit.onclick = () => this.#actions.edit(cue);
    remove.onclick = () => this.#actions.remove(cue);
    edit.hidden = remove.hidden = watches;
    return row(cue.timestamp, cue.text, edit, remove);
  }
}

function row(frame, text, ...buttons) {
  const said = element("span", { className: frame === null ? "said none" : "said" }, text);
  if (frame === null) return element("li", {}, said);
  const made = element("li", {}, element("span", { className: "at" }, `frame ${frame}`), said, ...buttons);
  made.dataset.frame = frame;
  return made;
}
