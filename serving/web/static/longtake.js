/**
 * A connection to a Longtake server, for pages and scripts:
 *
 *     import * as longtake from "http://HOST:8000/static/longtake.js";
 *     const reactor = longtake.connect("http://HOST:8000");
 *     reactor.onMessage((message) => console.log(message.type, message.data));
 *     await reactor.sendMessage({ type: "schedule_prompt", data: { new_prompt: "a red balloon", timestamp: 0 } });
 *     await reactor.sendMessage({ type: "start" });
 *     reactor.show(document.querySelector("video"));     // where there is one
 */

import { pictureMessage, readPiece } from "./binary_messages.js";
import { requireSafe } from "./clear_text.js";
import { EventNumbers } from "./event_numbers.js";
import { clientId, randomId } from "./identity.js";
import { CLOSED, mayWorkLater, Outbox } from "./outbox.js";
import { Refusal } from "./refusal.js";
import { SilenceWatch } from "./silence.js";
import { socketUrl, subprotocols } from "./socket_address.js";

export { Refusal };

const FIRST_WAIT_MS = 250;
const LONGEST_WAIT_MS = 1000;
const PATIENCE_MS = 60_000;
const REFUSED = 1008; // The close code that says that trying again will not help.

/**
 * Open a session, or with `session` attach to one; with `watch` only look on. `options` may also have `token`,
 * `from` and `take` (where to begin), and what a new session is made with: seed, height, width, model, fps, ahead,
 * lease_s, input, fit, noise_scale. Throws a Refusal for a token that would go to another machine in the clear, unless `insecure` allows it.
 */
export function connect(address, options = {}) {
  return new Reactor(address, options);
}

/**
 * A connection that is made again when it is lost, or an event of it, from the first frame that is missing. What has no
 * answer is then sent again with its id, and the server does it once.
 *
 * A page that attaches to the same session takes it over: this one hears `replaced`, and only looks on until `takeOver`.
 */
export class Reactor {
  #address;
  #token;
  #query;
  #client = clientId();
  #ids = randomId();
  #socket = null;
  #again = null;
  #attached = false;
  #ended = false;
  #outbox = new Outbox((text) => this.#write(text));
  #shown = null;
  #endOfInput = null;
  #listeners = { message: new Set(), status: new Set(), frames: new Set() };
  #media = null;
  #lastId = 0;
  #lastPicture = 1000 * Date.now(); // No page of this session, loaded again, had this one before.
  #wait = FIRST_WAIT_MS;
  #lostAt = null;
  #over = false;
  #gaveUp = false;
  #silence = new SilenceWatch(() => this.#lose());
  #numbers = new EventNumbers();

  constructor(address, { token, insecure = false, ...query } = {}) {
    requireSafe(address, token, insecure);
    this.#address = address;
    this.#token = token;
    this.#query = query;
    this.status = "connecting";
    this.session = query.session ?? null;
    this.replaced = false;
    this.take = null;
    this.nextFrame = null;
    this.#open();
  }

