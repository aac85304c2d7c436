/** Sends what a <video> element shows, as JPEG: so many pictures a second, but no faster than they leave. */

const PICTURES_A_SECOND = 24;
const QUALITY = 0.85;
const MOST_WAITING_BYTES = 128 << 10;

export class PictureSender {
  #video;
  #reactor;
  #trail;
  #canvas = document.createElement("canvas");
  #ticker = null;
  #wanted = null;
  #busy = false;

  /** What is sent over `reactor` is told to `trail`. */
  constructor(video, reactor, trail) {
    this.#video = video;
    this.#reactor = reactor;
    this.#trail = trail;
  }

  /** Send pictures for frames of `{height, width}`, `mirrored` or not, until `stop`. */
  send(wanted) {
    this.#wanted = wanted;
    if (this.#ticker) return;
    this.#ticker = new Worker(new URL("ticker.js", import.meta.url));
    this.#ticker.onmessage = () => this.#tick();
    this.#ticker.postMessage(1000 / PICTURES_A_SECOND);
  }

  /** No more pictures come for now. */
  stop() {
    if (!this.#ticker) return;
    this.#ticker.terminate();
    this.#ticker = this.#wanted = null;
    this.#reactor.sendMessage({ type: "end_input" }).catch(() => {}); // The session is over.
  }

  /** A picture that would have to wait is left out: a later one takes its place. */
  async #tick() {
    const ready = this.#wanted && this.#video.readyState >= HTMLMediaElement.HAVE_CURRENT_DATA;
    if (!ready || this.#busy || this.#reactor.bufferedAmount > MOST_WAITING_BYTES) return;
    this.#busy = true;
    const taken = performance.now();
    this.#draw();
    const picture = await new Promise((made) => this.#canvas.toBlob(made, "image/jpeg", QUALITY));
    this.#busy = false;
    if (!picture || !this.#wanted) return;
    const id = this.#reactor.sendPicture(picture, "jpeg", 1000 * (performance.timeOrigin + taken));
    if (id !== null) this.#trail.sent(id, taken);
  }

  /** Draw the picture, no larger than frames can show of it. */
  #draw() {
    const { height, width, mirrored } = this.#wanted;
    const { videoHeight, videoWidth } = this.#video;
    const scale = Math.min(1, Math.max(height / videoHeight, width / videoWidth));
    this.#canvas.height = Math.max(1, Math.round(scale * videoHeight));
    this.#canvas.width = Math.max(1, Math.round(scale * videoWidth));
    const context = this.#canvas.getContext("2d");
    if (mirrored) context.setTransform(-1, 0, 0, 1, this.#canvas.width, 0);
    context.drawImage(this.#video, 0, 0, this.#canvas.width, this.#canvas.height);
  }
}
