/** Blocks: frames that are made together, 9 at the start of a take and 12 after that. */

export const BLOCK = 12;
const FIRST_BLOCK = 9;

/** The number of the block that a frame is in. */
export function blockOf(frame) {
  return frame < FIRST_BLOCK ? 0 : Math.floor((frame - FIRST_BLOCK) / BLOCK) + 1;
}

/** The first frame of the first block that begins at or after `frame`: where a cue applies. */
export function appliesAt(frame) {
  return frame <= 0 ? 0 : FIRST_BLOCK + BLOCK * Math.max(0, Math.ceil((frame - FIRST_BLOCK) / BLOCK));
}
