/**
 * What the server, or the lack of one, says against a message. `code` is a status code of gRPC by name, `reason` is an
 * `ErrorReason` of the protocol.
 */
export class Refusal extends Error {
  constructor({ code, reason, message }) {
    super(message);
    this.code = code;
    this.reason = reason;
  }
}
