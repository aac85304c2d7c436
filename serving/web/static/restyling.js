/** The part of the page in which a video is restyled: its source, beside what is made of it, and how fast that goes. */

import { byId } from "./dom.js";
import { PictureSender } from "./picture_sender.js";
import { PictureTrail } from "./picture_trail.js";
import { Source } from "./source.js";

const NONE = "none";

/** How a picture of another size is shown beside the frames, as the server brings it to theirs. */
const FITS = { fill: "cover", fit: "contain", stretch: "fill" };

export class Restyling {
  #source = new Source(byId("input"), () => this.#choose(NONE));
  #sender = null;
  #trail = new PictureTrail();
  #endings = [];
  #session = null;
  #counts = null;
  #warn;
  #changed;

  /**
   * What cannot be done is told by `warn(error)`; `changed()` is called where another source is chosen, and
   * `restyle(how)` where the next pictures are to be restyled otherwise.
   */
  constructor(warn, changed, restyle) {
    this.#warn = warn;
    this.#changed = changed;
    const strength = byId("strength");
    strength.oninput = () => (byId("strength-value").textContent = strength.value);
    strength.onchange = () => restyle({ noise_scale: strength.valueAsNumber });
    byId("follows-motion").onchange = ({ target }) => restyle({ follows_motion: target.checked });
    byId("source").onchange = () => this.#choose(byId("source").value);
    byId("clip").onchange = () => this.#openFile(byId("clip"));
    byId("bypass").onclick = () => this.#bypass(!this.#bypasses);
  }

  /** Whether a new session is to take pictures. */
  get isWanted() {
    return byId("source").value !== NONE;
  }

  /** Offer what a server says that sessions can be made from; null where that is not known. */
  offer(server) {
    const inputs = server?.inputs ?? [];
    byId("restyling").hidden = !inputs.includes("video");
    byId("source").options[0].textContent = inputs.includes(NONE) ? "prompts only" : "nothing yet";
  }

  /** Send pictures to the session of `reactor`, if it takes some. */
  follow(reactor) {
    this.leave();
    this.#trail = new PictureTrail();
    this.#sender = new PictureSender(byId("input"), reactor, this.#trail);
    this.#endings = [reactor.onMessage((message) => this.#hear(message))];
  }

  leave() {
    for (const end of this.#endings.splice(0)) end();
    this.#sender?.stop();
    this.#sender = this.#session = this.#counts = null;
  }

  /** Show how a session stands, null for none; one who only `watches` sends it nothing. */
  show(session, watches) {
    this.#session = watches ? null : session;
    const takesNone = session !== null && (watches || session.input !== "video");
    byId("source").disabled = byId("clip").disabled = takesNone && !this.isWanted;
    byId("input").style.objectFit = FITS[session?.fit ?? byId("settings").elements.fit.value];
    byId("input").style.aspectRatio = byId("video").style.aspectRatio;
    byId("picture-meters").hidden = this.#session?.input !== "video";
    this.#showNoise(this.#session?.restyling ?? null);
    this.#send();
  }

  /** Show how fast things go while a frame is on the screen. */
  draw(frame) {
    if (!this.#session) return;
    const age = this.#trail.age(frame);
    const { received = 0, dropped = 0, broken = 0 } = this.#counts ?? {};
    byId("sent").textContent = `${this.#trail.rate.toFixed(1)} / s`;
    if (age !== null) byId("age").textContent = `${age.toFixed(2)} s`;
    byId("dropped").textContent = received ? `${dropped + broken} of ${received}` : "–";
    byId("mixed").textContent = this.#counts?.noise_scale?.toFixed(2) || "–";
  }

  /** What pictures are mixed with, as the server has it; a slider that is being moved stays where it is. */
  #showNoise(restyling) {
    byId("noise").hidden = restyling === null;
    if (restyling === null || byId("strength").matches(":active")) return;
    byId("strength").value = restyling.noise_scale;
    byId("strength-value").textContent = restyling.noise_scale;
    byId("follows-motion").checked = restyling.follows_motion;
  }

  #hear({ type, data }) {
    if (type === "pictures") this.#trail.made(data);
    if (type === "progress") this.#counts = data.input ?? null;
  }

  get #bypasses() {
    return byId("bypass").ariaPressed === "true";
  }

  #bypass(on) {
    byId("bypass").ariaPressed = String(on);
    byId("screens").classList.toggle("bypass", on);
  }

  #openFile(input) {
    const [file] = input.files;
    if (!file) return;
    const option = byId("source").querySelector("[value=file]");
    option.textContent = file.name;
    option.hidden = false;
    byId("source").value = "file";
    this.#choose("file");
  }

  async #choose(kind) {
    byId("source").value = kind;
    const wanted = kind !== NONE;
    byId("input-screen").hidden = byId("bypass").hidden = !wanted;
    byId("screens").classList.toggle("both", wanted);
    byId("input").classList.toggle("mirrored", kind === "mirrored");
    if (!wanted) this.#bypass(false);
    this.#changed();
    try {
      if (!wanted) this.#source.close();
      else await this.#source.open({ mirrored: "camera", file: byId("clip").files[0] }[kind] ?? kind);
    } catch (error) {
      this.#warn(error);
      if (byId("source").value === kind) this.#choose(NONE);
    }
    this.#send();
  }

  /** Send pictures where there are some and the session makes frames of them. */
  #send() {
    const { height, width, state, input } = this.#session ?? {};
    const sends = this.isWanted && input === "video" && state === "running";
    if (sends) this.#sender.send({ height, width, mirrored: byId("source").value === "mirrored" });
    else this.#sender?.stop();
  }
}
