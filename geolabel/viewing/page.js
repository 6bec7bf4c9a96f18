"use strict";
// The page of a review: outlines on pictures of a scene, and what a person decides about them.
// Texts of the file are put in with textContent alone, so that none of them is ever read as markup.

const data = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
const UNREVIEWED = "unreviewed", ACCEPTED = "accepted", REJECTED = "rejected";
const count = data.layers.length;
const column = Object.fromEntries(data.columns.map((one, k) => [one.name, data.values[k]]));

// --- what is decided -------------------------------------------------------------------------------------------------

const given = { status: data.status, notes: data.notes };
const status = [...given.status], notes = [...given.notes];
const history = [];
let selected = -1, unsaved = false;

function change(changes, said) {
  history.push(changes.map(({ k }) => ({ k, status: status[k], notes: notes[k] })));
  apply(changes, said);
}

function apply(changes, said) {
  for (const one of changes) {
    status[one.k] = one.status;
    notes[one.k] = one.notes;
    fillRow(one.k);
  }
  unsaved = true;
  keepDraft();
  refresh();
  announce(said);
}

function undo() {
  takeNotes();
  const changes = history.pop();
  if (!changes) return;
  apply(changes, "Taken back");
  select(changes[0].k);
}

function decide(state) {
  if (selected < 0) return;
  takeNotes();
  const k = selected;
  change([{ k, status: state, notes: notes[k] }], `${nameOf(k)} ${state}`);
  if (state !== UNREVIEWED) step(1, (other) => status[other] === UNREVIEWED);
}

function restart() {
  takeNotes();
  const changed = everything.filter((k) => status[k] !== given.status[k] || notes[k] !== given.notes[k]);
  if (!changed.length) return;
  change(changed.map((k) => ({ k, status: given.status[k], notes: given.notes[k] })), "All decisions taken back");
}

function takeNotes() {
  const text = $("notes").value.trim() || null;
  if (selected >= 0 && text !== notes[selected]) {
    change([{ k: selected, status: status[selected], notes: text }], "Notes kept");
  }
}

// A draft outlives the tab where the browser lets a page keep one; else it warns when the page is left.
const draftName = `geolabel ${data.digest}`;

function keepDraft() {
  const changed = everything.filter((k) => status[k] !== given.status[k] || notes[k] !== given.notes[k]);
  try {
    if (changed.length) localStorage.setItem(draftName, JSON.stringify(changed.map((k) => [k, status[k], notes[k]])));
    else localStorage.removeItem(draftName);
  } catch { /* no storage here */ }
}

function readDraft() {
  try {
    const draft = JSON.parse(localStorage.getItem(draftName) ?? "[]");
    return draft.filter(([k, state]) => k in status && [UNREVIEWED, ACCEPTED, REJECTED].includes(state));
  } catch {
    return [];
  }
}

// --- outlines --------------------------------------------------------------------------------------------------------

const [rings, parts, wholes] = data.offsets;
const [a, b, c, d, e, f] = data.inverse;
const everything = data.layers.map((_, k) => k);
const boxes = [], fine = [], coarse = [];
let xy = new Float64Array(0);

// As page.py packs them: bytes by their rank, each vertex as its difference in bits from the one before.
async function unpack(text) {
  const packed = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  const ranks = new Uint8Array(await new Response(stream).arrayBuffer());
  const numbers = ranks.length / 8, bytes = new Uint8Array(ranks.length), words = new Uint32Array(bytes.buffer);
  for (let rank = 0; rank < 8; rank++) {
    for (let n = 0; n < numbers; n++) bytes[8 * n + rank] = ranks[rank * numbers + n];
  }
  for (let n = 4; n < words.length; n++) words[n] ^= words[n - 4];
  return new Float64Array(bytes.buffer);
}

function measureBoxes() {
  for (const k of everything) {
    const box = [Infinity, Infinity, -Infinity, -Infinity];
    const last = rings[parts[wholes[k + 1]]];
    for (let at = rings[parts[wholes[k]]]; at < last; at++) {
      const x = xy[2 * at], y = xy[2 * at + 1];
      const col = a * x + b * y + c, row = d * x + e * y + f;
      if (col < box[0]) box[0] = col;
      if (row < box[1]) box[1] = row;
      if (col > box[2]) box[2] = col;
      if (row > box[3]) box[3] = row;
    }
    boxes.push(box);
  }
}

