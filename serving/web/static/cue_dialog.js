/** The dialog in which a cue that is to come is changed. */

export class Editor {
  #dialog;
  #form;

  constructor(dialog) {
    this.#dialog = dialog;
    this.#form = dialog.querySelector("form");
  }

  /** Show a cue. Gives `{action: "save" | "remove" | "cancel", text, frame}`. */
  open({ text, timestamp }) {
    const { text: said, frame } = this.#form.elements;
    said.value = text;
    frame.value = timestamp;
    this.#dialog.returnValue = "cancel";
    this.#dialog.showModal();
    return new Promise((closed) => {
      const answer = () => closed({ action: this.#dialog.returnValue, text: said.value, frame: Number(frame.value) });
      this.#dialog.addEventListener("close", answer, { once: true });
    });
  }
}
