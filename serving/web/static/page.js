/** The page: what is pressed becomes messages, and what comes is shown. */

import { Away } from "./away.js";
import { INSECURE_TOKEN } from "./clear_text.js";
import { Editor } from "./cue_dialog.js";
import { CueFeed } from "./cue_feed.js";
import { CueLists } from "./cue_lists.js";
import { showMeters, showSession } from "./display.js";
import { byId, count, element, present } from "./dom.js";
import { Exchange, moved } from "./exchange.js";
import { connect } from "./longtake.js";
import { Meters } from "./meters.js";
import { readPlace, steeringPlace, watchingPlace } from "./permalink.js";
import { Player } from "./player.js";
import { PromptForm } from "./prompt_form.js";
import { Record } from "./record.js";
import { Recordings } from "./recordings.js";
import { Server } from "./server.js";
import { SizeChoice } from "./size_choice.js";
import { Strip } from "./timeline_strip.js";
import { Notices, sentence } from "./toasts.js";

const DRAW_MS = 100;
class Page {
  #reactor = null;
  #player = null;
  #state = null;
  #progress = null;
  #waiting = null;
  #meters = new Meters();
  #notices = new Notices(byId("notices"));
  #server = new Server(byId("settings").elements, () => this.#reenter());
  #exchange = new Exchange(this.#server, this.#notices);
  #recordings = new Recordings(byId("recordings"), this.#server, (error) => this.#notices.warn(error));
  #prompt = new PromptForm(byId("prompt"), (cue, now) => this.#schedule(cue, now));
  #record = new Record(this.#server, this.#notices, () => this.#recordings.refresh());
  #away = new Away(this.#notices);
  #sizes = new SizeChoice(byId("sizes"), byId("size"));
  #editor = new Editor(byId("editor"));
  #feed = new CueFeed((cue) => this.#tell("schedule_prompt", cue));
  #strip = new Strip(byId("strip"), {
    move: (cue, frame) => this.#tell("move_prompt", { timestamp: cue.timestamp, to: frame }),
    edit: (cue) => this.#edit(cue),
    remove: (cue) => this.#tell("remove_prompt", { timestamp: cue.timestamp }),
    leave: () => (byId("follow").hidden = false),
  });
  #lists = new CueLists(byId("pending"), byId("applied"), {
    edit: (cue) => this.#edit(cue),
    remove: (cue) => this.#tell("remove_prompt", { timestamp: cue.timestamp }),
  });

  constructor() {
    this.#listen();
    this.#show();
    setInterval(() => this.#draw(), DRAW_MS);
    this.#askServer();
    this.#enter();
  }

  // What is pressed

  #listen() {
    const pressed = {
      go: () => this.#go(),
      reset: () => this.#tell("reset"),
      fork: () => this.#fork(),
      record: () => this.#toggleRecording(),
      new: () => this.#leave(),
      copy: () => this.#exchange.replay(this.#state),
      export: () => this.#exchange.export(this.#state),
      spectate: () => this.#exchange.share(watchingPlace(this.#state.session), "Whoever opens the link looks on."),
      follow: () => this.#follow(),
      takeover: () => this.#reactor.takeOver(),
      in: () => this.#strip.zoom(1),
      out: () => this.#strip.zoom(-1),
    };
    for (const [id, press] of Object.entries(pressed)) byId(id).onclick = press;
    byId("file").onchange = (event) => this.#open(event.target);
    byId("settings").onsubmit = (event) => event.preventDefault();
    document.addEventListener("keydown", (event) => this.#key(event));
    window.addEventListener("hashchange", () => this.#enter());
    this.#listenForSleep();
  }

  /** A page that is left may come back as it was, and one that nobody looked at may have lost its connection. */
  #listenForSleep() {
    window.addEventListener("pagehide", () => this.#reactor?.suspend());
    window.addEventListener("pageshow", () => this.#reactor?.wake());
    window.addEventListener("online", () => this.#reactor?.wake());
    document.addEventListener("visibilitychange", () => document.hidden || this.#reactor?.wake());
  }

  #key(event) {
    const taken = event.target.closest?.("input, textarea, select, button, summary, a, dialog");
    if (event.key !== " " || taken || event.repeat) return;
    event.preventDefault();
    if (!byId("go").disabled) this.#go();
  }

  async #go() {
    const state = this.#state?.state;
    if (state === "running") await this.#pause();
    else if (state === "paused") await this.#tell("resume");
    else await this.#start();
  }

  async #start() {
    const { text } = this.#prompt;
    if (text && this.#state?.state !== "ready") {
      if (!(await this.#tell("schedule_prompt", { new_prompt: text, timestamp: 0 }))) return;
      this.#prompt.clear();
    }
    await this.#tell("start");
  }

  async #pause() {
    const frame = this.#player.hold();
    if (!(await this.#tell("pause", frame < 0 ? {} : { frame }))) this.#player.release();
  }

  async #schedule(cue, now) {
    if (!now && cue.timestamp === undefined) {
      this.#notices.warn({ message: "the frame is missing; say at which one" });
      return null;
    }
    const asked = performance.now();
    const receipt = await this.#tell("schedule_prompt", cue);
    if (receipt && now && this.#state?.state === "running") this.#meters.asked(asked, receipt.frame);
    return receipt;
  }

  async #edit(cue) {
    const { action, text, frame } = await this.#editor.open(cue);
    if (action === "remove") await this.#tell("remove_prompt", { timestamp: cue.timestamp });
    if (action !== "save") return;
    if (frame !== cue.timestamp && !(await this.#tell("move_prompt", { timestamp: cue.timestamp, to: frame }))) return;
    const { transition } = cue;
    if (text.trim() !== cue.text) await this.#tell("schedule_prompt", { new_prompt: text, timestamp: frame, transition });
  }

  async #fork() {
    const forked = await this.#tell("fork");
    if (!forked) return;
    const link = element("a", { href: steeringPlace(forked.session), target: "_blank" }, "Open the fork");
    link.dataset.testid = "fork-link";
    this.#notices.tell(`Forked at frame ${forked.next_frame}. `, link);
  }

  async #toggleRecording() {
    if (!this.#state.recording) await this.#tell("start_recording");
    else {
      const recording = await this.#tell("stop_recording");
      if (recording) this.#record.stopped(recording);
    }
  }

  async #open(input) {
    const read = await this.#exchange.read(input);
    if (!read) return;
    const begun = ["running", "paused"].includes(this.#state?.state);
    const { seed, height, width } = read;
    if (!this.#reactor && !this.#connect({ ...this.#options(), ...present({ seed, height, width }) })) return;
    const added = await this.#feed.add(moved(read.cues, begun ? this.#made + 24 : 0));
    const others = this.#feed.waiting ? " The others follow, as long as this page is open." : "";
    const notes = read.notes.map((note) => ` ${sentence(note)}`).join("");
    this.#notices.tell(`${read.name}: ${added} of ${read.cues.length} cues are on the timeline.${others}${notes}`);
    const unused = [...read.warnings, ...this.#otherSettings(read)];
    if (unused.length) this.#notices.warn({ message: unused.map(sentence).join(" ") });
  }

  /** What a file asks for and the session does otherwise. */
  #otherSettings(read) {
    const state = this.#state ?? {};
    return ["model", "seed", "height", "width"]
      .filter((name) => read[name] !== null && name in state && String(read[name]) !== String(state[name]))
      .map((name) => `${name}: the session's is ${state[name]}, not the file's, ${read[name]}`);
  }

  #follow() {
    byId("follow").hidden = true;
    this.#strip.follow();
  }

  // The connection

  #options() {
    const fields = Object.fromEntries(new FormData(byId("settings")));
    delete fields.token;
    delete fields.insecure;
    return present({ ...fields, ...this.#sizes.value });
  }

  /** Offer what the server generates, if it says so. */
  async #askServer() {
    const server = await this.#server.ask("server.json").catch((error) => {
      if (error.reason === INSECURE_TOKEN) this.#fail(error);
      return null;
    });
    this.#sizes.offer(server);
  }

  /** Go where the address leads. */
  #enter() {
    const place = this.#place();
    if (place === null || (place.session && place.session === this.#state?.session)) return;
    const { height = "", width = "", ...others } = place.options;
    if (height || width) this.#sizes.value = { height, width };
    for (const [name, value] of Object.entries(others)) {
      const field = byId("settings").elements[name];
      if (field) field.value = value;
    }
    if (place.session) this.#connect({ session: place.session, watch: place.watch ? 1 : undefined });
    else if (place.cues.length) {
      const there = this.#connect({ ...this.#options(), ...place.options });
      if (there) this.#feed.add(moved(place.cues, 0));
    }
  }

  /** The token is another: come in with it, to where this page was. */
  #reenter() {
    this.#askServer();
    this.#recordings.refresh();
    if (!this.#place()?.session) return;
    this.#close();
    this.#enter();
  }

  #place() {
    try {
      return readPlace(location.hash);
    } catch (error) {
      this.#notices.warn({ message: `this link cannot be read: ${error.message}` });
      return null;
    }
  }

  /** Whether a connection is made; that none may be is said. */
  #connect(options) {
    this.#close();
    const reactor = this.#connection(options);
    if (!reactor) return false;
    this.#reactor = reactor;
    this.#player = new Player(byId("video"), (skip) => this.#away.skipped(skip));
    this.#player.follow(reactor);
    reactor.onMessage((message) => reactor === this.#reactor && this.#hear(message));
    reactor.onFrames((piece) => piece.kind === "frames" && this.#come(piece.frames));
    reactor.onStatus(() => this.#show());
    this.#show();
    return true;
  }

  #connection(options) {
    try {
      return connect(document.baseURI, { ...options, ...this.#server.access });
    } catch (error) {
      this.#fail(error);
      return null;
    }
  }

  #close() {
    this.#feed.clear();
    this.#player?.stop();
    this.#reactor?.disconnect();
    this.#reactor = this.#player = this.#state = this.#progress = this.#waiting = null;
    this.#meters = new Meters();
  }

  /** End the session, and be as if the page had just been opened. */
  async #leave() {
    if (this.#state && !this.#watches && this.#state.state !== "ended") await this.#tell("end");
    this.#close();
    history.replaceState(null, "", location.pathname);
    byId("video").removeAttribute("src");
    byId("video").load();
    this.#notices.clear();
    this.#show();
    this.#prompt.focus();
  }

  /** Send a command. Gives its answer; null if it was refused, which is then said. */
  async #tell(type, data = {}) {
    if (!this.#reactor && !this.#connect(this.#options())) return null;
    try {
      return await this.#reactor.ask(type, data);
    } catch (error) {
      this.#notices.warn(error);
      return null;
    }
  }

  #hear({ type, data }) {
    const heard = {
      state: () => this.#settle(data),
      progress: () => (this.#progress = data),
      error: () => this.#fail(data),
      replaced: () => this.#replaced(),
      applied: () => this.#warnOfCut(data),
      gap: () => this.#meters.missed(data.frames),
      slowed: () => this.#slowed(data),
      heartbeat: () => this.#wait(data.waiting ?? null),
      recording: () => data.command_id || this.#record.ended(data),
      resumed: () => this.#notices.tell(`The session went on elsewhere after ${data.silence_s.toFixed(1)} s: ${data.reason}.`),
    }[type];
    heard?.();
  }

  #warnOfCut({ frame, cut_tokens: cut }) {
    if (!cut) return;
    const message = `the prompt at frame ${frame} is too long: the model does not read its last ${count(cut, "token")}`;
    this.#notices.warn({ message });
  }

  #settle(state) {
    if (!this.#state) this.#away.returned(state);
    if (state.take !== this.#state?.take) {
      if (this.#state) this.#feed.clear();
      this.#meters.begin();
      this.#progress = null;
    }
    this.#state = state;
    this.#waiting = state.waiting;
    this.#feed.goOn(state.pending_count);
    const place = this.#watches ? watchingPlace(state.session) : steeringPlace(state.session);
    if (location.hash !== place) history.replaceState(null, "", place);
    this.#show();
  }

  #come(frames) {
    this.#meters.received(frames);
    this.#wait(null);
  }

  /** What the session waits for is another thing, or nothing any more. */
  #wait(reason) {
    if (reason === this.#waiting) return;
    this.#waiting = reason;
    this.#show();
  }

  #slowed({ held_fps: held, reason }) {
    this.#notices.tell(`${held.toFixed(1)} frames a second: ${reason}.`);
  }

  #replaced() {
    this.#notices.tell("Another page steers this session now; this one looks on. Take over to steer it from here.");
    this.#settle(this.#state);
  }

  #fail(error) {
    this.#notices.warn(error);
    if (error.code === "UNAUTHENTICATED") {
      const { token, insecure } = byId("settings").elements;
      byId("new-session").open = true;
      (error.reason === INSECURE_TOKEN ? insecure : token).focus();
      this.#close();
      this.#show();
    }
  }

  // What is shown

  get #watches() {
    return this.#reactor?.watches ?? false;
  }

  get #made() {
    const begun = this.#state?.state === "running" ? this.#progress?.current_start_frame : 0;
    return Math.max(this.#state?.next_frame ?? 0, begun ?? 0);
  }

  get #standing() {
    const status = this.#reactor?.status;
    if (!this.#reactor) return "none";
    if (this.#state?.state === "ended") return "ended";
    return { ready: this.#state?.state, disconnected: "lost" }[status] ?? status;
  }

  #show() {
    const state = this.#state;
    const replaced = this.#reactor?.replaced ?? false;
    showSession(state, { standing: this.#standing, watches: this.#watches, replaced, waiting: this.#waiting });
    this.#record.show(state?.recording);
    this.#strip.show(state);
    this.#lists.show(state ?? { pending: [], pending_count: 0, applied: [], applied_count: 0 }, this.#watches);
    this.#draw();
  }

  /** Show the frame on the screen: again and again, and at once with a state, which it belongs to. */
  #draw() {
    const frame = this.#player?.frame ?? -1;
    showMeters(frame, this.#meters, this.#progress);
    this.#strip.moveTo(frame, this.#made);
    if (this.#state) this.#away.sees(this.#state, frame);
  }
}

new Page();
