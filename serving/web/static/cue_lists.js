/** The cues of a session in words: those to come, which can be changed, and those that have been shown. */

import { count, element } from "./dom.js";

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
  show({ pending, pending_count: coming, applied, applied_count: past }, watches) {
    const listed = JSON.stringify([pending, coming, applied, past, watches]);
    if (listed === this.#listed) return;
    this.#listed = listed;
    const next = pending.slice(0, LISTED).map((cue) => this.#coming(cue, watches));
    const last = applied.slice(-LISTED).reverse().map((cue) => row(cue.frame, cue.text));
    this.#pending.replaceChildren(...next, ...rest(coming, next.length, "Nothing is scheduled."));
    this.#applied.replaceChildren(...last, ...rest(past, last.length, "Nothing has been shown."));
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

/** What a list says of those that are not in it. */
function rest(all, listed, none) {
  if (all === 0) return [row(null, none)];
  return all > listed ? [row(null, `and ${count(all - listed, "cue")} more`)] : [];
}

function row(frame, text, ...buttons) {
  const said = element("span", { className: frame === null ? "said none" : "said" }, text);
  if (frame === null) return element("li", {}, said);
  const made = element("li", {}, element("span", { className: "at" }, `frame ${frame}`), said, ...buttons);
  made.dataset.frame = frame;
  return made;
}
