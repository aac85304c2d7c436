/** The space bar presses a button, where nothing else on the page takes it. */

const TAKES_KEYS = "input, textarea, select, button, summary, a, dialog";

export function pressBySpaceBar(button) {
  document.addEventListener("keydown", (event) => {
    if (event.key !== " " || event.repeat || event.target.closest?.(TAKES_KEYS)) return;
    event.preventDefault();
    button.click();
  });
}