  /** Whether this page looks on and steers nothing. */
  get watches() {
    return Boolean(this.#query.watch) || this.replaced;
  }

  /**
   * Send `{type, data}` as soon as that can be done; the promise is kept when it has been. Gives the message's id, which
   * is one that no message had before unless `message` has one.
   */
  sendMessage(message) {
    return new Promise((sent, failed) => this.#give(message, { sent, failed }));
  }

  /** Send a command, and wait for the answer: the receipt's data. Rejects with a Refusal; then it is never sent again. */
  ask(type, data = {}) {
    return new Promise((kept, failed) => this.#give({ type, data }, { kept, failed }));
  }

  /**
   * Send a picture, a Blob or an ArrayBuffer in the format "jpeg", "png" or "h264", to be restyled; `timeUs` is when it was
   * taken. Gives its id, by which `pictures` messages tell of it; null if it cannot be sent now.
   */
  sendPicture(picture, format = "jpeg", timeUs = 1000 * (performance.timeOrigin + performance.now())) {
    if (this.watches) return null;
    this.#endOfInput = null;
    const id = ++this.#lastPicture;
    return this.#write(pictureMessage(id, picture, format, timeUs)) ? id : null;
  }

  /** Bytes that have been sent and not left yet. */
  get bufferedAmount() {
    return this.#socket?.bufferedAmount ?? 0;
  }

  /** Steer the session again after another page has taken it over. */
  takeOver() {
    if (!this.replaced || this.#over) return;
    this.replaced = this.#attached = false;
    this.suspend();
    this.#open();
  }

  /** Close the connection until `wake`, for a page that is put aside. */
  suspend() {
    if (this.#over) return;
    this.#drop();
    this.#become("reconnecting");
  }

  /** Connect at once where there is no connection, also if it was given up for lost. */
  wake() {
    if ((this.#over && !this.#gaveUp) || this.#isThere) return;
    clearTimeout(this.#again);
    this.#over = this.#gaveUp = false;
    this.#lostAt = null;
    this.#wait = FIRST_WAIT_MS;
    this.#become("reconnecting");
    this.#open();
  }

  /** Call `listener` with every message `{type, data}`. Gives a function that ends it. */
  onMessage(listener) {
    return this.#listen("message", listener);
  }

  /** Call `listener` with "connecting", "ready", "reconnecting" or "disconnected". */
  onStatus(listener) {
    return this.#listen("status", listener);
  }

  /** Call `listener` with every piece of video: `{kind: "init" | "frames", take, first, frames, data, media}`. */
  onFrames(listener) {
    return this.#listen("frames", listener);
  }

  /** Show the video in a <video> element, and tell the server what has been shown. Gives the player. */
  async show(video) {
    const { Player } = await import("./player.js");
    const player = new Player(video);
    player.follow(this);
    return player;
  }

  /** Close for good. The session lives on until its lease ends; `end` would end it. */
  disconnect() {
    this.#finish();
    this.#socket?.close(1000);
  }

  #listen(kind, listener) {
    this.#listeners[kind].add(listener);
    return () => this.#listeners[kind].delete(listener);
  }

  #tell(kind, value) {
    for (const listener of this.#listeners[kind]) listener(value);
  }

  get #isThere() {
    return [WebSocket.CONNECTING, WebSocket.OPEN].includes(this.#socket?.readyState);
  }

  /** Nothing more is heard over this connection. */
  #drop() {
    clearTimeout(this.#again);
    if (this.#socket) this.#socket.onopen = this.#socket.onclose = this.#socket.onmessage = null;
    this.#socket?.close(1000);
    this.#socket = null;
  }

  #lose() {
    if (!this.#isThere) return;
    this.#drop();
    this.#closed();
  }

  #open() {
    this.#silence.begin();
    this.#numbers.begin();
    const socket = new WebSocket(socketUrl(this.#address, { ...this.#query, ...this.#place() }), subprotocols(this.#token));
    socket.binaryType = "arraybuffer";
    socket.onopen = () => this.#opened();
    socket.onmessage = ({ data }) => {
      this.#silence.heard();
      if (typeof data === "string") this.#hear(JSON.parse(data));
      else this.#see(readPiece(data));
    };
    socket.onclose = ({ code }) => this.#closed(code);
    this.#socket = socket;
  }

  /** Where to go on, once a session is known; a new one is asked for with the same id until it is. */
  #place() {
    const client = { client_id: this.#client };
    if (this.session === null) return { ...client, command_id: this.#ids };
    const place = { ...client, session: this.session, ...this.#role() };
    return this.nextFrame === null ? place : { ...place, from: this.nextFrame, take: this.take };
  }

  /** One who comes back takes nothing over; one who was replaced comes back to look on, and for answers. */
  #role() {
    if (this.replaced && this.#outbox.size === 0) return { watch: 1 };
    return this.#attached && !this.#query.watch ? { reattach: 1 } : {};
  }

  #opened() {
    this.#wait = FIRST_WAIT_MS;
    this.#outbox.sendAll();
    if (this.#shown) this.#report(this.#shown);
    if (this.#endOfInput && !this.watches) this.#write(this.#endOfInput);
  }

  /** Take a message in; from then on it is either sent until it is answered, or has `failed` and is never sent. */
  #give(message, promise) {
    const id = message.id ?? `${this.#ids}-${++this.#lastId}`;
    if (this.#over) promise.failed(CLOSED());
    else if (message.type === "shown") {
      this.#report(message);
      promise.sent?.(id);
    } else if (message.type === "end_input") {
      this.#endOfInput = JSON.stringify(message);
      this.#write(this.#endOfInput);
      promise.sent?.(id);
    } else this.#outbox.add(id, message, promise);
  }

  /** Only the last report counts. */
  #report(message) {
    this.#shown = message;
    if (!this.watches) this.#write(JSON.stringify(message));
  }

  #write(message) {
    const open = this.#socket?.readyState === WebSocket.OPEN;
    if (open) this.#socket.send(message);
    return open;
  }

  #hear(message) {
    if (this.#numbers.lacksOne(message.type, message.seq)) return this.#lose();
    if (message.type === "state") this.#settle(message.data);
    if (message.type === "media") this.#media = message.data;
    if (message.type === "error") this.#failed(message.data);
    if (message.type === "replaced") this.replaced = true;
    if (message.data?.command_id) this.#outbox.answer(message);
    this.#tell("message", message);
  }

  #settle({ session, take, state }) {
    this.session = session;
    this.#attached = true;
    this.#lostAt = null;
    if (take !== this.take) {
      this.nextFrame = this.take === null ? this.nextFrame : 0;
      this.take = take;
      this.#shown = null;
    }
    if (state === "ended") {
      this.#over = this.#ended = true;
      this.#become("disconnected");
    } else this.#become("ready");
  }

  #see(piece) {
    if (this.#numbers.lacksOne(piece.kind, piece.seq)) return this.#lose();
    if (piece.kind === "frames") this.nextFrame = piece.first + piece.frames;
    this.#tell("frames", { ...piece, media: this.#media });
  }

  /** A session that is not there any more is not looked for again, nor one that is on a server with another page. */
  #failed(error) {
    if (!mayWorkLater(error) || error.page) this.#over = true;
  }

  #closed(code) {
    this.#lostAt ??= Date.now();
    this.#gaveUp = !this.#over && code !== REFUSED && Date.now() - this.#lostAt > PATIENCE_MS;
    if (this.#over || this.#gaveUp || code === REFUSED) {
      this.#finish();
      return;
    }
    this.#become("reconnecting");
    this.#again = setTimeout(() => this.#over || this.#open(), this.#wait);
    this.#wait = Math.min(2 * this.#wait, LONGEST_WAIT_MS);
  }

  #finish() {
    this.#over = true;
    if (!this.#gaveUp) this.#silence.end();
    this.#outbox.close(this.#ended);
    this.#become("disconnected");
  }

  #become(status) {
    if (status === this.status) return;
    this.status = status;
    this.#tell("status", status);
  }
}
