/** What a viewer missed, in words: while the page slept, lagged behind, or was not there at all. */

import { count } from "./dom.js";
import { keep, kept } from "./identity.js";

const SEEN = "longtake.seen";
const TOLD_FRAMES = 12;

export class Away {
  #notices;

  constructor(notices) {
    this.#notices = notices;
  }

  /** Frames were skipped, or the page slept, and the video goes on at a frame. */
  skipped({ slept, frames, frame }) {
    const skip = frames ? `${count(frames, "frame")} skipped` : "no frame was skipped";
    const why = slept ? `This page was asleep for ${Math.round(slept)} s` : "This page was too far behind";
    this.#tell(`${why}: ${skip}. The video goes on at frame ${frame}.`);
  }

  /** Note, also for when the page is loaded again, that a frame of a session is on the screen. */
  sees({ session, take }, frame) {
    if (frame >= 0) keep(SEEN, JSON.stringify({ session, take, frame }));
  }

  /** The page is back at a session that it may have seen before. */
  returned({ session, take, state, shown_frame: shown }) {
    const seen = JSON.parse(kept(SEEN) ?? "null");
    if (state !== "running" || seen?.session !== session || seen.take !== take) return;
    const missed = shown - seen.frame - 1;
    if (missed >= TOLD_FRAMES) this.#tell(`${count(missed, "frame")} were skipped while this page was away.`);
  }

  #tell(text) {
    this.#notices.tellAbout("skip", text);
  }
}
