/** Small things that every part of the page needs. */

/** The element with an id. */
export const byId = (id) => document.getElementById(id);

/** A new element: `element("li", { className: "cue" }, "text", child)`. */
export function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

/** A frame as people read it: `frame 33, 2.1 s`. */
export function atFrame(frame) {
  return `frame ${frame}, ${(frame / 16).toFixed(1)} s`;
}

/** Put `text` into the clipboard, which browsers allow by one way on https and by another over plain http. */
export async function copy(text) {
  if (navigator.clipboard && window.isSecureContext) {
    await navigator.clipboard.writeText(text);
    return;
  }
  const area = element("textarea", { value: text });
  document.body.append(area);
  area.select();
  document.execCommand("copy");
  area.remove();
}

/** `1 block`, `2 blocks`. */
export function count(number, noun) {
  return `${number} ${noun}${number === 1 ? "" : "s"}`;
}

/** Fields that say something. */
export function present(fields) {
  return Object.fromEntries(Object.entries(fields).filter(([, value]) => value !== "" && value !== null));
}
