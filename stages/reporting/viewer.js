"use strict";
document.documentElement.classList.add("js");

// The viewer: all pictures of one image, enlarged; keys and buttons go to the next image on the wall.
// `legendOf` gives the elements that explain the colors of an image.
function makeViewer(legendOf) {
  const byId = (id) => document.getElementById(id);
  const wall = byId("wall");
  const viewer = byId("viewer");
  let current = null;
  function show(shot) {
    current = shot;
    const parts = [...shot.querySelectorAll("h3, .score")].map((part) => part.textContent);
    byId("viewer-name").textContent = parts.join(" · ");
    const tiles = [...shot.querySelector(".tiles").children].map((tile) => tile.cloneNode(true));
    byId("viewer-tiles").replaceChildren(...tiles);
    byId("viewer-text").textContent = [...shot.querySelectorAll("img.labels[alt]:not([alt=''])")]
      .map((image) => image.alt).join(". ");
    byId("viewer-legend").replaceChildren(...legendOf(shot));
    if (!viewer.open) viewer.showModal();
  }
  function step(by) {
    const row = [...wall.children].filter((shot) => !shot.hidden);
    show(row[(row.indexOf(current) + by + row.length) % row.length]);
  }
  wall.addEventListener("click", (event) => {
    if (event.target.closest(".tiles, .enlarge")) show(event.target.closest(".shot"));
  });
  viewer.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (event.target === viewer || (button && "close" in button.dataset)) viewer.close();
    else if (button) step(Number(button.dataset.step));
  });
  viewer.addEventListener("keydown", (event) => {
    if (event.key === "ArrowRight") step(1);
    if (event.key === "ArrowLeft") step(-1);
  });
  viewer.addEventListener("close", () => current.querySelector(".enlarge").focus());
}
