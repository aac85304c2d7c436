/** Tokens go to other machines over encrypted connections only, unless somebody says that others may read them. */

import { Refusal } from "./refusal.js";

const ENCRYPTED = ["https:", "wss:"];
const THIS_MACHINE = /^(localhost|.+\.localhost|127(\.\d+){3}|\[::1\])$/;

export const INSECURE_TOKEN = "INSECURE_TOKEN";

/** Whether others may read what is sent to `address`. */
export function isInTheClear(address) {
  const { protocol, hostname } = new URL(address, globalThis.location?.href);
  return !ENCRYPTED.includes(protocol) && !THIS_MACHINE.test(hostname);
}

/** Throw a Refusal where a token, if there is one, would go to `address` in the clear; not if that is `allowed`. */
export function requireSafe(address, token, allowed) {
  if (!token || allowed || !isInTheClear(address)) return;
  const { host } = new URL(address, globalThis.location?.href);
  const message = `the token would go to ${host} in the clear; come by https, or say that others may read it`;
  throw new Refusal({ code: "UNAUTHENTICATED", reason: INSECURE_TOKEN, message });
}
