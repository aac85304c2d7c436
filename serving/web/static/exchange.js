/** Timelines that come in as files, and sessions that go out as files and links. */

import { copy, count, element } from "./dom.js";
import { short } from "./permalink.js";
import { linkPlace, timelinePlace } from "./replay.js";
import { sentence } from "./toasts.js";

export class Exchange {
  #server;
  #notices;

  constructor(server, notices) {
    this.#server = server;
    this.#notices = notices;
  }

  /** What is in a timeline's file for a session made from `kind`; null, which is said, if that cannot be read. */
  async read(input, kind) {
    const [file] = input.files;
    input.value = "";
    const place = `timelines?${new URLSearchParams({ name: file.name, input: kind })}`;
    try {
      return { name: file.name, ...(await this.#server.ask(place, { method: "POST", body: file })) };
    } catch (error) {
      this.#notices.warn(error);
      return null;
    }
  }

  /** Say how many of a file's cues were `added`, whether others wait here, and what of it the session does not take. */
  tellOf(read, { added, waits, state }) {
    const others = waits ? " The others follow, as long as this page is open." : "";
    const notes = read.notes.map((note) => ` ${sentence(note)}`).join("");
    this.#notices.tell(`${read.name}: ${added} of ${read.cues.length} cues are on the timeline.${others}${notes}`);
    const unused = [...read.warnings, ...otherSettings(read, state)];
    if (unused.length) this.#notices.warn({ message: unused.map(sentence).join(" ") });
  }

  /** Give the person a session's past as a file. */
  async export({ session, applied_count: prompts }) {
    try {
      await this.#server.save(timelinePlace(session), "timeline.json");
      this.#notices.tell(`timeline.json has ${count(prompts, "prompt")}, each at the frame at which it applied.`);
    } catch (error) {
      this.#notices.warn(error);
    }
  }

  /** Copy a link that makes a session's video again, or offer a file where no link can hold it. */
  async replay(state) {
    try {
      const place = await linkPlace(state, (file) => this.#server.ask(file));
      if (place) await this.share(place, "The link makes this video again, cue for cue.");
      else this.#offer(state);
    } catch (error) {
      this.#notices.warn(error);
    }
  }

  /** Copy the link of a place on this page. */
  async share(place, meaning) {
    const url = new URL(place, location.href).href;
    await copy(url);
    const link = element("a", { href: url, target: "_blank" }, "The link");
    link.dataset.testid = "link";
    this.#notices.tell(link, ` is copied. ${meaning}`);
  }

  #offer({ session, applied_count: prompts }) {
    const warn = (error) => this.#notices.warn(error);
    const link = this.#server.download(timelinePlace(session), "timeline.json", "Download", warn);
    link.dataset.testid = "timeline";
    this.#notices.tell(`${count(prompts, "prompt")} are too many for a link: a file has them. `, link);
  }
}

/** What a file asks for and the session does otherwise. */
function otherSettings(read, state) {
  return ["model", "seed", "height", "width"]
    .filter((name) => read[name] !== null && name in state && String(read[name]) !== String(state[name]))
    .map((name) => `${name}: the session's is ${state[name]}, not the file's, ${read[name]}`);
}

/** Cues in the fields of `schedule_prompt`, each `later` frames later. */
export function moved(cues, later) {
  return cues.map((cue) => {
    const { timestamp, ...rest } = cue.prompts ? short(cue) : cue;
    return { ...rest, timestamp: timestamp + later };
  });
}
