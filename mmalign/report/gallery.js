
"use strict";
const rows = [...document.querySelectorAll("article")];
const buttons = [...document.querySelectorAll("button[data-reason]")];
const search = document.getElementById("search");
const count = document.getElementById("count");
let reason = "";
function update() {
  const wanted = search.value.toLowerCase();
  let visible = 0;
  for (const row of rows) {
    const fits = (!reason || row.dataset.reason === reason) &&
      (!wanted || row.textContent.toLowerCase().includes(wanted));
    row.hidden = !fits;
    visible += fits;
  }
  count.textContent = visible === rows.length ? "" : visible + " of " + rows.length + " rows";
  for (const button of buttons) {
    button.setAttribute("aria-pressed", String(button.dataset.reason === reason));
  }
}
for (const button of buttons) {
  button.addEventListener("click", () => {
    reason = reason === button.dataset.reason ? "" : button.dataset.reason;
    update();
  });
}
search.addEventListener("input", update);
for (const box of document.querySelectorAll("input[data-class]")) {
  box.addEventListener("change", () => document.body.classList.toggle(box.dataset.class, !box.checked));
}
document.addEventListener("keydown", (event) => {
  if (event.target === search || event.ctrlKey || event.metaKey || event.altKey) return;
  const step = { j: 1, k: -1 }[event.key];
  if (!step) return;
  const seen = rows.filter((row) => !row.hidden);
  const line = document.querySelector(".bar").offsetHeight + 20;
  const tops = seen.map((row) => Math.round(row.getBoundingClientRect().top - line));
  const at = step > 0 ? tops.findIndex((top) => top > 1) : tops.findLastIndex((top) => top < -1);
  if (at >= 0) window.scrollBy({ top: tops[at] });
});
for (const tool of document.querySelectorAll(".tools")) tool.hidden = false;
