/** Sessions that go on on another server. */

/**
 * Where a page at `here` goes on when it was told `error`: the same place on the page of the server that the session is on
 * now. Null if the error says of none.
 */
export function pageAfter(error, here) {
  if (!error.page) return null;
  const { pathname, hash } = new URL(here);
  const base = error.page.endsWith("/") ? error.page : `${error.page}/`;
  return new URL(`${pathname.slice(pathname.lastIndexOf("/") + 1)}${hash}`, base).href;
}

/** Go there. False if the error says of no page. */
export function follow(error) {
  const page = pageAfter(error, location.href);
  if (page) location.assign(page);
  return page !== null;
}
