/** How a session's video is made again: by a link with all its cues, or, where there are too many, by a file. */

import { replayPlace } from "./permalink.js";

const LINK_CUES = 500;
const LINK_CHARACTERS = 30_000; // Some programs that pass links on cut longer ones off.

/** The place of the timeline file of a session, on its server. */
export function timelinePlace(session) {
  return `sessions/${encodeURIComponent(session)}/timeline.json`;
}

/**
 * The place that replays a session, or null if no link can hold it. What `state` does not have of its cues is read
 * by `load(place)`, which gives a timeline file's content.
 */
export async function linkPlace(state, load) {
  if (state.applied_count > LINK_CUES) return null;
  const cues =
    state.applied_count > state.applied.length
      ? (await load(timelinePlace(state.session))).cues.map(fromFile)
      : state.applied.map(({ frame, ...cue }) => ({ ...cue, timestamp: frame }));
  const place = replayPlace(state, cues);
  return place.length > LINK_CHARACTERS ? null : place;
}

function fromFile({ frame, prompt, prompts, ...changes }) {
  return { timestamp: frame, prompts: prompts ?? [{ text: prompt, weight: 1 }], ...changes };
}
