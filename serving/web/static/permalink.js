/** What comes behind the # of the page's address, which is never sent to a server. */

const OPTIONS = ["model", "seed", "height", "width", "fps", "ahead", "fit", "noise_scale"];
const REPLAYED = ["model", "seed", "height", "width"];

/** What an address leads to: a session to steer or to watch, or options and cues of a new one. */
export function readPlace(hash) {
  const fields = new URLSearchParams(hash.replace(/^#/, ""));
  const options = {};
  for (const name of OPTIONS) {
    if (fields.has(name)) options[name] = fields.get(name);
  }
  return {
    session: fields.get("session") ?? fields.get("watch"),
    watch: fields.has("watch"),
    options,
    cues: readCues(fields.get("cues")),
  };
}

/** The address at which a session is steered again after the page was closed. */
export function steeringPlace(session) {
  return `#${new URLSearchParams({ session })}`;
}

/** The address at which others look on. */
export function watchingPlace(session) {
  return `#${new URLSearchParams({ watch: session })}`;
}

/** The address of the video alone. */
export function barePlace(session) {
  return `bare${watchingPlace(session)}`;
}

/** The address of a new session that shows the same video: its seed and size, and each of its cues where it applied. */
export function replayPlace(state, cues) {
  const fields = new URLSearchParams(REPLAYED.map((name) => [name, state[name]]));
  fields.set("cues", JSON.stringify(cues.map(short)));
  return `#${fields}`;
}

/** A cue in as few fields as say it. */
export function short({ timestamp, prompts, transition, restyling }) {
  const prompt = prompts.length === 1 ? { new_prompt: prompts[0].text } : { prompts };
  return { timestamp, ...prompt, ...(transition && { transition }), ...(restyling && { restyling }) };
}

function readCues(text) {
  if (!text) return [];
  const cues = JSON.parse(text);
  const whole = Array.isArray(cues) && cues.every((cue) => Number.isInteger(cue?.timestamp));
  if (!whole) throw new SyntaxError("its cues are no list in which each has a timestamp");
  return cues;
}
