/** Messages that wait for their answers, each of which is sent until it has one. */

import { Refusal } from "./refusal.js";

const PATIENCE_MS = 60_000;
const SOONEST_MS = 250;
const TOO_OFTEN = "TOO_MANY_REQUESTS"; // The reason that says that the same will be taken later.

/** Stages of a receipt that come after the answer. */
const LATER = ["applied", "dropped"];

export const CLOSED = () => new Refusal({ code: "UNAVAILABLE", message: "the connection is closed" });

/** Whether an error says that the same may be asked for again. */
export function mayWorkLater({ code, reason }) {
  return code === "UNAVAILABLE" || reason === TOO_OFTEN;
}

export class Outbox {
  #send;
  #waiting = new Map();

  /** `send(text)` says whether it could be sent. */
  constructor(send) {
    this.#send = send;
  }

  /** How many wait for an answer. */
  get size() {
    return this.#waiting.size;
  }

  /** Take a message in, under an id that no other has; from then on it is sent until it is answered. */
  add(id, message, promise) {
    if (this.#waiting.has(id)) {
      promise.failed(new Refusal({ code: "INVALID_ARGUMENT", message: `the id ${id} is another message's` }));
      return;
    }
    const since = performance.now();
    this.#waiting.set(id, { text: JSON.stringify({ ...message, id }), type: message.type, since, ...promise });
    this.#write(id);
  }

  /** Send all of them, over a new connection. */
  sendAll() {
    for (const id of this.#waiting.keys()) this.#write(id);
  }

  /** Something with the id of a message has come. What is refused for now is asked for again. */
  answer({ type, data }) {
    const id = data.command_id;
    const waiting = this.#waiting.get(id);
    if (!waiting || LATER.includes(data.stage)) return;
    const refused = type === "receipt" && data.stage === "refused";
    if (refused && mayWorkLater(data.error) && performance.now() - waiting.since < PATIENCE_MS) {
      setTimeout(() => this.#write(id), Math.max(SOONEST_MS, 1000 * (data.error.retry_after_s ?? 0)));
      return;
    }
    this.#waiting.delete(id);
    if (refused) waiting.failed(new Refusal(data.error));
    else waiting.kept?.(data);
  }

  /** No answer will come any more; what asked for the end of a session that has `ended` needs none. */
  close(ended) {
    for (const { type, kept, failed } of this.#waiting.values()) {
      if (type === "end" && ended) kept?.({});
      else failed(CLOSED());
    }
    this.#waiting.clear();
  }

  #write(id) {
    const message = this.#waiting.get(id);
    if (message && this.#send(message.text)) message.sent?.(id);
  }
}
