/** What a new session is made with, as far as a person has said so. */

import { byId, present } from "./dom.js";
import { SizeChoice } from "./size_choice.js";

const SECRETS = ["token", "insecure"];
const OF_PICTURES = ["fit", "noise_scale"];

export class Settings {
  #form;
  #sizes = new SizeChoice(byId("sizes"), byId("size"));
  #server = null;
  #restyles = false;

  constructor(form) {
    this.#form = form;
    form.onsubmit = (event) => event.preventDefault();
  }

  /** Offer what a server says that it generates; null where that is not known. */
  offer(server) {
    this.#server = server;
    byId("pictures").hidden = !server?.inputs.includes("video");
    this.#offerSizes();
  }

  /** Whether the session is to restyle pictures; of some models all do. */
  set restyles(wanted) {
    if (wanted === this.#restyles) return;
    this.#restyles = wanted;
    this.#offerSizes();
  }

  get restyles() {
    return this.#restyles || this.#server?.inputs.includes("none") === false;
  }

  /** The options of a session; what was not said is left to the server. */
  get options() {
    const fields = Object.fromEntries(new FormData(this.#form));
    for (const name of [...SECRETS, ...(this.restyles ? [] : OF_PICTURES)]) delete fields[name];
    return present({ ...fields, ...this.#sizes.value, input: this.restyles ? "video" : "" });
  }

  /** Fill in what an address says. */
  fill({ height = "", width = "", ...others }) {
    if (height || width) this.#sizes.value = { height, width };
    for (const [name, value] of Object.entries(others)) {
      const field = this.#form.elements[name];
      if (field) field.value = value;
    }
  }

  /** The size that a session has which asks for none is another where it takes pictures. */
  #offerSizes() {
    const { sizes = [], video_size: video } = this.#server ?? {};
    this.#sizes.offer(this.#server && { ...this.#server, sizes: this.restyles && video ? [video, ...sizes.slice(1)] : sizes });
  }
}