// The outline of a polygon in pixels of the picture; without vertices that are nearer to the one before than `step`.
function pathOf(k, step) {
  const path = new Path2D();
  for (let ring = parts[wholes[k]]; ring < parts[wholes[k + 1]]; ring++) {
    let lastCol = Infinity, lastRow = Infinity;
    for (let at = rings[ring]; at < rings[ring + 1]; at++) {
      const x = xy[2 * at], y = xy[2 * at + 1];
      const col = a * x + b * y + c, row = d * x + e * y + f;
      if (at === rings[ring]) path.moveTo(col, row);
      else if (Math.abs(col - lastCol) + Math.abs(row - lastRow) < step) continue;
      else path.lineTo(col, row);
      lastCol = col;
      lastRow = row;
    }
    path.closePath();
  }
  return path;
}

const finePath = (k) => (fine[k] ??= pathOf(k, 0));
const coarsePath = (k) => (coarse[k] ??= pathOf(k, 1.5 / wholeScale()));

const GREEN = "#00e0a4", GREY = "#b0b0b0", WHITE = "#ffffff";

function gradeOf(k) {
  const value = column.confidence?.[k];
  if (value === null || value === undefined) return -1;
  let grade = 0;
  while (grade < data.colours.length - 1 && value >= data.limits[grade + 1]) grade++;
  return grade;
}

function styleOf(k) {
  if (status[k] === ACCEPTED) return "accepted";
  if (status[k] === REJECTED) return "rejected";
  return `${data.layers[k] === "candidates" ? "dashed" : "solid"} ${gradeOf(k)}`;
}

function lineOf(style) {
  if (style === "accepted") return { colour: GREEN, width: 3, dash: [] };
  if (style === "rejected") return { colour: GREY, width: 1.5, dash: [2, 3] };
  const [kind, grade] = style.split(" ");
  return { colour: grade < 0 ? WHITE : data.colours[grade], width: 2, dash: kind === "dashed" ? [6, 4] : [] };
}

let groups = new Map(), shown = [];

function group() {
  const least = Number($("least").value), state = $("states").value;
  shown = everything.map((k) => {
    const value = column.confidence?.[k];
    return (value === null || value === undefined || value >= least) && (!state || status[k] === state);
  });
  groups = new Map();
  for (const k of everything) {
    if (!shown[k]) continue;
    const style = styleOf(k);
    if (!groups.has(style)) groups.set(style, []);
    groups.get(style).push(k);
  }
}

// --- the map ---------------------------------------------------------------------------------------------------------

const canvas = $("map"), pen = canvas.getContext("2d");
const after = $("after"), before = $("before");
const view = { x: data.width / 2, y: data.height / 2, scale: 1 };
let asked = false, beforeIsReady = false;

function draw() {
  if (asked) return;
  asked = true;
  requestAnimationFrame(paint);
}

function paint() {
  asked = false;
  const ratio = window.devicePixelRatio || 1, { width, height } = canvas.getBoundingClientRect();
  if (canvas.width !== Math.round(width * ratio)) canvas.width = Math.round(width * ratio);
  if (canvas.height !== Math.round(height * ratio)) canvas.height = Math.round(height * ratio);
  pen.setTransform(1, 0, 0, 1, 0, 0);
  pen.clearRect(0, 0, canvas.width, canvas.height);
  const scale = view.scale * ratio;
  pen.setTransform(scale, 0, 0, scale, canvas.width / 2 - view.x * scale, canvas.height / 2 - view.y * scale);
  pen.imageSmoothingEnabled = scale < 3;
  pen.drawImage(after, 0, 0, data.width, data.height);
  if (beforeIsReady) paintBefore(scale);
  if ($("outlines").checked) paintOutlines(scale / ratio);
  fillScale();
  if (!document.documentElement.dataset.firstPicture) {
    document.documentElement.dataset.firstPicture = Math.round(performance.now());
  }
}

