/** The timeline as a strip: what has been shown, what is being made, and cues to come, which can be moved. */

import { Blocks } from "./blocks.js";
import { element } from "./dom.js";

const SCALES = [0.5, 1, 2, 4, 8];
const MOVED_PX = 4;
const BEFORE = 0.35; // Where the present is, as a share of the width.
const PENDING_FRAMES = 60;

export class Strip {
  #place;
  #track = element("div", { className: "track" });
  #made = element("div", { className: "made" });
  #ticks = element("div");
  #cues = element("div");
  #head = element("div", { className: "playhead" });
  #scale = 2;
  #state = null;
  #drag = null;
  #moved = null; // Where the cue that the keyboard is at will be.
  #frame = 0;
  #drawn = "";
  #actions;

  /** `actions`: `move(cue, frame)`, `edit(cue)`, `remove(cue)`, and `leave()` when the present is scrolled away. */
  constructor(place, actions) {
    this.#place = place;
    this.#actions = actions;
    this.follows = true;
    this.#track.append(this.#made, this.#ticks, this.#cues, this.#head);
    place.append(this.#track);
    place.addEventListener("touchmove", () => this.#leave(), { passive: true });
    place.addEventListener("wheel", (event) => (event.deltaX || event.shiftKey) && this.#leave(), { passive: true });
    place.addEventListener("pointerdown", (event) => event.target === place && this.#leave());
    place.addEventListener("scroll", () => this.#drawTicks());
    new ResizeObserver(() => this.#draw()).observe(place);
  }

  /** Show how a session stands. */
  show(state) {
    this.#state = state;
    this.#draw();
  }

  /** `frame` is on the screen, and frames before `made` are made. */
  moveTo(frame, made) {
    this.#frame = Math.max(frame, 0);
    this.#head.style.transform = `translateX(${this.#frame * this.#scale}px)`;
    this.#made.style.width = `${made * this.#scale}px`;
    if (this.follows && !this.#drag) this.#scroll();
  }

  /** Go with the present again. */
  follow() {
    this.follows = true;
    this.#scroll();
  }

  /** Show more time, or less. */
  zoom(steps) {
    const place = SCALES.indexOf(this.#scale) + steps;
    this.#scale = SCALES[Math.min(Math.max(place, 0), SCALES.length - 1)];
    this.#draw();
  }

  get #blocks() {
    return new Blocks(this.#state);
  }

  #leave() {
    if (!this.follows || this.#state === null) return;
    this.follows = false;
    this.#actions.leave();
  }

  #scroll() {
    this.#place.scrollLeft = this.#frame * this.#scale - BEFORE * this.#place.clientWidth;
  }

  #draw() {
    if (this.#drag) return;
    const { pending = [], applied = [], next_frame: next = 0 } = this.#state ?? {};
    const last = Math.max(next, pending.at(-1)?.timestamp ?? 0);
    this.#track.style.width = `${last * this.#scale + 2 * this.#place.clientWidth}px`;
    this.#drawTicks();
    const drawn = JSON.stringify([this.#scale, pending, applied, applied.length || next]);
    if (drawn !== this.#drawn) this.#drawCues(pending, applied);
    this.#drawn = drawn;
  }

  #drawCues(pending, applied) {
    const focused = this.#cues.contains(document.activeElement) && document.activeElement.dataset.frame;
    const past = applied.map((cue, number) => this.#past(cue, applied[number + 1]?.frame));
    const coming = pending.map((cue, number) => this.#coming(cue, pending[number + 1]?.timestamp));
    this.#cues.replaceChildren(...past, ...coming);
    for (const frame of [focused, this.#moved]) this.#cueAt(frame)?.focus();
    if (this.#cueAt(this.#moved)) this.#moved = null;
  }

  #cueAt(frame) {
    return this.#cues.querySelector(`.pending[data-frame="${frame}"]`);
  }

  #past(cue, end) {
    const until = end ?? this.#state.pending[0]?.timestamp ?? cue.frame + 10 * PENDING_FRAMES;
    const made = element("div", { className: `cue applied${end === undefined ? " force" : ""}` }, element("span", {}, cue.text));
    made.title = `${cue.text} (applied at frame ${cue.frame})`;
    made.dataset.frame = cue.frame;
    return this.#put(made, cue.frame, until);
  }

  #coming(cue, end) {
    const made = element("button", { type: "button", className: "cue pending" }, element("span", {}, cue.text));
    made.dataset.frame = cue.timestamp;
    made.dataset.testid = "pending-cue";
    made.ariaLabel = `${cue.text}, to come at frame ${cue.timestamp}. Enter edits, arrows move, Delete removes.`;
    made.title = `${cue.text} (frame ${cue.timestamp})`;
    made.onpointerdown = (event) => this.#grab(event, made, cue);
    made.onkeydown = (event) => this.#press(event, cue);
    return this.#put(made, cue.timestamp, end ?? cue.timestamp + PENDING_FRAMES);
  }

  #put(made, from, until) {
    made.style.left = `${from * this.#scale}px`;
    made.style.width = `${Math.max((until - from) * this.#scale - 2, 14)}px`;
    return made;
  }

  #press(event, cue) {
    const steps = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (steps) this.#move(cue, cue.timestamp + steps * this.#blocks.frames);
    else if (event.key === "Delete" || event.key === "Backspace") this.#actions.remove(cue);
    else if (event.key === "Enter") this.#actions.edit(cue);
    else return;
    event.preventDefault();
  }

  #grab(event, made, cue) {
    if (event.button !== 0) return;
    event.preventDefault();
    made.focus();
    made.setPointerCapture(event.pointerId);
    this.#drag = { cue, made, from: this.#pointed(event), frame: cue.timestamp, moved: false };
    made.onpointermove = (moved) => this.#pull(moved);
    made.onpointerup = () => this.#drop();
    made.onpointercancel = () => this.#let();
  }

  /** The frame under the pointer, wherever the strip is scrolled to. */
  #pointed(event) {
    return (event.clientX - this.#place.getBoundingClientRect().left + this.#place.scrollLeft) / this.#scale;
  }

  #pull(event) {
    const { cue, made, from } = this.#drag;
    const moved = this.#pointed(event) - from;
    if (Math.abs(moved) * this.#scale > MOVED_PX) this.#drag.moved = true;
    if (!this.#drag.moved) return;
    const dragged = Math.round(cue.timestamp + moved - this.#blocks.frames / 2);
    this.#drag.frame = Math.max(this.#blocks.appliesAt(dragged), 0);
    made.classList.add("dragged");
    made.style.left = `${this.#drag.frame * this.#scale}px`;
    made.firstChild.textContent = `frame ${this.#drag.frame}`;
  }

  #drop() {
    const { cue, frame, moved } = this.#drag;
    this.#let();
    if (moved) this.#move(cue, frame);
    else this.#actions.edit(cue);
  }

  #let() {
    this.#drag = null;
    this.#drawn = "";
    this.#draw();
  }

  #move(cue, frame) {
    if (frame < 0 || frame === cue.timestamp) return;
    this.#moved = frame;
    this.#actions.move(cue, frame);
  }

  #drawTicks() {
    const first = Math.floor(this.#place.scrollLeft / this.#scale / 16);
    const seconds = Math.ceil(this.#place.clientWidth / this.#scale / 16) + 1;
    const every = [1, 2, 5, 10, 30, 60].find((step) => step * 16 * this.#scale >= 56);
    const ticks = [];
    for (let at = Math.max(0, first - (first % every)); at <= first + seconds; at += every) {
      const tick = element("span", { className: "tick" }, clock(at));
      tick.style.left = `${at * 16 * this.#scale}px`;
      ticks.push(tick);
    }
    this.#ticks.replaceChildren(...ticks);
  }
}

function clock(seconds) {
  return `${Math.floor(seconds / 60)}:${String(seconds % 60).padStart(2, "0")}`;
}
