/** Schedules a list of cues of any length: a server takes so many at a time, and the others as those apply. */

const MOST = 2000;
const FEW = 1000;

export class CueFeed {
  #rest = [];
  #schedule;
  #busy = false;

  /** `schedule(cue)` gives something falsy for a cue that was refused. */
  constructor(schedule) {
    this.#schedule = schedule;
  }

  /** Cues that have not been scheduled yet. */
  get waiting() {
    return this.#rest.length;
  }

  /** Schedule the first of `cues`, which are in order. Gives how many were taken. */
  async add(cues) {
    this.#rest.push(...cues);
    return this.#send(MOST);
  }

  /** `pending` cues wait on the server: if those are few, schedule more. */
  async goOn(pending) {
    if (this.waiting && pending < FEW && !this.#busy) await this.#send(MOST - pending);
  }

  /** What has not been scheduled never will be. */
  clear() {
    this.#rest = [];
  }

  async #send(count) {
    this.#busy = true;
    try {
      const answers = await Promise.all(this.#rest.splice(0, count).map((cue) => this.#schedule(cue)));
      return answers.filter(Boolean).length;
    } finally {
      this.#busy = false;
    }
  }
}
