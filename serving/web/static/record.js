/** The button that records, and what is said of a recording that is done. */

import { byId, count } from "./dom.js";
import { kilobytes } from "./recordings.js";

export class Record {
  #server;
  #notices;
  #changed;

  /** `changed()` is called when there is a recording more. */
  constructor(server, notices, changed) {
    this.#server = server;
    this.#notices = notices;
    this.#changed = changed;
  }

  /** Show whether `name` is being recorded. */
  show(name) {
    const button = byId("record");
    button.ariaPressed = String(Boolean(name));
    button.lastChild.textContent = name ? "Recording" : "Record";
    button.title = name ? "Stop recording" : "Record from here on";
  }

  /** One was stopped. */
  stopped(recording) {
    if (recording.finished) this.#tell("Recorded", recording);
    else this.#notices.tell("Nothing was shown while it was recorded, so there is no file.");
  }

  /** One has ended that nobody has stopped. */
  ended(recording) {
    if (recording.error) this.#notices.warn(recording.error);
    if (recording.finished) this.#tell("The recording has ended with", recording);
  }

  #tell(how, { name, frames, bytes, url }) {
    const link = this.#server.download(url, `${name}.mp4`, "Download", (error) => this.#notices.warn(error));
    link.dataset.testid = "download";
    this.#notices.tell(`${how} ${count(frames, "frame")}, ${kilobytes(bytes)}. `, link);
    this.#changed();
  }
}
