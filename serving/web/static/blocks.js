/** Blocks: the frames that a session makes together, another number of them at the start of a take than after that. */

export class Blocks {
  #first;
  #frames;

  /** Of a session, as its `state` has them. */
  constructor({ first_block_frames: first, block_frames: frames }) {
    this.#first = first;
    this.#frames = frames;
  }

  /** Frames of every block but the first. */
  get frames() {
    return this.#frames;
  }

  /** The number of the block that a frame is in. */
  blockOf(frame) {
    return frame < this.#first ? 0 : Math.floor((frame - this.#first) / this.#frames) + 1;
  }

  /** The first frame of the first block that begins at or after `frame`: where a cue applies. */
  appliesAt(frame) {
    if (frame <= 0) return 0;
    return this.#first + this.#frames * Math.max(0, Math.ceil((frame - this.#first) / this.#frames));
  }
}
