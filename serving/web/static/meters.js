/** How fast things go: numbers that are measured here, and some that the server sends. */

const WINDOW_MS = 6000;

export class Meters {
  #chunks = [];
  #missed = 0;
  #due = [];

  /** Frames have come. */
  received(frames) {
    const now = performance.now();
    this.#chunks.push({ now, frames });
    while (this.#chunks[0].now < now - WINDOW_MS) this.#chunks.shift();
  }

  /** Frames will never come. */
  missed(frames) {
    this.#missed += frames;
  }

  /** A prompt was asked for, to be seen at once; `frame` is where it will be, as its receipt says. */
  asked(at, frame) {
    this.#due.push({ at, frame });
  }

  /** A frame is on the screen. Gives the seconds since the prompt that it shows first was asked for, if there is one. */
  shown(frame) {
    const seen = this.#due.filter((due) => due.frame <= frame);
    this.#due = this.#due.filter((due) => due.frame > frame);
    return seen.length ? (performance.now() - seen.at(-1).at) / 1000 : null;
  }

  /** A new take: what was asked for is gone. */
  begin() {
    this.#due = [];
    this.#chunks = [];
  }

  /** Frames a second that came lately; null while that cannot be said. */
  get delivered() {
    if (this.#chunks.length < 3 || this.#chunks.at(-1).now < performance.now() - WINDOW_MS) return null;
    const frames = this.#chunks.slice(1).reduce((sum, chunk) => sum + chunk.frames, 0);
    return (1000 * frames) / (this.#chunks.at(-1).now - this.#chunks[0].now);
  }

  get missedFrames() {
    return this.#missed;
  }
}
