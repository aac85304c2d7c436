/** The page: what is pressed becomes messages, and what comes is shown. */

import { Away } from "./away.js";
import { INSECURE_TOKEN } from "./clear_text.js";
import { Editor } from "./cue_dialog.js";
import { CueFeed } from "./cue_feed.js";
import { CueLists } from "./cue_lists.js";
import { showMeters, showSession } from "./display.js";
import { byId, element, present } from "./dom.js";
import { Exchange, moved } from "./exchange.js";
import { pressBySpaceBar } from "./keyboard.js";
import { connect } from "./longtake.js";
import { follow } from "./moved.js";
import { News } from "./news.js";
import { barePlace, readPlace, steeringPlace, watchingPlace } from "./permalink.js";
import { PromptForm } from "./prompt_form.js";
import { Record } from "./record.js";
import { Recordings } from "./recordings.js";
import { Restyling } from "./restyling.js";
import { Server } from "./server.js";
import { Settings } from "./settings.js";
import { watchForSleep } from "./sleep.js";
import { Stay } from "./stay.js";
import { Strip } from "./timeline_strip.js";
import { Notices } from "./toasts.js";

const DRAW_MS = 100;

class Page {
  #stay = null;
  #notices = new Notices(byId("notices"));
  #server = new Server(byId("settings").elements, () => this.#reenter());
  #exchange = new Exchange(this.#server, this.#notices);
  #recordings = new Recordings(byId("recordings"), this.#server, (error) => this.#notices.warn(error));
  #prompt = new PromptForm(byId("prompt"), (cue, now) => this.#schedule(cue, now));
  #record = new Record(this.#server, this.#notices, () => this.#recordings.refresh());
  #away = new Away(this.#notices);
  #news = new News(this.#notices);
  #settings = new Settings(byId("settings"));
  #restyling = new Restyling(
    (error) => this.#notices.warn(error),
    () => this.#show(),
    (how) => this.#tell("restyle", how),
  );
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
      cut: () => this.#tell("cut"),
      fork: () => this.#fork(),
      record: () => this.#toggleRecording(),
      new: () => this.#leave(),
      copy: () => this.#exchange.replay(this.#state),
      export: () => this.#exchange.export(this.#state),
      bare: () => this.#exchange.share(barePlace(this.#state.session), "It shows the video and nothing else."),
      spectate: () => this.#exchange.share(watchingPlace(this.#state.session), "Whoever opens the link looks on."),
      follow: () => this.#follow(),
      takeover: () => this.#stay.takeOver(),
      in: () => this.#strip.zoom(1),
      out: () => this.#strip.zoom(-1),
    };
    for (const [id, press] of Object.entries(pressed)) byId(id).onclick = press;
    byId("file").onchange = (event) => this.#open(event.target);
    window.addEventListener("hashchange", () => this.#enter());
    pressBySpaceBar(byId("go"));
    watchForSleep({ leave: () => this.#stay?.suspend(), wake: () => this.#stay?.wake() });
  }

  async #go() {
    const state = this.#state?.state;
    if (state === "running") await this.#stay.pause((place) => this.#tell("pause", place));
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

  async #schedule(cue, now) {
    if (!now && cue.timestamp === undefined) {
      this.#notices.warn({ message: "the frame is missing; say at which one" });
      return null;
    }
    const asked = performance.now();
    const receipt = await this.#tell("schedule_prompt", cue);
    if (receipt && now && this.#state?.state === "running") this.#stay.meters.asked(asked, receipt.frame);
    return receipt;
  }

  async #edit(cue) {
    const { action, text, frame } = await this.#editor.open(cue);
    if (action === "remove") await this.#tell("remove_prompt", { timestamp: cue.timestamp });
    if (action !== "save") return;
    if (frame !== cue.timestamp && !(await this.#tell("move_prompt", { timestamp: cue.timestamp, to: frame }))) return;
    const { transition, restyling } = cue;
    const edited = { new_prompt: text, timestamp: frame, transition, restyling };
    if (text.trim() !== cue.text) await this.#tell("schedule_prompt", edited);
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
    const read = await this.#exchange.read(input, this.#state?.input ?? (this.#settings.restyles ? "video" : "none"));
    if (!read) return;
    const begun = ["running", "paused"].includes(this.#state?.state);
    const { seed, height, width } = read;
    if (!this.#stay && !this.#connect({ ...this.#settings.options, ...present({ seed, height, width }) })) return;
    const added = await this.#feed.add(moved(read.cues, begun ? this.#stay.made + 2 * this.#state.block_frames : 0));
    this.#exchange.tellOf(read, { added, waits: this.#feed.waiting > 0, state: this.#state ?? {} });
  }

  #follow() {
    byId("follow").hidden = true;
    this.#strip.follow();
  }

  // The connection

  /** Offer what the server generates, if it says so. */
  async #askServer() {
    const server = await this.#server.ask("server.json").catch((error) => {
      if (error.reason === INSECURE_TOKEN) this.#fail(error);
      return null;
    });
    this.#settings.offer(server);
    this.#restyling.offer(server);
  }

  /** Go where the address leads. */
  #enter() {
    const place = this.#place();
    if (place === null || (place.session && place.session === this.#state?.session)) return;
    this.#settings.fill(place.options);
    if (place.session) this.#connect({ session: place.session, watch: place.watch ? 1 : undefined });
    else if (place.cues.length) {
      const there = this.#connect({ ...this.#settings.options, ...place.options });
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

  /** Whether there is a stay now; that there may be none is said. */
  #connect(options) {
    this.#close();
    const reactor = this.#connection(options);
    if (!reactor) return false;
    this.#stay = new Stay(reactor, byId("video"), {
      heard: (message, before) => this.#hear(message, before),
      changed: () => this.#show(),
      skipped: (skip) => this.#away.skipped(skip),
    });
    this.#restyling.follow(reactor);
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
    this.#restyling.leave();
    this.#stay?.close();
    this.#stay = null;
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
    if (!this.#stay && !this.#connect(this.#settings.options)) return null;
    try {
      return await this.#stay.ask(type, data);
    } catch (error) {
      this.#notices.warn(error);
      return null;
    }
  }

  #hear(message, before) {
    const { type, data } = message;
    const heard = {
      state: () => this.#settle(data, before),
      error: () => this.#fail(data),
      replaced: () => this.#settle(this.#state, before),
      recording: () => data.command_id || this.#record.ended(data),
    }[type];
    this.#news.hear(message);
    heard?.();
  }

  #settle(state, before) {
    if (!before) this.#away.returned(state);
    else if (state.take !== before.take) this.#feed.clear();
    this.#feed.goOn(state.pending_count);
    const place = this.#watches ? watchingPlace(state.session) : steeringPlace(state.session);
    if (location.hash !== place) history.replaceState(null, "", place);
    this.#show();
  }

  #fail(error) {
    if (follow(error)) return;
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

  get #state() {
    return this.#stay?.state ?? null;
  }

  get #watches() {
    return this.#stay?.watches ?? false;
  }

  #show() {
    const [state, stay] = [this.#state, this.#stay];
    this.#settings.restyles = this.#restyling.isWanted;
    showSession(state, stay ?? { standing: "none" });
    this.#restyling.show(state, this.#watches);
    this.#record.show(state?.recording);
    this.#prompt.tellBlock(state?.block_frames);
    this.#strip.show(state);
    this.#lists.show(state ?? { pending: [], pending_count: 0, applied: [], applied_count: 0 }, this.#watches);
    this.#draw();
  }

  /** Show the frame on the screen: again and again, and at once with a state, which it belongs to. */
  #draw() {
    const frame = this.#stay?.frame ?? -1;
    showMeters(frame, this.#stay);
    this.#restyling.draw(frame);
    this.#strip.moveTo(frame, this.#stay?.made ?? 0);
    if (this.#state) this.#away.sees(this.#state, frame);
  }
}

new Page();
