/** Follows the numbers of a connection's events, which tell whether one is missing. */

export class EventNumbers {
  #last = null;

  /** A connection is made. It leaves out what is before the frame that was asked for: numbers are followed from frames on. */
  begin() {
    this.#last = null;
  }

  /**
   * Whether an event is missing before this message, of which a `state` would have told; `type` may be "frames". Behind a
   * `gap` the chunks are missing that it stands for.
   */
  lacksOne(type, seq) {
    const before = this.#last;
    // Progress counts nothing: it has the number of the last event before it.
    const expected = type === "progress" ? before : before + 1;
    if (type === "gap") this.#last = null;
    else if (seq && (type === "frames" || before !== null)) this.#last = type === "state" ? seq : Math.max(seq, before);
    return before !== null && type !== "state" && seq > expected;
  }
}
