/** Where a WebSocket of a server is, and what goes with it. */

/** The address of the socket of a server, with a query, of which empty fields are left out. */
export function socketUrl(address, query) {
  const url = new URL(address, globalThis.location?.href);
  url.protocol = url.protocol.replace("http", "ws");
  if (!url.pathname.endsWith("/ws")) url.pathname = `${url.pathname.replace(/\/$/, "")}/ws`;
  for (const [name, value] of Object.entries(query)) {
    if (value !== undefined && value !== null && value !== "") url.searchParams.set(name, value);
  }
  url.hash = "";
  return url;
}

/** The subprotocols: browsers send no headers with a socket, so that a token is one of them. */
export function subprotocols(token) {
  if (!token) return ["longtake.v1"];
  const bytes = String.fromCharCode(...new TextEncoder().encode(token));
  const text = btoa(bytes).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
  return ["longtake.v1", `longtake.token.${text}`];
}
