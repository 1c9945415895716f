"use strict";
const root = document.documentElement;
const byId = (id) => document.getElementById(id);
const parsed = (id) => byId(id) && JSON.parse(byId(id).textContent);

// What the reader chose survives the reloads of a run in progress, where the browser lets it.
const kept = {
  get(key) { try { return sessionStorage.getItem(key); } catch { return null; } },
  set(key, value) { try { sessionStorage.setItem(key, value); } catch { /* not kept */ } },
};

function setUpTheme() {
  const button = byId("theme");
  const system = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : system.matches);
  const show = () => {
    button.textContent = isDark() ? "Light theme" : "Dark theme";
  };
  if (kept.get("theme")) root.dataset.theme = kept.get("theme");
  button.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    kept.set("theme", root.dataset.theme);
    show();
  });
  system.addEventListener("change", show);
  button.hidden = false;
  show();
}

function setUpElements(data) {
  const slider = byId("step");
  const last = data.steps.length - 1;
  const tables = [...document.querySelectorAll("table.elements")];
  const level = (ratio) => {
    const logarithm = Math.log2(Math.max(ratio, 2 ** -10));
    const position = Math.min(1, Math.max(-1, logarithm / (logarithm < 0 ? data.below : data.above)));
    return Math.round(((position + 1) / 2) * (data.levels - 1));
  };
  const show = () => {
    const at = Number(slider.value);
    byId("step-now").textContent = data.steps[at];
    const rewards = data.rewards[at];
    const winner = data.winners[at];
    const outcome = winner === null
      ? "The trajectories were not scored."
      : `Trajectory ${winner} won with ${(100 * rewards[winner]).toFixed(2)} %, ` +
        `the lowest had ${(100 * Math.min(...rewards)).toFixed(2)} %.`;
    byId("step-says").textContent = `${outcome} Entropy ${data.entropies[at].toFixed(4)} nats.`;
    slider.setAttribute("aria-valuetext", `outer step ${data.steps[at]}`);
    for (const table of tables) {
      const ratios = data.ratios[at][Number(table.dataset.position)];
      const swatches = table.querySelectorAll(".swatch");
      table.querySelectorAll(".now").forEach((cell, element) => {
        cell.textContent = ratios[element].toFixed(2);
        swatches[element].style.background = `var(--h${level(ratios[element])})`;
      });
      const cursor = table.querySelector(".cursor");
      cursor.style.left = `${(100 * at) / data.steps.length}%`;
      cursor.style.width = `${100 / data.steps.length}%`;
    }
    kept.set("step", at === last ? "" : at);
  };
  slider.addEventListener("input", show);
  for (const table of tables) {
    const strip = table.querySelector(".strip div");
    const follow = (event) => {
      if (event.type === "pointermove" && !event.buttons) return;
      const box = strip.getBoundingClientRect();
      const at = Math.floor(((event.clientX - box.left) / box.width) * data.steps.length);
      slider.value = Math.min(last, Math.max(0, at));
      show();
    };
    strip.addEventListener("pointerdown", follow);
    strip.addEventListener("pointermove", follow);
  }
  if (kept.get("step")) slider.value = Math.min(last, Number(kept.get("step")));
  show();
}

/** As `multiple` in ohl_accel/policy/evidence.py: never 0.00 for what is more than 0. */
function multiple(ratio) {
  if (ratio >= 0.1 && ratio < 10) return ratio.toFixed(2);
  return ratio < 99.5 ? String(Number(ratio.toPrecision(2))) : Math.round(ratio).toLocaleString("en");
}

function setUpMatrix(data) {
  const map = byId("matrix-map"), cell = byId("matrix-cell"), tip = byId("matrix-says");
  const cells = map.querySelector(".cells");
  const picks = [byId("matrix-first"), byId("matrix-second")], picked = byId("matrix-picked");
  const view = tip.parentElement;
  const side = data.names.length;
  let row = 0, column = 0;
  const noise = (ratio) => {
    if (!data.noise) return "";
    const side = ratio > data.band[1] ? 2 : ratio < data.band[0] ? 0 : 1;
    return `, ${data.noise[side]}`;
  };
  const words = () => {
    const percent = data.percent[side * row + column];
    if (percent === null) return "not in this space";
    const ratio = (percent / 100) * data.operations;
    return `${percent.toPrecision(4)} %, ${multiple(ratio)} × uniform${noise(ratio)}`;
  };
  const mark = () => {
    [picks[0].selectedIndex, picks[1].selectedIndex] = [row, column];
    picked.textContent = words();
    cell.setAttribute("x", column);
    cell.setAttribute("y", row);
    cell.setAttribute("visibility", "visible");
  };
  const show = () => {
    mark();
    tip.textContent = `${data.names[row]}, then ${data.names[column]}: ${words()}`;
    tip.hidden = false;
    tip.style.maxWidth = `${view.clientWidth}px`;
    const spot = cell.getBoundingClientRect();
    const around = view.getBoundingClientRect();
    const left = spot.left - around.left + spot.width / 2 - tip.offsetWidth / 2;
    tip.style.left = `${Math.max(0, Math.min(view.clientWidth - tip.offsetWidth, left))}px`;
    const above = spot.top - around.top - tip.offsetHeight - 6;
    tip.style.top = `${above >= 0 ? above : spot.bottom - around.top + 6}px`;
  };
  const hide = () => { tip.hidden = true; };
  const point = (event) => {
    const box = cells.getBoundingClientRect();
    const x = Math.floor(((event.clientX - box.left) / box.width) * side);
    const y = Math.floor(((event.clientY - box.top) / box.height) * side);
    if (x < 0 || y < 0 || x >= side || y >= side) return hide();
    [row, column] = [y, x];
    show();
  };
  for (const pick of picks) {
    pick.addEventListener("change", () => {
      [row, column] = picks.map((each) => each.selectedIndex);
      hide();
      mark();
    });
  }
  map.addEventListener("pointermove", point);
  map.addEventListener("pointerdown", point);
  map.addEventListener("pointerleave", (event) => { if (event.pointerType === "mouse") hide(); });
  map.addEventListener("blur", hide);
  map.addEventListener("keydown", (event) => {
    const move = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    if (!move) return;
    event.preventDefault();
    if (!tip.hidden) {
      row = Math.min(side - 1, Math.max(0, row + move[0]));
      column = Math.min(side - 1, Math.max(0, column + move[1]));
    }
    show();
  });
  mark();
}

setUpTheme();
if (byId("elements-data")) setUpElements(parsed("elements-data"));
if (byId("matrix-data")) setUpMatrix(parsed("matrix-data"));
addEventListener("beforeprint", () => {
  for (const details of document.querySelectorAll("details:not(.screen)")) details.open = true;
});