function paintBefore(scale) {
  const left = view.x - canvas.width / 2 / scale;
  const cut = (Number($("swipe").value) / 100) * (canvas.width / scale);
  pen.save();
  pen.beginPath();
  pen.rect(left, view.y - canvas.height / 2 / scale, cut, canvas.height / scale);
  pen.clip();
  pen.clearRect(left, view.y - canvas.height / 2 / scale, cut, canvas.height / scale);
  pen.drawImage(before, 0, 0, data.width, data.height);
  pen.restore();
  pen.fillStyle = WHITE;
  pen.fillRect(left + cut - 1 / scale, view.y - canvas.height / 2 / scale, 2 / scale, canvas.height / scale);
}

function paintOutlines(scale) {
  const pathIn = scale < 2 * wholeScale() ? coarsePath : finePath;
  const halfWidth = canvas.clientWidth / 2 / scale, halfHeight = canvas.clientHeight / 2 / scale;
  const isSeen = (k) => boxes[k][0] < view.x + halfWidth && boxes[k][2] > view.x - halfWidth &&
    boxes[k][1] < view.y + halfHeight && boxes[k][3] > view.y - halfHeight;
  const seen = [...groups].map(([style, members]) => {
    const path = new Path2D();
    for (const k of members) if (isSeen(k)) path.addPath(pathIn(k));
    return [lineOf(style), path];
  });
  pen.lineJoin = "round";
  for (const casing of [true, false]) {
    for (const [{ colour, width, dash }, path] of seen) {
      pen.strokeStyle = casing ? "rgba(0, 0, 0, 0.55)" : colour;
      pen.lineWidth = (casing ? width + 1.6 : width) / scale;
      pen.setLineDash(casing ? [] : dash.map((length) => length / scale));
      if (!casing || !dash.length) pen.stroke(path);
    }
  }
  if (selected < 0) return;
  pen.setLineDash([]);
  for (const [colour, width] of [["#000000", 6], ["#00a2ff", 3.5]]) {
    pen.strokeStyle = colour;
    pen.lineWidth = width / scale;
    pen.stroke(finePath(selected));
  }
}

function fillScale() {
  const most = 160 * (data.metres / view.scale);
  const digits = 10 ** Math.floor(Math.log10(most));
  const length = [5, 2, 1].map((step) => step * digits).find((one) => one <= most);
  $("scale").style.width = `${(length / data.metres) * view.scale}px`;
  $("scale-text").textContent = length >= 1000 ? `${length / 1000} km` : length >= 1 ? `${length} m` : `${length * 100} cm`;
}

const wholeScale = () => Math.min(canvas.clientWidth / data.width, canvas.clientHeight / data.height) || 1;

function zoom(factor, x = view.x, y = view.y) {
  const scale = Math.min(Math.max(view.scale * factor, wholeScale() / 4), 40);
  view.x = x + (view.x - x) * (view.scale / scale);
  view.y = y + (view.y - y) * (view.scale / scale);
  view.scale = scale;
  draw();
}

function showWhole() {
  Object.assign(view, { x: data.width / 2, y: data.height / 2, scale: wholeScale() });
  draw();
}

function showClosely(k) {
  const [left, top, right, bottom] = boxes[k];
  const fits = Math.min(canvas.clientWidth / (right - left), canvas.clientHeight / (bottom - top)) / 3;
  Object.assign(view, { x: (left + right) / 2, y: (top + bottom) / 2 });
  view.scale = Math.min(Math.max(fits, wholeScale()), 8);
  draw();
}

function placeOf(event) {
  const box = canvas.getBoundingClientRect();
  return [
    view.x + (event.clientX - box.left - box.width / 2) / view.scale,
    view.y + (event.clientY - box.top - box.height / 2) / view.scale,
  ];
}

function polygonAt(x, y) {
  const plain = new OffscreenCanvas(1, 1).getContext("2d");
  const hits = everything.filter((k) => {
    const [left, top, right, bottom] = boxes[k];
    return shown[k] && x >= left && x <= right && y >= top && y <= bottom && plain.isPointInPath(finePath(k), x, y, "evenodd");
  });
  const size = (k) => (boxes[k][2] - boxes[k][0]) * (boxes[k][3] - boxes[k][1]);
  return hits.length ? hits.reduce((one, other) => (size(other) < size(one) ? other : one)) : -1;
}

let dragged = null;

