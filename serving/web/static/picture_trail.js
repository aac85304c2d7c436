/** Pictures on their way: when each was taken, and which frame was made of it. */

const KEPT = 1000;
const WINDOW_MS = 2000;

export class PictureTrail {
  #taken = new Map();
  #pictures = new Map();
  #take = null;

  /** A picture has been sent, taken at a time of `performance.now`. */
  sent(id, taken) {
    this.#taken.set(id, taken);
    forgetOldest(this.#taken);
  }

  /** Frames were made of pictures. */
  made({ take, first_frame: first, pictures }) {
    if (take !== this.#take) this.#pictures.clear();
    this.#take = take;
    for (const [number, id] of pictures.entries()) this.#pictures.set(first + number, id);
    forgetOldest(this.#pictures);
  }

  /** Seconds since the picture was taken that a frame was made of; null where that is not known. */
  age(frame) {
    const taken = this.#taken.get(this.#pictures.get(frame));
    return taken === undefined ? null : (performance.now() - taken) / 1000;
  }

  /** Pictures a second that were sent lately. */
  get rate() {
    const since = performance.now() - WINDOW_MS;
    return (1000 * [...this.#taken.values()].filter((taken) => taken > since).length) / WINDOW_MS;
  }
}

function forgetOldest(map) {
  while (map.size > KEPT) map.delete(map.keys().next().value);
}
