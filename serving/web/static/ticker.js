/** A worker that ticks every so many milliseconds: the timers of a page that is not seen hardly run. */

onmessage = ({ data: every }) => setInterval(() => postMessage(null), every);