canvas.addEventListener("pointerdown", (event) => {
  dragged = { x: event.clientX, y: event.clientY, far: false };
  canvas.setPointerCapture(event.pointerId);
});
canvas.addEventListener("pointermove", (event) => {
  if (!dragged) return;
  const x = event.clientX - dragged.x, y = event.clientY - dragged.y;
  if (!dragged.far && Math.hypot(x, y) < 4) return;
  view.x -= x / view.scale;
  view.y -= y / view.scale;
  dragged = { x: event.clientX, y: event.clientY, far: true };
  draw();
});
canvas.addEventListener("pointerup", (event) => {
  if (dragged && !dragged.far) select(polygonAt(...placeOf(event)));
  dragged = null;
});
canvas.addEventListener("wheel", (event) => {
  event.preventDefault();
  zoom(Math.exp(-event.deltaY / 400), ...placeOf(event));
}, { passive: false });
canvas.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const far = 60 / view.scale;
  const moves = { ArrowLeft: [-far, 0], ArrowRight: [far, 0], ArrowUp: [0, -far], ArrowDown: [0, far] };
  if (moves[event.key]) {
    view.x += moves[event.key][0];
    view.y += moves[event.key][1];
    draw();
  } else if (event.key === "+" || event.key === "=") zoom(1.5);
  else if (event.key === "-") zoom(1 / 1.5);
  else if (event.key === "0") showWhole();
  else if (event.key === "Enter") select(polygonAt(view.x, view.y));
  else return;
  event.preventDefault();
});

// --- the table -------------------------------------------------------------------------------------------------------

const shownColumns = data.table;
const rows = [];
let order = everything, sorting = { name: null, down: false };

const numberOf = (k) => column.id?.[k] ?? k + 1;

function nameOf(k) {
  const kind = data.layers[k] === "candidates" ? "candidate" : column.class?.[k] || "landslide";
  return `${kind[0].toUpperCase()}${kind.slice(1)} ${numberOf(k)}`;
}

function textOf(one, k) {
  const value = one.name === "status" ? status[k] : one.name === "notes" ? notes[k] : column[one.name][k];
  if (value === null || value === undefined) return "";
  return typeof value === "number" && one.decimals !== null ? value.toFixed(one.decimals) : String(value);
}

function makeTable() {
  for (const one of shownColumns) {
    const cell = document.createElement("th"), button = document.createElement("button");
    cell.scope = "col";
    cell.dataset.name = one.name;
    cell.classList.toggle("text", one.text);
    button.type = "button";
    button.textContent = one.title;
    button.title = one.meaning;
    button.addEventListener("click", () => sort(one.name));
    cell.append(button);
    $("heading").append(cell);
  }
  for (const k of everything) {
    const row = document.createElement("tr");
    row.dataset.k = k;
    shownColumns.forEach((one, number) => {
      const cell = document.createElement("td");
      cell.classList.toggle("text", one.text);
      cell.classList.toggle("state", one.name === "status");
      if (number === 0) {
        const button = document.createElement("button");
        button.type = "button";
        button.tabIndex = -1;
        button.textContent = numberOf(k);
        button.setAttribute("aria-label", nameOf(k));
        cell.append(button);
      } else cell.textContent = textOf(one, k);
      row.append(cell);
    });
    row.className = status[k];
    rows.push(row);
  }
  $("rows").append(...rows);
}

function fillRow(k) {
  shownColumns.forEach((one, number) => {
    if (one.name === "status" || one.name === "notes") rows[k].cells[number].textContent = textOf(one, k);
  });
  rows[k].className = status[k];
}

function sort(name) {
  sorting = { name, down: sorting.name === name ? !sorting.down : name !== "id" };
  const values = name === "status" ? status : name === "notes" ? notes : column[name];
  const sign = sorting.down ? -1 : 1;
  order = [...everything].sort((one, other) => {
    const x = values[one], y = values[other];
    if (x === y) return one - other;
    if (x === null) return 1;
    if (y === null) return -1;
    return sign * (x < y ? -1 : 1);
  });
  for (const cell of $("heading").cells) {
    if (cell.dataset.name === name) cell.setAttribute("aria-sort", sorting.down ? "descending" : "ascending");
    else cell.removeAttribute("aria-sort");
  }
  $("rows").append(...order.map((k) => rows[k]));
  if (selected >= 0) rows[selected].scrollIntoView({ block: "nearest" });
}

