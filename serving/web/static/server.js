/** What the page asks of its server beside the socket, and the token that goes with it. */

import { isInTheClear, requireSafe } from "./clear_text.js";
import { element } from "./dom.js";
import { keep, kept } from "./identity.js";
import { Refusal } from "./refusal.js";

const TOKEN = "longtake.token";
const INSECURE = "longtake.insecure";

export class Server {
  #token;
  #insecure;

  /**
   * A person writes into the field `token`, ticks `insecure` if others may read it on its way, and `changed` is called
   * when either is another.
   */
  constructor({ token, insecure }, changed) {
    this.#token = token;
    this.#insecure = insecure;
    token.value = kept(TOKEN) ?? "";
    insecure.checked = Boolean(kept(INSECURE));
    this.#ask();
    token.onchange = insecure.onchange = () => {
      keep(TOKEN, token.value);
      keep(INSECURE, insecure.checked ? "yes" : "");
      this.#ask();
      changed();
    };
  }

  /** What goes with a connection: the token, and whether it may be read on its way. */
  get access() {
    return { token: this.token, insecure: this.#insecure.checked };
  }

  get token() {
    return this.#token.value;
  }

  /** Ask whether the token may be read only where it could be. */
  #ask() {
    this.#insecure.parentElement.hidden = !this.token || !isInTheClear(document.baseURI);
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
    requireSafe(document.baseURI, this.token, this.#insecure.checked);
    const headers = this.token ? { Authorization: `Bearer ${this.token}` } : {};
    const answer = await fetch(place, { ...options, headers }).catch(() => {
      throw new Refusal({ code: "UNAVAILABLE", message: "the server does not answer" });
    });
    if (answer.ok) return answer;
    throw new Refusal((await answer.json().catch(() => null))?.error ?? { message: `the server answers ${answer.status}` });
  }
}
