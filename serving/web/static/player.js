/** Plays a session's frames in a <video> element. Frame n of a take lies at n / 16 seconds. */

import { Blocks } from "./blocks.js";
import { Skips } from "./skips.js";

const LOOK_MS = 60;
const REPORT_MS = 500;
const KEPT_S = 60;
const HURRY_S = 2.5;
const LIVE_HURRY_S = 0.5;
const LATE_S = 5;

const Source = globalThis.ManagedMediaSource ?? globalThis.MediaSource;

export class Player {
  #video;
  #source = null;
  #buffer = null;
  #waiting = [];
  #fps = 16;
  #blocks = null;
  #rate = 1;
  #take = null;
  #wanted = null;
  #running = false;
  #held = null;
  #seen = -1;
  #live = null;
  #reported = { frame: -1, at: 0 };
  #shown = { take: -1, frame: -1 };
  #hurries = false;
  #isLive = false;
  #endings = [];
  #skips;

  /** `skipped({ slept, frames, frame })` hears what was not shown, in seconds and frames, before the video went on. */
  constructor(video, skipped = () => {}) {
    this.#video = video;
    this.#skips = new Skips(skipped);
    video.muted = true;
    video.playsInline = true;
    video.disableRemotePlayback = true;
  }

  /** The frame on the screen, which is one that has come; -1 before the first. */
  get frame() {
    const { readyState, currentTime } = this.#video;
    if (this.#shown.take !== this.#take) return -1;
    const there = this.#wanted === null && readyState >= HTMLMediaElement.HAVE_CURRENT_DATA;
    return (there ? this.#frameAt(currentTime) : null) ?? this.#held ?? this.#seen;
  }

  /** Show what comes from `reactor`, and report what has been shown until `stop` is called. */
  follow(reactor) {
    this.#hurries = reactor.watches;
    const look = setInterval(() => this.#look(reactor), LOOK_MS);
    this.#endings = [
      reactor.onFrames((piece) => this.#takeIn(piece)),
      // Timers hardly run in a page that is not seen; messages come.
      reactor.onMessage((message) => (this.#handle(message), this.#look(reactor))),
      () => clearInterval(look),
    ];
  }

  /** Show nothing more. */
  stop() {
    for (const end of this.#endings.splice(0)) end();
    this.#running = false;
    this.#video.pause();
  }

  /** Stop at the frame that is shown, at once. Gives its number. */
  hold() {
    this.#video.pause();
    this.#held = this.frame;
    return this.#held;
  }

  /** Go on after `hold`, where the session does. */
  release() {
    this.#held = null;
    if (this.#running) this.#play();
  }

  #handle({ type, data }) {
    if (type === "state") this.#stand(data);
    if (type === "media") this.#fps = data.fps;
    if (type === "progress" && this.#blocks) this.#live = this.#liveAt(data);
  }

  /** The first frame of the block that others are at, who have been shown all but those that are queued. */
  #liveAt({ current_start_frame: made, queued_blocks: queued }) {
    return made - this.#blocks.frames * (queued + 1);
  }

  #stand(session) {
    const { state, fps, shown_frame: shown, take } = session;
    this.#blocks = new Blocks(session);
    if (take !== this.#shown.take) this.#live = null;
    this.#shown = { take, frame: shown };
    this.#isLive = session.input === "video";
    this.#rate = fps > 0 ? fps / this.#fps : 1;
    this.#running = state === "running";
    if (this.#running) {
      this.#held = null;
      this.#play();
    } else if (state === "paused" && take === this.#take) this.#stopAt(shown);
    else this.#video.pause();
  }

  #play() {
    this.#video.play().catch(() => {}); // Nothing is loaded yet, or a pause came in between; the next look plays.
  }

  #stopAt(frame) {
    this.#video.pause();
    this.#held = frame;
    if (frame >= 0 && this.frame !== frame) this.#seek(frame);
  }

  #takeIn({ kind, take, first, data, media }) {
    if (take !== this.#take) {
      this.#begin(take, media);
      this.#wanted = this.#shown.take === take ? Math.max(first, this.#shown.frame) : first;
    }
    this.#waiting.push({ kind, first, data, mime: media.mime });
    this.#append();
  }

  /** A new take begins with an empty buffer. */
  #begin(take, media) {
    this.#take = take;
    this.#held = null;
    this.#seen = -1;
    this.#reported = { frame: -1, at: 0 };
    this.#waiting = [];
    this.#buffer = null;
    const source = new Source();
    source.addEventListener("sourceopen", () => this.#opened(source, media), { once: true });
    const before = this.#video.src;
    this.#video.src = URL.createObjectURL(source);
    if (before) URL.revokeObjectURL(before);
    this.#source = source;
  }

  #opened(source, media) {
    if (source !== this.#source) return;
    this.#buffer = source.addSourceBuffer(media.mime);
    this.#buffer.addEventListener("updateend", () => source === this.#source && this.#append());
    this.#append();
  }

  #append() {
    const buffer = this.#buffer;
    if (!buffer || buffer.updating) return;
    this.#arrive();
    const next = this.#waiting.shift();
    if (!next) return this.#trim();
    if (next.kind === "init") buffer.changeType(next.mime);
    try {
      buffer.appendBuffer(next.data);
    } catch (error) {
      if (error.name !== "QuotaExceededError") throw error;
      this.#waiting.unshift(next);
      buffer.remove(0, Math.max(this.#video.currentTime - 1, 1 / this.#fps));
    }
  }

  /** Go to the first frame as soon as it is there. */
  #arrive() {
    if (this.#wanted === null || this.#buffer.buffered.length === 0) return;
    this.#seek(this.#wanted);
    this.#wanted = null;
    if (this.#running) this.#play();
  }

  #seek(frame) {
    this.#video.currentTime = (frame + 0.5) / this.#fps;
  }

  #trim() {
    const { buffered } = this.#buffer;
    const end = this.#video.currentTime - KEPT_S;
    if (buffered.length && buffered.start(0) < end - KEPT_S) this.#buffer.remove(0, end);
  }

  #look(reactor) {
    const plays = this.#running && this.#held === null;
    const slept = this.#skips.look(plays);
    if (!plays) return;
    if (this.#wanted === null && this.#video.buffered.length) {
      this.#stay(slept);
      this.#cross();
      this.#catchUp();
    }
    this.#pace();
    if (this.#video.paused && this.#wanted === null && this.#video.readyState > 0) this.#play();
    this.#seen = this.frame;
    this.#skips.tell(this.#seen);
    if (reactor.take === this.#take) this.#report(reactor);
  }

  /** The frame at a time, if it is there; at the end of what has come, the last one. */
  #frameAt(time) {
    const { buffered } = this.#video;
    const slack = 0.1 / this.#fps;
    for (let number = 0; number < buffered.length; number++) {
      if (time < buffered.start(number) - slack || time > buffered.end(number) + slack) continue;
      const last = Math.round(buffered.end(number) * this.#fps) - 1;
      return Math.min(Math.floor(time * this.#fps + 0.01), last);
    }
    return null;
  }

  get #last() {
    const { buffered } = this.#video;
    return Math.round(buffered.end(buffered.length - 1) * this.#fps) - 1;
  }

  /** A clock that ran on while nothing was shown, or beyond all that has come, is put back to where the picture is. */
  #stay(slept) {
    const beyond = this.#video.currentTime > (this.#last + 2) / this.#fps;
    if ((!slept && !beyond) || this.#frameAt(this.#video.currentTime) === this.#seen) return;
    this.#seek(this.#seen < 0 ? this.#last : Math.min(this.#seen, this.#last));
  }

  /** Frames that were lost leave a hole; go on behind it. */
  #cross() {
    const { buffered, currentTime } = this.#video;
    const slack = 2 / this.#fps;
    for (let number = 0; number < buffered.length; number++) {
      if (currentTime < buffered.start(number) - slack / 20) {
        const before = number === 0 || buffered.end(number - 1) - currentTime < slack;
        if (before) this.#skipTo(Math.round(buffered.start(number) * this.#fps));
        return;
      }
    }
  }

  /** Whoever is far behind what others see goes there. */
  #catchUp() {
    const target = Math.min(this.#live ?? -1, this.#last);
    const late = target - this.#frameNow > LATE_S * this.#fps * Math.max(1, this.#rate);
    if (late) this.#skipTo(target);
  }

  get #frameNow() {
    return Math.floor(this.#video.currentTime * this.#fps);
  }

  #skipTo(frame) {
    if (this.#seen >= 0) this.#skips.add(frame - Math.max(this.#seen, this.#frameNow) - 1);
    this.#seek(frame);
  }

  /** One who only looks on, and was held up, catches up slowly; so do all where frames follow a camera. */
  #pace() {
    const { buffered, currentTime } = this.#video;
    const ahead = buffered.length ? buffered.end(buffered.length - 1) - currentTime : 0;
    const most = this.#isLive ? LIVE_HURRY_S : HURRY_S * Math.max(1, this.#rate);
    const late = (this.#hurries || this.#isLive) && ahead > most;
    const rate = this.#rate * (late ? 1.1 : 1);
    if (this.#video.playbackRate !== rate) this.#video.playbackRate = rate;
  }

  /** Tell the server what is shown: whenever a block begins, and twice a second, since a report may get lost. */
  #report(reactor) {
    const { frame, at } = this.#reported;
    const now = performance.now();
    const sameBlock = this.#blocks.blockOf(this.#seen) === this.#blocks.blockOf(frame);
    if (this.#seen < 0 || (sameBlock && now - at < REPORT_MS)) return;
    this.#reported = { frame: this.#seen, at: now };
    reactor.sendMessage({ type: "shown", data: { frame: this.#seen } }).catch(() => {});
  }
}