$("rows").addEventListener("click", (event) => {
  const row = event.target.closest("tr");
  if (!row) return;
  select(Number(row.dataset.k));
  showClosely(selected);
});
$("rows").addEventListener("keydown", (event) => {
  const step_ = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  if (!step_) return;
  event.preventDefault();
  step(step_);
});

// --- the polygon at hand ---------------------------------------------------------------------------------------------

function select(k) {
  takeNotes();
  const focused = $("rows").contains(document.activeElement);
  if (selected >= 0) {
    rows[selected].removeAttribute("aria-current");
    rows[selected].querySelector("button").tabIndex = -1;
  }
  selected = k;
  if (k >= 0) {
    rows[k].setAttribute("aria-current", "true");
    rows[k].querySelector("button").tabIndex = 0;
    rows[k].scrollIntoView({ block: "nearest" });
    if (focused) rows[k].querySelector("button").focus();
  } else if (everything.length) rows[order[0]].querySelector("button").tabIndex = 0;
  refresh();
  if (k >= 0) announce(`${nameOf(k)}, ${status[k]}`);
}

function step(by, wanted = () => true) {
  const visible = order.filter((k) => shown[k] || k === selected);
  const from = visible.indexOf(selected);
  for (let n = 1; n <= visible.length; n++) {
    const index = from < 0 && by < 0 ? visible.length - n : from + n * by;
    const k = visible[((index % visible.length) + visible.length) % visible.length];
    if (k !== selected && shown[k] && wanted(k)) {
      select(k);
      showClosely(k);
      return;
    }
  }
}

function refresh() {
  group();
  for (const k of everything) rows[k].hidden = !shown[k];
  const tally = { [UNREVIEWED]: 0, [ACCEPTED]: 0, [REJECTED]: 0 };
  for (const state of status) tally[state] = (tally[state] ?? 0) + 1;
  const visible = shown.filter(Boolean).length;
  $("progress").textContent =
    `${count} polygons, ${visible} shown: ${tally[ACCEPTED]} accepted, ${tally[REJECTED]} rejected, ` +
    `${tally[UNREVIEWED]} unreviewed`;
  $("undo").disabled = !history.length;
  $("restart").disabled = !everything.some((k) => status[k] !== given.status[k] || notes[k] !== given.notes[k]);
  $("name").textContent = selected < 0 ? "Nothing is selected" : `${nameOf(selected)}: ${status[selected]}`;
  for (const id of ["accept", "reject", "reset", "notes"]) $(id).disabled = selected < 0;
  $("accept").setAttribute("aria-pressed", selected >= 0 && status[selected] === ACCEPTED);
  $("reject").setAttribute("aria-pressed", selected >= 0 && status[selected] === REJECTED);
  $("notes").value = selected < 0 ? "" : notes[selected] ?? "";
  fillAttributes();
  draw();
}

function fillAttributes() {
  $("attributes").replaceChildren();
  if (selected < 0) return;
  for (const one of data.columns) {
    const term = document.createElement("dt"), value = document.createElement("dd");
    term.textContent = one.title;
    term.title = one.meaning;
    value.textContent = textOf(one, selected);
    if (value.textContent) $("attributes").append(term, value);
  }
}

function announce(text) {
  $("announce").textContent = text;
}

// --- the reviewed file -----------------------------------------------------------------------------------------------

function geometryOf(k) {
  const polygons = [];
  for (let part = wholes[k]; part < wholes[k + 1]; part++) {
    const polygon = [];
    for (let ring = parts[part]; ring < parts[part + 1]; ring++) {
      const line = [];
      for (let at = rings[ring]; at < rings[ring + 1]; at++) line.push([xy[2 * at], xy[2 * at + 1]]);
      polygon.push(line);
    }
    polygons.push(polygon);
  }
  return { type: "MultiPolygon", coordinates: polygons };
}

function reviewedFile() {
  const features = everything.map((k) => {
    const values = data.columns.map((one) => [one.name, column[one.name][k]]);
    // entries, since no name of a column, such as __proto__, means anything here
    const properties = Object.fromEntries([
      ["layer", data.layers[k]], ...values, ["status", status[k]], ["notes", notes[k]],
    ]);
    return JSON.stringify({ type: "Feature", properties, geometry: geometryOf(k) });
  });
  const head = { type: "FeatureCollection", name: data.name };
  if (data.crs) head.crs = { type: "name", properties: { name: data.crs } };
  return `${JSON.stringify(head).slice(0, -1)},"features":[\n${features.join(",\n")}\n]}\n`;
}

