/**
 * A session's video and nothing else, for programs that mix pictures: bare#watch=SESSION, and `token` behind it where one
 * is needed.
 */

import { byId } from "./dom.js";
import { connect } from "./longtake.js";
import { follow } from "./moved.js";
import { Player } from "./player.js";
import { sentence } from "./toasts.js";

const say = (text) => {
  byId("said").textContent = sentence(text);
  byId("said").hidden = false;
};

function show(fields) {
  const session = fields.get("watch");
  if (!session) throw new Error("this address names no session; it ends in #watch= and a session's id");
  const options = { session, watch: 1, token: fields.get("token") ?? undefined, insecure: fields.has("insecure") };
  const reactor = connect(new URL(".", document.baseURI).href, options);
  new Player(byId("video")).follow(reactor);
  reactor.onFrames(() => (byId("said").hidden = true));
  reactor.onMessage(({ type, data }) => {
    if (type === "error" && follow(data)) return;
    if (type === "error" || type === "end") say(data.message);
  });
}

window.addEventListener("hashchange", () => location.reload());
try {
  show(new URLSearchParams(location.hash.slice(1)));
} catch (error) {
  say(error.message);
}
