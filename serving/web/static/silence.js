/** Notices a connection that is there and says nothing: behind a sleep, or another network, it is often lost unheard. */

const TICK_MS = 1000;
const SILENT_TICKS = 5; // A server sends something every second, once it has sent anything.
const FIRST_TICKS = 45; // To open a session may take a while.

export class SilenceWatch {
  #ticks = 0;
  #most = FIRST_TICKS;
  #timer;

  /** `lost()` is called where nothing was heard for too long. Time in which the page itself slept does not count. */
  constructor(lost) {
    this.#timer = setInterval(() => {
      this.#ticks += 1;
      if (this.#ticks <= this.#most) return;
      this.begin();
      lost();
    }, TICK_MS);
  }

  /** A connection is made. */
  begin() {
    this.#ticks = 0;
    this.#most = FIRST_TICKS;
  }

  /** Something was heard. */
  heard() {
    this.#ticks = 0;
    this.#most = SILENT_TICKS;
  }

  end() {
    clearInterval(this.#timer);
  }
}
