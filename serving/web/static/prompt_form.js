/** The form in which a prompt is written, for now or for a frame. */

export class PromptForm {
  #form;
  #add;

  /** `add(cue, now)` schedules a cue, and gives something falsy if it was refused. */
  constructor(form, add) {
    this.#form = form;
    this.#add = add;
    const { text, at } = form.elements;
    form.onsubmit = (event) => this.#submit(event);
    text.onkeydown = (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) this.#submit(event);
    };
    at.oninput = () => (form.elements.when.value = "frame");
  }

  /** Say how long a block is, of so many frames; not where there are none yet. */
  tellBlock(frames) {
    const length = frames ? `; a block is ${frames / 16} s` : "";
    this.#form.elements.blocks.title = `0 is at once${length}`;
  }

  /** What is written. */
  get text() {
    return this.#form.elements.text.value.trim();
  }

  /** It has been taken. */
  clear() {
    this.#form.elements.text.value = "";
  }

  focus() {
    this.#form.elements.text.focus();
  }

  async #submit(event) {
    event.preventDefault();
    if (!this.text) return;
    const { when, at, blocks } = this.#form.elements;
    const now = when.value === "now";
    const cue = { new_prompt: this.text };
    if (!now && at.value) cue.timestamp = Number(at.value);
    if (Number(blocks.value) > 0) cue.transition = { blocks: Number(blocks.value) };
    if (await this.#add(cue, now)) this.clear();
  }
}
