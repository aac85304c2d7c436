/** The binary messages of the protocol: pieces of video that come, and pictures that go. */

const KINDS = { 1: "init", 2: "frames" };
const PIECE_HEAD_BYTES = 24;

const FORMATS = { jpeg: 1, png: 2, h264: 3 };
const PICTURE_HEAD_BYTES = 20;

/** A piece of video: `{kind: "init" | "frames", take, first, frames, seq, data}`. */
export function readPiece(buffer) {
  const head = new DataView(buffer);
  const [kind, take, first, frames] = [0, 4, 8, 12].map((at) => head.getUint32(at));
  const seq = Number(head.getBigUint64(16));
  return { kind: KINDS[kind], take, first, frames, seq, data: new Uint8Array(buffer, PIECE_HEAD_BYTES) };
}

/** A picture, which is a Blob or an ArrayBuffer, as it goes over the socket. Throws a TypeError for an unknown format. */
export function pictureMessage(id, picture, format, timeUs) {
  if (!(format in FORMATS)) throw new TypeError(`the format ${format} is unknown; known: ${Object.keys(FORMATS).join(", ")}`);
  const head = new DataView(new ArrayBuffer(PICTURE_HEAD_BYTES));
  head.setUint32(0, FORMATS[format]);
  head.setBigUint64(4, BigInt(id));
  head.setBigUint64(12, BigInt(Math.round(timeUs)));
  return new Blob([head, picture]);
}
