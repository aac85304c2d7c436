/** Timelines that come in as files, and sessions that go out as files and links. */

import { copy, count, element } from "./dom.js";
import { short } from "./permalink.js";
import { linkPlace, timelinePlace } from "./replay.js";

export class Exchange {
  #server;
  #notices;

  constructor(server, notices) {
    this.#server = server;
    this.#notices = notices;
  }

  /** What is in a timeline's file; null, which is said, if that cannot be read. */
  async read(input) {
    const [file] = input.files;
    input.value = "";
    const place = `timelines?${new URLSearchParams({ name: file.name })}`;
    try {
      return { name: file.name, ...(await this.#server.ask(place, { method: "POST", body: file })) };
    } catch (error) {
      this.#notices.warn(error);
      return null;
    }
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

/** Cues in the fields of `schedule_prompt`, each `later` frames later. */
export function moved(cues, later) {
  return cues.map((cue) => {
    const { timestamp, ...rest } = cue.prompts ? short(cue) : cue;
    return { ...rest, timestamp: timestamp + later };
  });
}
