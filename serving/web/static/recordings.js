/** The recordings that the server has of this caller: to be downloaded and deleted. */

import { element } from "./dom.js";

const SURE_MS = 4000;
const PAGE = 1000;

export class Recordings {
  #place;
  #server;
  #warn;

  /** A list in a <details>, which is read when it is opened. */
  constructor(details, server, warn) {
    this.#place = details.querySelector("ol");
    this.#server = server;
    this.#warn = warn;
    this.details = details;
    details.addEventListener("toggle", () => this.refresh());
  }

  /** Read the list again, if it is to be seen. */
  async refresh() {
    if (!this.details.open) return;
    try {
      this.#show((await this.#all()).reverse());
    } catch (error) {
      this.#warn(error);
    }
  }

  async #all() {
    const found = [];
    let token = "";
    do {
      const page = await this.#server.ask(`recordings?${new URLSearchParams({ page_size: PAGE, page_token: token })}`);
      found.push(...page.recordings);
      token = page.next_page_token;
    } while (token);
    return found;
  }

  #show(recordings) {
    const rows = recordings.map((recording) => this.#row(recording));
    const none = element("li", {}, element("span", { className: "said none" }, "Nothing has been recorded."));
    this.#place.replaceChildren(...(rows.length ? rows : [none]));
  }

  #row(recording) {
    const { name, frames, bytes, url, finish_time: finished } = recording;
    const at = element("span", { className: "at" }, new Date(finished).toLocaleString());
    const size = `${(frames / 16).toFixed(1)} s, ${kilobytes(bytes)}`;
    const said = element("span", { className: "said", title: name }, size, element("small", {}, name));
    const load = this.#server.download(url, `${name}.mp4`, "Download", this.#warn);
    load.className = "button plain";
    load.dataset.testid = "download-recording";
    const row = element("li", {}, at, said, load, this.#deletion(recording));
    row.dataset.name = name;
    return row;
  }

  /** A button that asks once more. */
  #deletion({ name, url }) {
    const button = element("button", { type: "button", className: "danger", ariaLabel: `Delete ${name}` }, "Delete");
    button.dataset.testid = "delete-recording";
    let sure = null;
    button.onclick = async () => {
      if (sure === null) {
        button.textContent = "Delete for good";
        sure = setTimeout(() => ((button.textContent = "Delete"), (sure = null)), SURE_MS);
        return;
      }
      clearTimeout(sure);
      button.disabled = true;
      await this.#server.ask(url, { method: "DELETE" }).catch(this.#warn);
      await this.refresh();
    };
    return button;
  }
}

/** A number of bytes as people read it. */
export function kilobytes(bytes) {
  return bytes < 1e6 ? `${Math.ceil(bytes / 1000)} kB` : `${(bytes / 1e6).toFixed(1)} MB`;
}
