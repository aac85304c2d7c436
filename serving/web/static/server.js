/** What the page asks of its server beside the socket, and the token that goes with it. */

import { element } from "./dom.js";
import { keep, kept } from "./identity.js";
import { Refusal } from "./refusal.js";

const TOKEN = "longtake.token";

export class Server {
  #field;

  /** `field` is where a person writes the token, and `changed` is called when it is another. */
  constructor(field, changed) {
    this.#field = field;
    field.value = kept(TOKEN) ?? "";
    field.onchange = () => {
      keep(TOKEN, field.value);
      changed();
    };
  }

  get token() {
    return this.#field.value;
  }

  /** The answer's JSON, null where it has no content. Throws a Refusal. */
  async ask(place, options = {}) {
    const answer = await this.#fetch(place, options);
    return answer.status === 204 ? null : answer.json();
  }

  /** A link that downloads. It carries no token: where one is needed, the file is fetched and then saved. */
  download(place, name, text, refused) {
    const link = element("a", { href: place, download: name }, text);
    link.onclick = (event) => {
      if (!this.token) return;
      event.preventDefault();
      this.save(place, name).catch(refused);
    };
    return link;
  }

  /** Have the browser keep a file. Throws a Refusal. */
  async save(place, name) {
    const answer = await this.#fetch(place);
    const url = URL.createObjectURL(await answer.blob());
    element("a", { href: url, download: name }).click();
    setTimeout(() => URL.revokeObjectURL(url), 60_000);
  }

  async #fetch(place, options) {
    const headers = this.token ? { Authorization: `Bearer ${this.token}` } : {};
    const answer = await fetch(place, { ...options, headers }).catch(() => {
      throw new Refusal({ code: "UNAVAILABLE", message: "the server does not answer" });
    });
    if (answer.ok) return answer;
    throw new Refusal((await answer.json().catch(() => null))?.error ?? { message: `the server answers ${answer.status}` });
  }
}
