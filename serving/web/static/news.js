/** What a server tells of its own accord, in words that people read. */

import { count } from "./dom.js";

export class News {
  #notices;

  constructor(notices) {
    this.#notices = notices;
  }

  /** A message has come; of most there is nothing to be said. */
  hear({ type, data }) {
    const said = {
      applied: () => this.#applied(data),
      slowed: () => this.#notices.tell(`${data.held_fps.toFixed(1)} frames a second: ${data.reason}.`),
      resumed: () =>
        this.#notices.tell(`The session went on elsewhere after ${data.silence_s.toFixed(1)} s: ${data.reason}.`),
      replaced: () =>
        this.#notices.tell("Another page steers this session now; this one looks on. Take over to steer it from here."),
    }[type];
    said?.();
  }

  #applied({ frame, cut_tokens: cut, picture_size: size }) {
    if (size) this.#notices.tell(`Pictures of ${size.width}x${size.height} come: the video opened anew at frame ${frame}.`);
    if (!cut) return;
    const message = `the prompt at frame ${frame} is too long: the model does not read its last ${count(cut, "token")}`;
    this.#notices.warn({ message });
  }
}
