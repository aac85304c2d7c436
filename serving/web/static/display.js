/** How a session stands, in the words, buttons and numbers of the page. */

import { atFrame, byId, count } from "./dom.js";

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

const SUSPENDED = "paused for long: its place is free for others until it is resumed";

/** What a running session waits for. */
const WAITS = {
  prompt: "the prompt, which is being encoded",
  shown: "its viewer, who has not been shown yet what was made last",
  viewer: "somebody who watches",
  input: "pictures, of which none that can be shown has come for a second",
  server: "the server: other sessions come first, or it is slow",
  replica: "another replica, since the one that had the session does not answer",
};

const STEERING = ["go", "reset", "fork", "record", "cut"];

/** A session's state, null where there is none, how the page stands to it, and what it waits for, if anything. */
export function showSession(state, { standing, watches = false, replaced = false, waiting = null }) {
  const over = ["ended", "lost"].includes(standing);
  const alive = state !== null && !over && standing !== "none";
  const begun = ["running", "paused"].includes(state?.state);
  const shown = Boolean(state?.applied.length);
  byId("state").textContent = standing === "paused" && state.suspended ? SUSPENDED : WORDS[standing];
  byId("state").dataset.state = standing;
  byId("viewers").textContent = state && state.viewers > 1 ? `${state.viewers} viewers` : "";
  byId("waiting").hidden = !waiting;
  const broken = waiting === "input" && state?.broken_picture ? `: ${state.broken_picture}` : "";
  byId("waiting").textContent = waiting ? `Waiting for ${WAITS[waiting] ?? waiting}${broken}.` : "";
  byId("go").textContent = { running: "Pause", paused: "Resume" }[standing] ?? "Start";
  byId("takeover").hidden = !replaced || standing === "lost";
  byId("cut").hidden = state?.input !== "video";
  byId("hint").hidden = begun || standing === "lost";
  byId("seed").textContent = state?.seed ?? "–";
  if (state) byId("video").style.aspectRatio = `${state.width} / ${state.height}`;
  const steers = { go: !over, reset: alive, fork: alive && begun, record: alive && begun, cut: alive && begun };
  const others = { copy: shown && state.input !== "video", export: shown, spectate: alive, bare: alive, new: standing !== "none" };
  for (const [id, able] of Object.entries({ ...steers, ...others })) {
    byId(id).disabled = !able || (watches && STEERING.includes(id));
  }
  byId("prompt").querySelector("[type=submit]").disabled = watches || over;
}

/** The frame on the screen, and how fast things go at a stay; null where there is none. */
export function showMeters(frame, stay) {
  const { delivered = null, missedFrames = 0 } = stay?.meters ?? {};
  const latency = stay?.meters.shown(frame) ?? null;
  const progress = stay?.progress;
  byId("clock").textContent = frame < 0 ? "–" : atFrame(frame);
  byId("clock").dataset.frame = frame;
  byId("delivered").textContent = delivered === null ? "–" : `${delivered.toFixed(1)} fps`;
  byId("generated").textContent = progress?.generated_fps ? `${progress.generated_fps.toFixed(1)} fps` : "–";
  byId("queue").textContent = progress ? count(progress.queued_blocks, "block") : "–";
  byId("missed").textContent = missedFrames;
  if (latency !== null) byId("latency").textContent = `${latency.toFixed(2)} s`;
}
