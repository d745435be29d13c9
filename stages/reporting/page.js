"use strict";
(() => {
  const byId = (id) => document.getElementById(id);
  const data = JSON.parse(byId("page-data").textContent);
  const wall = byId("wall");
  const shots = [...wall.children];
  const cards = new Map([...document.querySelectorAll(".card")].map((card) => [card.dataset.key, card.dataset]));

  // The wall: filter and order.
  const orders = {
    place: (one, other) => one.dataset.place - other.dataset.place,
    best: (one, other) => score(other, -1) - score(one, -1),
    worst: (one, other) => score(one, 2e9) - score(other, 2e9),
  };
  function score(shot, without) {
    return "score" in shot.dataset ? Number(shot.dataset.score) : without;
  }
  function arrange() {
    const wanted = byId("filter").value;
    shots.sort(orders[byId("order").value]);
    for (const shot of shots) shot.hidden = wanted !== "" && !shot.dataset.shows.split(" ").includes(wanted);
    wall.append(...shots);
    const visible = shots.filter((shot) => !shot.hidden);
    byId("count").textContent = `${visible.length} of ${shots.length} images`;
  }
  byId("filter").addEventListener("change", arrange);
  byId("order").addEventListener("change", arrange);
  byId("controls").addEventListener("submit", (event) => event.preventDefault());
  for (const button of document.querySelectorAll("[data-filter]")) {
    button.addEventListener("click", () => {
      byId("filter").value = button.dataset.filter;
      arrange();
      byId("images-heading").scrollIntoView();
      byId("filter").focus({ preventScroll: true });
    });
  }
  arrange();

  // The viewer: its legend has the clusters that the image shows.
  makeViewer((shot) => {
    const legend = document.createElement("ul");
    legend.className = "legend";
    const shown = shot.dataset.shows.split(" ").filter((key) => cards.has(key)).map((key) => {
      const entry = document.createElement("li"), swatch = document.createElement("span");
      swatch.className = "swatch";
      swatch.style.background = cards.get(key).color;
      entry.append(swatch, cards.get(key).name);
      return entry;
    });
    legend.append(...shown);
    return [legend];
  });

  // names.yaml, in the format of stages/reporting/names.py.
  const quoted = (text) => `"${text.replaceAll("\\", "\\\\").replaceAll('"', '\\"')}"`;
  function namesText() {
    const done = new Set();
    const lines = [...document.querySelectorAll("input[data-cluster]")]
      .map((field) => [Number(field.dataset.cluster), field.value.trim()])
      .filter(([, name]) => name !== "")
      .sort((one, other) => one[0] - other[0])
      .map(([cluster, name]) => {
        const isFirst = Object.hasOwn(data.colors, name) && !done.has(name);
        done.add(name);
        return `  ${cluster}: ${isFirst ? `{name: ${quoted(name)}, color: "${data.colors[name]}"}` : quoted(name)}\n`;
      });
    return lines.length ? data.empty.replace(/names: \{\}\n$/, "names:\n") + lines.join("") : data.empty;
  }
  byId("make-names").addEventListener("click", () => {
    const text = namesText();
    byId("names-text").value = text;
    byId("save-names").href = `data:text/yaml;charset=utf-8,${encodeURIComponent(text)}`;
    byId("names-result").hidden = false;
    byId("names-text").focus();
  });
  byId("copy-names").addEventListener("click", async () => {
    const field = byId("names-text");
    try {
      await navigator.clipboard.writeText(field.value);
      byId("names-status").textContent = "Copied.";
    } catch {
      field.focus();
      field.select();
      byId("names-status").textContent = "The browser does not allow copying; the text is selected, press Ctrl+C.";
    }
  });
})();
