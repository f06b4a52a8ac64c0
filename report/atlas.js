"use strict";
// Builds the atlas in #atlas out of the JSON in #atlas-data. Text enters as text alone.

const atlas = JSON.parse(document.getElementById("atlas-data").textContent);
const page = document.getElementById("atlas");
const cells = []; // of all maps
let framing = null; // the row of ratios whose heads are framed

function add(parent, tag, attributes = {}, text = "") {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.textContent = text;
  return parent.appendChild(element);
}

// Say what is known of a head, and mark it in all maps and ratios.
function show(model, name) {
  said.replaceChildren();
  add(said, "h2", {}, `${name} of ${model.name}`);
  const list = add(said, "dl");
  for (const [what, text] of model.heads[name] || [["", "nothing is known of it"]]) {
    add(list, "dt", {}, what);
    add(list, "dd", {}, text);
  }
  for (const cell of cells) {
    cell.element.classList.toggle("here", cell.model === model && cell.name === name);
  }
  for (const row of rows) {
    row.element.classList.toggle("marked", row.model === model.name && row.heads.includes(name));
  }
}

function draw(parent, model, map) {
  const [first, last] = map.candidates;
  const inside = map.values.slice(first, last + 1).flat();
  const numbers = inside.filter((value) => value !== null);
  const [low, high] = [Math.min(0, ...numbers), Math.max(...numbers)];
  const figure = add(parent, "figure");
  add(figure, "figcaption", {}, map.title);
  const table = add(figure, "table", { role: "grid", "aria-label": `${map.title}: ${map.what}` });
  const grid = map.values.map(() => []);
  let focused = null; // the cell that Tab reaches
  for (let layer = map.values.length - 1; layer >= 0; layer--) {
    const line = add(table, "tr");
    add(line, "th", { scope: "row" }, layer % 5 ? "" : layer);
    map.values[layer].forEach((value, head) => {
      const name = `L${layer}.H${head}`;
      const label = value === null ? "no value" : `${value}, rank ${map.ranks[layer][head]}`;
      const element = add(line, "td", { tabindex: -1, "aria-label": `${name}: ${label}` });
      element.classList.toggle("chosen", map.framed.includes(name));
      element.classList.toggle("outside", layer < first || layer > last);
      const place = Math.min(1, Math.max(0, (value - low) / (high - low || 1)));
      const colour = atlas.colours[Math.floor(place * (atlas.colours.length - 1))];
      if (value !== null) element.style.backgroundColor = colour;
      element.addEventListener("mouseenter", () => show(model, name));
      element.addEventListener("focus", () => {
        focused.tabIndex = -1;
        focused = element;
        focused.tabIndex = 0;
        show(model, name);
      });
      grid[layer][head] = element;
      cells.push({ model, name, element });
    });
  }
  focused = grid[grid.length - 1][0];
  focused.tabIndex = 0;
  table.addEventListener("keydown", (event) => {
    const steps = { ArrowUp: [1, 0], ArrowDown: [-1, 0], ArrowRight: [0, 1], ArrowLeft: [0, -1] };
    const layer = grid.findIndex((line) => line.includes(focused));
    const head = grid[layer].indexOf(focused);
    let goal = null;
    if (event.key in steps) {
      goal = grid[layer + steps[event.key][0]]?.[head + steps[event.key][1]];
    } else if (event.key === "Home") goal = grid[layer][0];
    else if (event.key === "End") goal = grid[layer].at(-1);
    else return;
    event.preventDefault();
    goal?.focus();
  });
  const scale = add(figure, "div", { class: "scale" });
  add(scale, "span", {}, Number(low.toPrecision(2)));
  add(scale, "i").style.background = `linear-gradient(to right, ${atlas.colours.join()})`;
  add(scale, "span", {}, Number(high.toPrecision(2)));
  add(figure, "small", {}, map.what);
}

// Frame the heads that a row of ratios scaled; the same row again takes the frames away.
function frame(row) {
  framing = framing === row ? null : row;
  for (const own of rows) own.button.setAttribute("aria-pressed", own === framing);
  for (const { model, name, element } of cells) {
    const scaled = framing && framing.model === model.name && framing.heads.includes(name);
    element.classList.toggle("scaled", Boolean(scaled));
  }
}

// Dim the heads but for those whose name or texts have what is looked for; Enter goes to the first.
function find(text) {
  const wanted = text.trim().toLowerCase();
  const holds = ({ model, name }) =>
    name.toLowerCase() === wanted ||
    (model.heads[name] || []).some((own) => own[1].toLowerCase().includes(wanted));
  const found = wanted ? cells.filter(holds) : [];
  const lit = new Set(found);
  for (const cell of cells) cell.element.classList.toggle("dim", Boolean(wanted) && !lit.has(cell));
  const names = new Set(found.map((cell) => `${cell.model.name} ${cell.name}`));
  counted.textContent = wanted ? `${names.size} found` : "";
  return found;
}

const search = add(page, "p", { class: "search" });
add(search, "label", { for: "find" }, "Find a token or a head, such as L1.H2: ");
const field = add(search, "input", { id: "find", type: "search", autocomplete: "off" });
const counted = add(search, "output", { for: "find" });
field.addEventListener("input", () => find(field.value));
field.addEventListener("keydown", (event) => {
  if (event.key === "Enter") find(field.value)[0]?.element.focus();
});

const both = add(page, "div", { class: "both" });
const maps = add(both, "div");
const said = add(both, "div", { id: "said", "aria-live": "polite", role: "region" });
said.setAttribute("aria-label", "the head");
add(said, "p", {}, "Point at a head, or go to one with the keyboard.");
for (const model of atlas.models) {
  add(maps, "h2", {}, model.name);
  const line = add(maps, "div", { class: "maps" });
  for (const map of model.maps) draw(line, model, map);
}

add(page, "h2", {}, "Ratios of the heads scaled");
const table = add(add(page, "div", { class: "scroll" }), "table");
const head = add(add(table, "thead"), "tr");
for (const column of [...atlas.columns, ""]) add(head, "th", {}, column);
const body = add(table, "tbody");
const rows = atlas.ratios.map((row) => {
  const element = add(body, "tr");
  for (const cell of row.cells) add(element, "td", {}, cell);
  const button = add(add(element, "td"), "button", { "aria-pressed": "false" }, "frame its heads");
  const own = { ...row, element, button };
  button.addEventListener("click", () => frame(own));
  return own;
});
