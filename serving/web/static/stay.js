/** The page's stay at one session: its connection, its video, and how the session stands. */

import { Meters } from "./meters.js";
import { Player } from "./player.js";

export class Stay {
  #reactor;
  #player;
  #endings;
  #changed;
  #waiting = null;
  state = null;
  progress = null;
  meters = new Meters();

  /**
   * `heard(message, before)` is called with all that comes and how the session stood before, null if that was not known;
   * `changed()` where it stands otherwise, and `skipped` as by the player.
   */
  constructor(reactor, video, { heard, changed, skipped }) {
    this.#reactor = reactor;
    this.#changed = changed;
    this.#player = new Player(video, skipped);
    this.#player.follow(reactor);
    this.#endings = [
      reactor.onMessage((message) => {
        const before = this.state;
        this.#hear(message);
        heard(message, before);
      }),
      reactor.onFrames((piece) => piece.kind === "frames" && this.#come(piece.frames)),
      reactor.onStatus(changed),
    ];
  }

  /** Leave the session, which goes on. */
  close() {
    for (const end of this.#endings) end();
    this.#player.stop();
    this.#reactor.disconnect();
  }

  /** As `Reactor.ask`. */
  ask(type, data) {
    return this.#reactor.ask(type, data);
  }

  takeOver() {
    this.#reactor.takeOver();
  }

  suspend() {
    this.#reactor.suspend();
  }

  wake() {
    this.#reactor.wake();
  }

  /** Stop at the frame that is shown, for good if `pause({ frame })` is granted. */
  async pause(pause) {
    const frame = this.#player.hold();
    if (!(await pause(frame < 0 ? {} : { frame }))) this.#player.release();
  }

  /** Whether this page looks on and steers nothing; `replaced`, because another one has come to steer. */
  get watches() {
    return this.#reactor.watches;
  }

  get replaced() {
    return this.#reactor.replaced;
  }

  /** The frame on the screen; -1 before the first. */
  get frame() {
    return this.#player.frame;
  }

  /** How many frames are there, or being made. */
  get made() {
    const begun = this.state?.state === "running" ? this.progress?.current_start_frame : 0;
    return Math.max(this.state?.next_frame ?? 0, begun ?? 0);
  }

  /** How the session stands, or else the connection to it. */
  get standing() {
    const { status } = this.#reactor;
    if (this.state?.state === "ended") return "ended";
    return { ready: this.state?.state, disconnected: "lost" }[status] ?? status;
  }

  /** What the session waits for, null for nothing. */
  get waiting() {
    return this.standing === "running" ? this.#waiting : null;
  }

  #hear({ type, data }) {
    if (type === "state") this.#settle(data);
    if (type === "heartbeat") this.#wait(data.waiting ?? null);
    if (type === "progress") this.progress = data;
    if (type === "gap") this.meters.missed(data.frames);
  }

  #settle(state) {
    if (state.take !== this.state?.take) {
      this.meters.begin();
      this.progress = null;
    }
    this.state = state;
    this.#waiting = state.waiting;
  }

  #come(frames) {
    this.meters.received(frames);
    this.#wait(null);
  }

  #wait(reason) {
    if (reason === this.#waiting) return;
    this.#waiting = reason;
    this.#changed();
  }
}
