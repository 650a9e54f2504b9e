"use strict";
for (const pair of document.querySelectorAll(".pair")) {
  // Both pictures must be there to be laid over each other.
  if (pair.querySelectorAll("img").length !== 2) continue;
  const slider = pair.querySelector("input");
  const move = () => pair.style.setProperty("--at", slider.value + "%");
  slider.addEventListener("input", move);
  pair.classList.add("wipe");
  move();
}
for (const sweep of document.querySelectorAll("[data-sweep]")) {
  const section = sweep.closest("section");
  sweep.addEventListener("input", () => {
    for (const slider of section.querySelectorAll(".pair.wipe input")) {
      slider.value = sweep.value;
      slider.dispatchEvent(new Event("input"));
    }
  });
  sweep.closest("label").hidden = false;
}
