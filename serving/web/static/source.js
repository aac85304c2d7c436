/** Where pictures come from: a camera, the screen or a file, as a <video> element shows them. */

const CAMERA = { width: { ideal: 1280 }, height: { ideal: 720 }, frameRate: { ideal: 30 } };

export class Source {
  #video;
  #ended;
  #opened = 0;

  /** `ended()` is called when the pictures end though nobody here has closed them. */
  constructor(video, ended) {
    this.#video = video;
    this.#ended = ended;
    video.muted = true;
    video.playsInline = true;
    video.disableRemotePlayback = true;
  }

  /** Show a "camera", the "screen" or a `File`, over and over again. Throws an Error that says why that cannot be. */
  async open(from) {
    this.close();
    const number = this.#opened;
    if (from instanceof File) {
      this.#video.loop = true;
      this.#video.src = URL.createObjectURL(from);
    } else {
      const stream = await capture(from);
      if (number !== this.#opened) return stop(stream);
      for (const track of stream.getTracks()) track.onended = () => number === this.#opened && this.#ended();
      this.#video.srcObject = stream;
    }
    await this.#video.play().catch((error) => {
      if (number === this.#opened) throw new Error(words(error));
    });
  }

  /** Show nothing more, and let go of the camera. */
  close() {
    this.#opened++;
    if (this.#video.srcObject) stop(this.#video.srcObject);
    if (this.#video.src) URL.revokeObjectURL(this.#video.src);
    this.#video.srcObject = null;
    this.#video.removeAttribute("src");
    this.#video.load();
  }
}

async function capture(from) {
  const devices = navigator.mediaDevices;
  if (!devices) throw new Error("browsers show a page the camera and the screen over https only, or on this machine");
  try {
    return await (from === "screen" ? devices.getDisplayMedia({ video: true }) : devices.getUserMedia({ video: CAMERA }));
  } catch (error) {
    throw new Error(words(error));
  }
}

function stop(stream) {
  for (const track of stream.getTracks()) track.stop();
}

/** What a browser's error means. */
function words(error) {
  const known = {
    NotAllowedError: "this page was not allowed to see that",
    NotFoundError: "there is no camera",
    NotReadableError: "the camera cannot be used; perhaps another program has it",
    NotSupportedError: "the browser cannot show this file as a video",
  };
  return known[error.name] ?? error.message;
}
