/** The picture size of a new session, of those that the server offers. */

import { element } from "./dom.js";

const OTHER = "other";

export class SizeChoice {
  #list;
  #fields;

  /** `list` is a <select>, and `fields` has inputs for the height and the width of another size. */
  constructor(list, fields) {
    this.#list = list;
    this.#fields = fields;
    list.onchange = () => this.#showFields();
    this.offer(null);
  }

  /** Offer what a server says that it generates; null where that is not known. */
  offer(server) {
    const before = this.value;
    const [usual, ...others] = server?.sizes ?? [];
    const options = [element("option", { value: "" }, usual ? `${words(usual)} (the model's)` : "the model's")];
    options.push(...others.map((size) => element("option", { value: key(size) }, words(size))));
    if (server?.other_sizes ?? true) options.push(element("option", { value: OTHER }, "another size"));
    this.#list.replaceChildren(...options);
    for (const input of this.#fields.querySelectorAll("input")) {
      if (server?.max_pixels) input.title = `a multiple of 16; height times width at most ${server.max_pixels}`;
    }
    this.value = before;
  }

  /** `{height, width}`, each a text and empty where the server is to choose. */
  get value() {
    if (this.#list.value === OTHER) {
      const [width, height] = [...this.#fields.querySelectorAll("input")].map((input) => input.value);
      return { height, width };
    }
    const [height = "", width = ""] = this.#list.value.split("x").filter(Boolean);
    return { height, width };
  }

  set value({ height, width }) {
    const wanted = height || width ? `${height}x${width}` : "";
    const offered = [...this.#list.options].some((option) => option.value === wanted);
    this.#list.value = offered ? wanted : OTHER;
    const [widths, heights] = this.#fields.querySelectorAll("input");
    [widths.value, heights.value] = offered ? ["", ""] : [width, height];
    this.#showFields();
  }

  #showFields() {
    this.#fields.hidden = this.#list.value !== OTHER;
  }
}

function key({ height, width }) {
  return `${height}x${width}`;
}

function words({ height, width }) {
  return `${width} × ${height}`;
}
