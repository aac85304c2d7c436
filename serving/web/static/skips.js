/** What a viewer did not see: while the page slept or was not looked at, or because it was too late. */

const ASLEEP_MS = 3000;
const QUIET_MS = 1200;

export class Skips {
  #tell;
  #looked = Date.now();
  #slept = 0;
  #frames = 0;
  #since = null;

  /** `tell({ slept, frames, frame })` is called once the video goes on, and somebody can read it. */
  constructor(tell) {
    this.#tell = tell;
  }

  /** To be called all the time. Gives the seconds of a sleep that is over now, if there was one while it `plays`. */
  look(plays) {
    const now = Date.now();
    const gap = now - this.#looked;
    this.#looked = now;
    if (gap < ASLEEP_MS || !plays) return 0;
    this.#slept += gap / 1000;
    this.#since = now;
    return gap / 1000;
  }

  /** So many frames were not shown. */
  add(frames) {
    if (frames <= 0) return;
    this.#frames += frames;
    this.#since = Date.now();
  }

  /** `frame` is shown now. */
  tell(frame) {
    if (this.#since === null || document.hidden || Date.now() - this.#since < QUIET_MS) return;
    this.#tell({ slept: this.#slept, frames: this.#frames, frame });
    this.#slept = this.#frames = 0;
    this.#since = null;
  }
}
