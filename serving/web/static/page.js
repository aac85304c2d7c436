/** The page: what is pressed becomes messages, and what comes is shown. */

import { atFrame, byId, copy, element } from "./dom.js";
import { Editor } from "./cue_dialog.js";
import { CueFeed } from "./cue_feed.js";
import { readPlace, short, steeringPlace, watchingPlace } from "./permalink.js";
import { connect } from "./longtake.js";
import { Meters } from "./meters.js";
import { Notices, sentence } from "./toasts.js";
import { Player } from "./player.js";
import { linkPlace, timelinePlace } from "./replay.js";
import { Strip } from "./timeline_strip.js";

const DRAW_MS = 100;
const LISTED = 200;
const WORDS = {
  none: "no session",
  connecting: "connecting",
  reconnecting: "reconnecting",
  created: "waiting for a prompt",
  ready: "ready to start",
  running: "running",
  paused: "paused",
  ended: "ended",
  lost: "not connected",
};

class Page {
  #reactor = null;
  #player = null;
  #state = null;
  #progress = null;
  #listed = "";
  #meters = new Meters();
  #notices = new Notices(byId("notices"));
  #editor = new Editor(byId("editor"));
  #feed = new CueFeed((cue) => this.#tell("schedule_prompt", cue));
  #strip = new Strip(byId("strip"), {
    move: (cue, frame) => this.#tell("move_prompt", { timestamp: cue.timestamp, to: frame }),
    edit: (cue) => this.#edit(cue),
    remove: (cue) => this.#tell("remove_prompt", { timestamp: cue.timestamp }),
    leave: () => (byId("follow").hidden = false),
  });

  constructor() {
    this.#listen();
    this.#show();
    setInterval(() => this.#draw(), DRAW_MS);
    this.#enter();
  }

  // What is pressed

  #listen() {
    const pressed = {
      go: () => this.#go(),
      reset: () => this.#tell("reset"),
      fork: () => this.#fork(),
      record: () => this.#record(),
      new: () => this.#leave(),
      copy: () => this.#replay(),
      spectate: () => this.#share(watchingPlace(this.#state.session), "Whoever opens the link looks on."),
      follow: () => this.#follow(),
      takeover: () => this.#reactor.takeOver(),
      in: () => this.#strip.zoom(1),
      out: () => this.#strip.zoom(-1),
    };
    for (const [id, press] of Object.entries(pressed)) byId(id).onclick = press;
    byId("prompt").onsubmit = (event) => this.#submit(event);
    byId("text").onkeydown = (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) this.#submit(event);
    };
    byId("at").oninput = () => (this.#when = "frame");
    byId("file").onchange = (event) => this.#open(event.target);
    document.addEventListener("keydown", (event) => this.#key(event));
    window.addEventListener("hashchange", () => this.#enter());
  }

  get #when() {
    return byId("prompt").elements.when.value;
  }

  set #when(value) {
    byId("prompt").elements.when.value = value;
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
    const text = byId("text").value.trim();
    if (text && this.#state?.state !== "ready") {
      if (!(await this.#tell("schedule_prompt", { new_prompt: text, timestamp: 0 }))) return;
      byId("text").value = "";
    }
    await this.#tell("start");
  }

  async #pause() {
    const frame = this.#player.hold();
    if (!(await this.#tell("pause", frame < 0 ? {} : { frame }))) this.#player.release();
  }

  async #submit(event) {
    event.preventDefault();
    const text = byId("text").value.trim();
    if (!text) return;
    const now = this.#when === "now";
    if (!now && !byId("at").value) return this.#notices.warn({ message: "the frame is missing; say at which one" });
    const blocks = Number(byId("blocks").value);
    const cue = { new_prompt: text };
    if (!now) cue.timestamp = Number(byId("at").value);
    if (blocks > 0) cue.transition = { blocks };
    const asked = performance.now();
    const receipt = await this.#tell("schedule_prompt", cue);
    if (!receipt) return;
    byId("text").value = "";
    if (now && this.#state?.state === "running") this.#meters.asked(asked, receipt.frame);
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

  async #record() {
    if (!this.#state.recording) {
      await this.#tell("start_recording");
      return;
    }
    const { name, frames, bytes, url, finished } = (await this.#tell("stop_recording")) ?? {};
    if (!name) return;
    if (!finished) {
      this.#notices.tell("Nothing was shown while it was recorded, so there is no file.");
      return;
    }
    const link = element("a", { href: url, download: `${name}.mp4` }, "Download");
    link.dataset.testid = "download";
    if (this.#token) link.onclick = (event) => this.#fetch(event, link);
    this.#notices.tell(`Recorded ${count(frames, "frame")}, ${Math.ceil(bytes / 1000)} kB. `, link);
  }

  /** A link carries no token; where one is needed, the file is fetched and then saved. */
  async #fetch(event, link) {
    event.preventDefault();
    const answer = await fetch(link.href, { headers: this.#authorization() });
    if (!answer.ok) return this.#notices.warn((await answer.json()).error);
    const url = URL.createObjectURL(await answer.blob());
    element("a", { href: url, download: link.download }).click();
    setTimeout(() => URL.revokeObjectURL(url), 60_000);
  }

  async #open(input) {
    const [file] = input.files;
    input.value = "";
    const place = `timelines?${new URLSearchParams({ name: file.name })}`;
    const answer = await fetch(place, { method: "POST", body: file, headers: this.#authorization() });
    const read = await answer.json();
    if (!answer.ok) return this.#notices.warn(read.error);
    const begun = ["running", "paused"].includes(this.#state?.state);
    const { seed, height, width } = read;
    if (!this.#reactor) this.#connect({ ...this.#options(), ...present({ seed, height, width }) });
    const added = await this.#add(read.cues, begun ? this.#made + 24 : 0);
    const others = this.#feed.waiting ? " The others follow, as long as this page is open." : "";
    const notes = read.notes.map((note) => ` ${sentence(note)}`).join("");
    this.#notices.tell(`${file.name}: ${added} of ${read.cues.length} cues are on the timeline.${others}${notes}`);
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

  /** Schedule cues, each `later` frames later, the first of very many at once. Gives how many of those could be. */
  async #add(cues, later = 0) {
    const asked = cues.map((cue) => {
      const { timestamp, ...rest } = cue.prompts ? short(cue) : cue;
      return { ...rest, timestamp: timestamp + later };
    });
    return this.#feed.add(asked);
  }

  async #replay() {
    const state = this.#state;
    const place = await this.#linkPlace(state);
    if (place) return this.#share(place, "The link makes this video again, cue for cue.");
    const link = element("a", { href: timelinePlace(state.session), download: "timeline.json" }, "Download");
    link.dataset.testid = "timeline";
    if (this.#token) link.onclick = (event) => this.#fetch(event, link);
    this.#notices.tell(`${count(state.applied_count, "prompt")} are too many for a link: a file has them. `, link);
  }

  /** The place of a link; null where none can be made. */
  async #linkPlace(state) {
    return linkPlace(state, async (place) => {
      const answer = await fetch(place, { headers: this.#authorization() });
      const read = await answer.json();
      if (!answer.ok) throw Object.assign(new Error(read.error.message), read.error);
      return read;
    });
  }

  async #share(place, meaning) {
    const url = new URL(place, location.href).href;
    await copy(url);
    const link = element("a", { href: url, target: "_blank" }, "The link");
    link.dataset.testid = "link";
    this.#notices.tell(link, ` is copied. ${meaning}`);
  }

  #follow() {
    byId("follow").hidden = true;
    this.#strip.follow();
  }

  // The connection

  get #token() {
    return byId("settings").elements.token.value;
  }

  #authorization() {
    return this.#token ? { Authorization: `Bearer ${this.#token}` } : {};
  }

  #options() {
    const fields = new FormData(byId("settings"));
    fields.delete("token");
    return present(Object.fromEntries(fields));
  }

  /** Go where the address leads. */
  #enter() {
    const place = this.#place();
    if (place === null || (place.session && place.session === this.#state?.session)) return;
    for (const [name, value] of Object.entries(place.options)) {
      const field = byId("settings").elements[name];
      if (field) field.value = value;
    }
    if (place.session) this.#connect({ session: place.session, watch: place.watch ? 1 : undefined });
    else if (place.cues.length) {
      this.#connect({ ...this.#options(), ...place.options });
      this.#add(place.cues);
    }
  }

  #place() {
    try {
      return readPlace(location.hash);
    } catch (error) {
      this.#notices.warn({ message: `this link cannot be read: ${error.message}` });
      return null;
    }
  }

  #connect(options) {
    this.#close();
    const reactor = connect(document.baseURI, { ...options, token: this.#token });
    this.#reactor = reactor;
    this.#player = new Player(byId("video"));
    this.#player.follow(reactor);
    reactor.onMessage((message) => reactor === this.#reactor && this.#hear(message));
    reactor.onFrames((piece) => piece.kind === "frames" && this.#meters.received(piece.frames));
    reactor.onStatus(() => this.#show());
    this.#show();
  }

  #close() {
    this.#feed.clear();
    this.#player?.stop();
    this.#reactor?.disconnect();
    this.#reactor = this.#player = this.#state = this.#progress = null;
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
    byId("text").focus();
  }

  /** Send a command. Gives its answer; null if it was refused, which is then said. */
  async #tell(type, data = {}) {
    if (!this.#reactor) this.#connect(this.#options());
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
    if (state.take !== this.#state?.take) {
      if (this.#state) this.#feed.clear();
      this.#meters.begin();
      this.#progress = null;
    }
    this.#state = state;
    this.#feed.goOn(state.pending_count);
    const place = this.#watches ? watchingPlace(state.session) : steeringPlace(state.session);
    if (location.hash !== place) history.replaceState(null, "", place);
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
      document.querySelector("details").open = true;
      byId("settings").elements.token.focus();
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
    const standing = this.#standing;
    const state = this.#state;
    const alive = state !== null && !["ended", "lost", "none"].includes(standing);
    const begun = ["running", "paused"].includes(state?.state);
    byId("state").textContent = WORDS[standing];
    byId("state").dataset.state = standing;
    byId("viewers").textContent = state && state.viewers > 1 ? `${state.viewers} viewers` : "";
    byId("go").textContent = { running: "Pause", paused: "Resume" }[standing] ?? "Start";
    byId("takeover").hidden = !this.#reactor?.replaced || standing === "lost";
    byId("hint").hidden = begun || standing === "lost";
    this.#able({ go: !["ended", "lost"].includes(standing), reset: alive, fork: alive && begun, record: alive && begun });
    this.#able({ copy: Boolean(state?.applied.length), spectate: alive, new: standing !== "none" });
    byId("prompt").querySelector("[type=submit]").disabled = this.#watches || ["ended", "lost"].includes(standing);
    byId("record").ariaPressed = String(Boolean(state?.recording));
    byId("record").lastChild.textContent = state?.recording ? "Recording" : "Record";
    byId("record").title = state?.recording ? "Stop recording" : "Record from here on";
    byId("seed").textContent = state?.seed ?? "–";
    if (state) byId("video").style.aspectRatio = `${state.width} / ${state.height}`;
    this.#strip.show(state);
    this.#list(state ?? { pending: [], pending_count: 0, applied: [], applied_count: 0 });
  }

  #able(buttons) {
    const steered = ["go", "reset", "fork", "record"];
    for (const [id, able] of Object.entries(buttons)) byId(id).disabled = !able || (this.#watches && steered.includes(id));
  }

  /** What has not changed is left alone: somebody may be about to press it. */
  #list({ pending, pending_count: coming, applied, applied_count: past }) {
    const listed = JSON.stringify([pending, coming, applied, past, this.#watches]);
    if (listed === this.#listed) return;
    this.#listed = listed;
    const next = pending.slice(0, LISTED).map((cue) => this.#coming(cue));
    const last = applied.slice(-LISTED).reverse().map((cue) => row(cue.frame, cue.text));
    byId("pending").replaceChildren(...next, ...rest(coming, next.length, "Nothing is scheduled."));
    byId("applied").replaceChildren(...last, ...rest(past, last.length, "Nothing has been shown."));
  }

  #coming(cue) {
    const edit = element("button", { type: "button", className: "plain", ariaLabel: `Edit: ${cue.text}` }, "Edit");
    const remove = element("button", { type: "button", className: "plain", ariaLabel: `Delete: ${cue.text}` }, "Delete");
    edit.dataset.testid = "edit";
    remove.dataset.testid = "remove";
    edit.onclick = () => this.#edit(cue);
    remove.onclick = () => this.#tell("remove_prompt", { timestamp: cue.timestamp });
    edit.hidden = remove.hidden = this.#watches;
    return row(cue.timestamp, cue.text, edit, remove);
  }

  #draw() {
    const frame = this.#player?.frame ?? -1;
    const { delivered, missedFrames } = this.#meters;
    const latency = this.#meters.shown(frame);
    byId("clock").textContent = frame < 0 ? "–" : atFrame(frame);
    byId("clock").dataset.frame = frame;
    byId("delivered").textContent = delivered === null ? "–" : `${delivered.toFixed(1)} fps`;
    byId("generated").textContent = this.#progress?.generated_fps ? `${this.#progress.generated_fps.toFixed(1)} fps` : "–";
    byId("queue").textContent = this.#progress ? count(this.#progress.queued_blocks, "block") : "–";
    byId("missed").textContent = missedFrames;
    if (latency !== null) byId("latency").textContent = `${latency.toFixed(2)} s`;
    this.#strip.moveTo(frame, this.#made);
  }
}

function count(number, noun) {
  return `${number} ${noun}${number === 1 ? "" : "s"}`;
}

function present(fields) {
  return Object.fromEntries(Object.entries(fields).filter(([, value]) => value !== "" && value !== null));
}

/** What a list says of those that are not in it. */
function rest(all, listed, none) {
  if (all === 0) return [row(null, none)];
  return all > listed ? [row(null, `and ${count(all - listed, "cue")} more`)] : [];
}

function row(frame, text, ...buttons) {
  const said = element("span", { className: frame === null ? "said none" : "said" }, text);
  if (frame === null) return element("li", {}, said);
  const made = element("li", {}, element("span", { className: "at" }, `frame ${frame}`), said, ...buttons);
  made.dataset.frame = frame;
  return made;
}

new Page();
