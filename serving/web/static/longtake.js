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

const FIRST_WAIT_MS = 250;
const LONGEST_WAIT_MS = 4000;
const PATIENCE_MS = 60_000;
const REFUSED = 1008; // The close code that says that trying again will not help.

const KINDS = { 1: "init", 2: "frames" };

/** What the server, or the lack of one, says against a message. `code` is a status code of gRPC by name. */
export class Refusal extends Error {
  constructor({ code, message }) {
    super(message);
    this.code = code;
  }
}

/**
 * Open a session, or with `session` attach to one; with `watch` only look on. `options` may also have `token`,
 * `from` and `take` (where to begin), and what a new session is made with: seed, height, width, model, fps, ahead,
 * lease_s.
 */
export function connect(address, options = {}) {
  return new Reactor(address, options);
}

/** A connection that is made again when it is lost, from the first frame that is missing. */
export class Reactor {
  #address;
  #token;
  #query;
  #socket = null;
  #unsent = [];
  #unanswered = new Map();
  #listeners = { message: new Set(), status: new Set(), frames: new Set() };
  #media = null;
  #lastId = 0;
  #wait = FIRST_WAIT_MS;
  #lostAt = null;
  #over = false;

  constructor(address, { token, ...query } = {}) {
    this.#address = address;
    this.#token = token;
    this.#query = query;
    this.status = "connecting";
    this.session = query.session ?? null;
    this.watches = Boolean(query.watch);
    this.take = null;
    this.nextFrame = null;
    this.#open();
  }

  /** Send `{type, data}` as soon as that can be done; the promise is kept when it has been. Gives the message's id. */
  sendMessage(message) {
    const id = message.id ?? `m${++this.#lastId}`;
    const text = JSON.stringify({ ...message, id });
    if (this.#over) return Promise.reject(new Refusal({ code: "UNAVAILABLE", message: "the connection is closed" }));
    return new Promise((sent, failed) => this.#write({ text, sent: () => sent(id), failed }));
  }

  /** Send a command, and wait for the answer: the receipt's data. Rejects with a Refusal. */
  async ask(type, data = {}) {
    const id = `a${++this.#lastId}`;
    const answer = new Promise((kept, broken) => this.#unanswered.set(id, { kept, broken }));
    answer.catch(() => {});
    await this.sendMessage({ type, data, id });
    return answer;
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

  #open() {
    const socket = new WebSocket(this.#url(), this.#protocols());
    socket.binaryType = "arraybuffer";
    socket.onopen = () => this.#opened();
    socket.onmessage = ({ data }) => (typeof data === "string" ? this.#hear(data) : this.#see(data));
    socket.onclose = ({ code }) => this.#closed(code);
    this.#socket = socket;
  }

  #url() {
    const url = new URL(this.#address, globalThis.location?.href);
    url.protocol = url.protocol.replace("http", "ws");
    if (!url.pathname.endsWith("/ws")) url.pathname = `${url.pathname.replace(/\/$/, "")}/ws`;
    for (const [name, value] of Object.entries({ ...this.#query, ...this.#place() })) {
      if (value !== undefined && value !== null && value !== "") url.searchParams.set(name, value);
    }
    url.hash = "";
    return url;
  }

  /** Where to go on, once a session is known. */
  #place() {
    if (this.session === null) return {};
    const place = { session: this.session };
    return this.nextFrame === null ? place : { ...place, from: this.nextFrame, take: this.take };
  }

  #protocols() {
    if (!this.#token) return ["longtake.v1"];
    const bytes = String.fromCharCode(...new TextEncoder().encode(this.#token));
    const token = btoa(bytes).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
    return ["longtake.v1", `longtake.token.${token}`];
  }

  #opened() {
    this.#wait = FIRST_WAIT_MS;
    for (const unsent of this.#unsent.splice(0)) this.#write(unsent);
  }

  #write(unsent) {
    if (this.#socket?.readyState !== WebSocket.OPEN) {
      this.#unsent.push(unsent);
      return;
    }
    this.#socket.send(unsent.text);
    unsent.sent();
  }

  #hear(text) {
    const message = JSON.parse(text);
    if (message.type === "state") this.#settle(message.data);
    if (message.type === "media") this.#media = message.data;
    if (message.type === "error") this.#failed(message.data);
    if (message.data?.command_id) this.#answer(message);
    this.#tell("message", message);
  }

  #settle({ session, take, state }) {
    this.session = session;
    this.#lostAt = null;
    if (take !== this.take) {
      this.nextFrame = this.take === null ? this.nextFrame : 0;
      this.take = take;
    }
    if (state === "ended") this.#finish();
    else this.#become("ready");
  }

  #see(buffer) {
    const head = new DataView(buffer);
    const [kind, take, first, frames] = [0, 4, 8, 12].map((at) => head.getUint32(at));
    if (KINDS[kind] === "frames") this.nextFrame = first + frames;
    const piece = { kind: KINDS[kind], take, first, frames, data: new Uint8Array(buffer, 16), media: this.#media };
    this.#tell("frames", piece);
  }

  /** A session that is not there any more is not looked for again. */
  #failed({ code }) {
    if (code !== "UNAVAILABLE") this.#over = true;
  }

  #answer({ type, data }) {
    const waiting = this.#unanswered.get(data.command_id);
    if (!waiting) return;
    this.#unanswered.delete(data.command_id);
    if (type === "receipt" && data.stage === "refused") waiting.broken(new Refusal(data.error));
    else waiting.kept(data);
  }

  #closed(code) {
    const lost = new Refusal({ code: "UNAVAILABLE", message: "the connection was lost before the answer came" });
    for (const { broken } of this.#unanswered.values()) broken(lost);
    this.#unanswered.clear();
    this.#lostAt ??= Date.now();
    if (this.#over || code === REFUSED || Date.now() - this.#lostAt > PATIENCE_MS) {
      this.#finish();
      return;
    }
    this.#become("reconnecting");
    setTimeout(() => this.#over || this.#open(), this.#wait);
    this.#wait = Math.min(2 * this.#wait, LONGEST_WAIT_MS);
  }

  #finish() {
    this.#over = true;
    const closed = new Refusal({ code: "UNAVAILABLE", message: "the connection is closed" });
    for (const { failed } of this.#unsent.splice(0)) failed(closed);
    this.#become("disconnected");
  }

  #become(status) {
    if (status === this.status) return;
    this.status = status;
    this.#tell("status", status);
  }
}