function download() {
  takeNotes();
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([reviewedFile()], { type: "application/geo+json" }));
  link.download = data.download;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
  unsaved = false;
  announce(`${data.download} is written`);
}

// --- buttons and keys ------------------------------------------------------------------------------------------------

const buttons = {
  undo, restart, download,
  accept: () => decide(ACCEPTED),
  reject: () => decide(REJECTED),
  reset: () => decide(UNREVIEWED),
  next: () => step(1),
  previous: () => step(-1),
  in: () => zoom(1.5),
  out: () => zoom(1 / 1.5),
  whole: showWhole,
};
for (const [id, act] of Object.entries(buttons)) $(id).addEventListener("click", act);

const keys = {
  a: buttons.accept, r: buttons.reject, u: buttons.reset, z: undo, n: buttons.next, p: buttons.previous,
  f: () => selected >= 0 && showClosely(selected),
  h: () => { $("outlines").checked = !$("outlines").checked; draw(); },
};

document.addEventListener("keydown", (event) => {
  const writes = event.target.matches("textarea, select");
  if (event.key === "Escape" && writes) event.target.blur();
  if (writes || event.altKey || event.shiftKey) return;
  const key = event.key.toLowerCase();
  const control = event.ctrlKey || event.metaKey;
  if (control ? key !== "z" : !$("keys").checked || !keys[key]) return;
  event.preventDefault();
  keys[key]();
});

$("notes").addEventListener("change", takeNotes);
$("least").addEventListener("input", () => {
  $("least-value").textContent = Number($("least").value).toFixed(2);
  refresh();
});
$("states").addEventListener("change", refresh);
$("outlines").addEventListener("change", draw);
$("swipe").addEventListener("input", draw);
window.addEventListener("beforeunload", (event) => {
  if (unsaved) event.preventDefault();
});

function makeLegend() {
  const used = new Set(everything.map(gradeOf));
  const entries = data.colours.map((_, grade) => [
    used.has(grade), `solid ${grade}`, `${data.limits[grade]} to ${data.limits[grade + 1]}`,
  ]);
  entries.push(
    [used.has(-1), "solid -1", "confidence unknown"],
    [data.layers.includes("candidates"), `dashed ${Math.min(...used)}`, "candidate"],
    [true, "accepted", "accepted"], [true, "rejected", "rejected"],
  );
  if (used.size > 1 || !used.has(-1)) {
    const title = document.createElement("li");
    title.textContent = "Confidence";
    $("legend").append(title);
  }
  for (const [needed, style, text] of entries) {
    if (!needed) continue;
    const item = document.createElement("li"), { colour, width, dash } = lineOf(style);
    const drawing = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    const line = document.createElementNS("http://www.w3.org/2000/svg", "line");
    const values = { x1: 2, y1: 7, x2: 26, y2: 7, stroke: colour, "stroke-width": width + 1, "stroke-dasharray": dash.join(" ") };
    for (const [name, value] of Object.entries(values)) line.setAttribute(name, value);
    drawing.setAttribute("width", 28);
    drawing.setAttribute("height", 14);
    drawing.setAttribute("aria-hidden", "true");
    drawing.append(line);
    item.append(drawing, text);
    $("legend").append(item);
  }
}

// --- begin -----------------------------------------------------------------------------------------------------------

async function begin() {
  $("swiping").hidden = !before;
  makeLegend();
  [xy] = await Promise.all([unpack(data.coordinates), after.decode()]);
  measureBoxes();
  group();
  showWhole();
  // the picture comes before the table and the other picture; a hidden tab has no frame to wait for
  const framed = document.hidden ? (then) => then() : requestAnimationFrame;
  await new Promise((done) => framed(() => setTimeout(done)));
  before?.decode().then(() => {
    beforeIsReady = true;
    draw();
  });
  makeTable();
  if (column.confidence?.some((value) => value !== null)) sort("confidence");
  const draft = readDraft();
  if (draft.length) change(draft.map(([k, state, text]) => ({ k, status: state, notes: text })), "Your draft is restored");
  select(-1);
  new ResizeObserver(draw).observe(canvas);
  document.documentElement.dataset.ready = Math.round(performance.now());
}

begin();
