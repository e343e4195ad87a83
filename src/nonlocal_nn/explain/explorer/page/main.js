// The state of the page, what is drawn of it, and the functions that change it.

const page = JSON.parse(document.getElementById("page-data").textContent);
const clip = { ...page.frames, pictures: page.pictures };
clip.aspect = clamp(clip.width / clip.height, 0.2, 6); // as drawn
const blocks = page.blocks.map((description) => new Block(description));
const at = (id) => document.getElementById(id);
const stage = new Tile(at("stage"), clip);
const reducedMotion = matchMedia("(prefers-reduced-motion: reduce)");

const MODES = [["both", "Both"], ["arrows", "Arrows"], ["heat", "Heat"]];

/**
 * point is where the query was put, [frame, row, column] of the clip, and stays when the block changes;
 * position is the nearest position of the block's grid. frame is the picture on the stage.
 */
const state = { block: null, point: null, position: 0, row: null, keys: [], frame: 0, arrows: 20, mode: "both", tiles: [] };

// --- drawing ---

let drawing = 0;

/** Draw soon, once, however much changes before. */
function draw() {
  drawing ||= requestAnimationFrame(() => {
    drawing = 0;
    if (state.block?.arrays) drawNow();
  });
}

function drawNow() {
  const { block } = state;
  state.row = block.row(state.position);
  const highest = largest(state.row, 100, block.leadersOf(state.position));
  state.keys = highest.slice(0, state.arrows);
  const size = highest.length ? Math.abs(state.row[highest[0]]) : 0;
  for (const tile of [...state.tiles, stage]) tile.drawHeat(block, state.row, size);
  drawWallMarks(size);
  drawStageMarks(size);
  fillWeights(document.querySelector("#weights tbody"), block, state.row, state.keys);
  drawCharts(block, state.position);
  at("row-facts").textContent = factsText(block, state.row, highest);
  at("legend-low").textContent = block.signed ? weightText(block, -size) : "0";
  at("legend-high").textContent = weightText(block, size);
  drawLegend();
  at("stage").dataset.position = state.position;
  announceSoon();
}

function queryCentre() {
  const [, row, column] = state.block.queries.centre(state.position);
  return [Math.round(state.point[0]), row, column];
}

/** The size of one query position on a tile. */
function markSize(tile) {
  const box = tile.element.getBoundingClientRect();
  const [, stepRow, stepColumn] = state.block.queries.step;
  return [(stepColumn / clip.width) * box.width, (stepRow / clip.height) * box.height];
}

function openDrawing(svg) {
  const { width, height } = svg.parentElement.getBoundingClientRect();
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  svg.replaceChildren();
}

function drawWallMarks(size) {
  const svg = at("wall-marks"), wall = at("wall");
  openDrawing(svg);
  const queryTile = nearestTile(state.tiles, state.point[0]);
  const from = queryTile.place(queryCentre(), wall);
  const scale = clamp(queryTile.element.offsetWidth / 150, 0.6, 1.3);
  for (const key of state.keys.toReversed()) { // the largest on top
    const centre = state.block.keys.centre(key);
    const to = nearestTile(state.tiles, centre[0]).place(centre, wall);
    const mark = arrow(from, to, state.row[key] / size, scale);
    mark.dataset.key = key;
    svg.append(mark);
  }
  svg.append(queryMark(from, ...markSize(queryTile)));
  for (const tile of state.tiles) {
    tile.element.classList.toggle("has-query", tile === queryTile);
    tile.element.classList.toggle("current", tile.frame === state.frame);
  }
}

function drawStageMarks(size) {
  const svg = at("stage-marks"), { block } = state;
  openDrawing(svg);
  const from = stage.place(queryCentre(), stage.element);
  const isHere = block.queries.nearestIndex(0, state.frame) === block.queries.indices(state.position)[0];
  const gridFrame = block.keys.nearestIndex(0, state.frame);
  for (const key of state.keys.toReversed()) {
    if (block.keys.indices(key)[0] !== gridFrame) continue;
    const to = stage.place(block.keys.centre(key), stage.element);
    const mark = arrow(isHere ? from : to, to, state.row[key] / size, 1.3);
    mark.dataset.key = key;
    svg.append(mark);
  }
  svg.append(queryMark(from, ...markSize(stage), !isHere));
}

function drawLegend() {
  const canvas = at("legend"), context = canvas.getContext("2d");
  for (let x = 0; x < canvas.width; x += 1) {
    const place = x / (canvas.width - 1);
    const root = state.block.signed ? 2 * place - 1 : place;
    const [r, g, b] = heatColour(root * Math.abs(root));
    context.fillStyle = `rgb(${r} ${g} ${b})`;
    context.fillRect(x, 0, 1, canvas.height);
  }
}

let announcing = 0;

/** Announce to screen readers where the query is and what it looks at, once it rests. */
function announceSoon() {
  clearTimeout(announcing);
  announcing = setTimeout(() => {
    const { block, row, keys, position } = state;
    const tops = keys.slice(0, 3).map((key) => `${weightText(block, row[key])} at ${pointText(block.keys.centre(key))}`);
    const text =
      `Query at ${pointText(queryCentre())}, block ${block.name}. ` + (tops.length ? `Highest weights: ${tops.join("; ")}.` : "All weights are zero.");
    if (at("live").textContent !== text) at("live").textContent = text;
    remember(block, position);
  }, 350);
}

// --- changing what is shown ---

function setQuery(point) {
  const { queries } = state.block;
  state.point = [clamp(point[0], 0, clip.count - 1), clamp(point[1], 0, clip.height - 1), clamp(point[2], 0, clip.width - 1)];
  state.position = queries.nearest(state.point);
  draw();
}

/** Move by positions of the block's grid; time goes on from the frame that the query is drawn in. */
function moveQuery(frames, rows, columns) {
  const { queries } = state.block;
  const indices = queries.indices(state.position).map((index, axis) => clamp(index + [frames, rows, columns][axis], 0, queries.shape[axis] - 1));
  const centre = queries.centre(queries.flat(indices));
  if (frames) showFrame(nearestFrame(centre[0]));
  setQuery([frames ? nearestFrame(centre[0]) : state.point[0], centre[1], centre[2]]);
}

/** The frame of the clip nearest to a time in frames; of two the earlier. */
function nearestFrame(time) {
  return clamp(Math.ceil(time - 0.5), 0, clip.count - 1);
}

async function setBlock(index) {
  const block = blocks[index];
  if (!block) return;
  document.querySelectorAll("#blocks input")[index].checked = true;
  state.block = block;
  document.body.setAttribute("aria-busy", "true");
  await block.load();
  if (state.block !== block) return; // another was chosen meanwhile
  document.body.removeAttribute("aria-busy");
  at("note").textContent = noteFor(block);
  at("note").hidden = !at("note").textContent;
  fillAbout(at("about"), block);
  setQuery(state.point ?? strongestPoint(block) ?? centrePoint());
}

function strongestPoint(block) {
  if (block.strongest === null) return null;
  const [frame, row, column] = block.queries.centre(block.strongest);
  return [nearestFrame(frame), row, column];
}

function centrePoint() {
  return [Math.floor((clip.count - 1) / 2), (clip.height - 1) / 2, (clip.width - 1) / 2];
}

function goTo(point) {
  if (!point) return;
  showFrame(Math.round(point[0]));
  setQuery(point);
}

function setArrows(count) {
  state.arrows = clamp(count, 1, 100);
  at("arrow-count").value = state.arrows;
  at("arrow-count-text").textContent = state.arrows;
  draw();
}

function setMode(mode) {
  state.mode = mode;
  document.body.dataset.mode = mode;
  for (const input of document.querySelectorAll("#modes input")) input.checked = input.value === mode;
}

/** Put a frame on the stage. */
function showFrame(frame) {
  state.frame = clamp(frame, 0, clip.count - 1);
  stage.setFrame(state.frame);
  at("frame").value = state.frame;
  const seconds = clip.seconds?.[state.frame];
  const time = seconds === undefined ? "" : ` · ${seconds.toFixed(2)} s`;
  at("frame").setAttribute("aria-valuetext", `frame ${state.frame} of 0 to ${clip.count - 1}`);
  at("stage-title").textContent = clip.count === 1 ? "The image" : `Frame ${state.frame} of 0–${clip.count - 1}${time}`;
  draw();
}

/** Show another frame, by a control or while playing; the query moves along if that is checked. */
function stepTo(frame) {
  showFrame(frame);
  if (at("travel").checked) setQuery([state.frame, state.point[1], state.point[2]]);
}

let playing = 0;

function play(on) {
  clearTimeout(playing);
  playing = 0;
  at("play").classList.toggle("playing", on);
  at("play").setAttribute("aria-label", on ? "Stop" : "Play");
  if (!on) return;
  const next = () => {
    stepTo((state.frame + 1) % clip.count);
    playing = setTimeout(next, frameMilliseconds());
  };
  playing = setTimeout(next, frameMilliseconds());
}

/** As fast as the clip was, at 2 to 12.5 frames a second; slow where the system asks for reduced motion. */
function frameMilliseconds() {
  const span = clip.seconds?.length > 1 ? clip.seconds.at(-1) - clip.seconds[0] : 0;
  const real = span > 0 ? (1000 * span) / (clip.count - 1) : 250;
  return reducedMotion.matches ? 1000 : clamp(real, 80, 500);
}

/** Lay out so many frames of the clip, evenly. */
function setShown(count) {
  const wall = at("wall");
  for (const tile of state.tiles) tile.element.remove();
  state.tiles = Array.from({ length: count }, (_, i) => {
    const element = htmlElement("div", "tile");
    const tile = new Tile(element, clip);
    tile.setFrame(count === 1 ? 0 : Math.round((i * (clip.count - 1)) / (count - 1)));
    element.dataset.frame = tile.frame;
    element.append(htmlElement("span", "tile-label", tile.frame));
    wall.insertBefore(element, at("wall-marks"));
    return tile;
  });
  layOut();
}

function layOut() {
  const wall = at("wall"), narrow = innerWidth < 720, gap = narrow ? 4 : 8;
  const room = narrow ? Infinity : Math.max(300, innerHeight * 0.66);
  const { aspect } = clip, count = state.tiles.length;
  let { columns, tile } = columnsFor(count, wall.clientWidth, room, aspect, gap);
  if (narrow) {
    columns = count <= 4 ? Math.min(count, 2) : count % 4 && count <= 12 ? 3 : 4;
    tile = (wall.clientWidth - gap * (columns - 1)) / columns;
  }
  wall.style.gap = `${gap}px`;
  wall.style.gridTemplateColumns = `repeat(${columns}, ${Math.floor(tile)}px)`;
  draw();
}

function setTheme(dark) {
  document.documentElement.dataset.theme = dark ? "dark" : "light";
  showTheme();
}

const prefersDark = matchMedia("(prefers-color-scheme: dark)");
const isDark = () => (document.documentElement.dataset.theme ?? (prefersDark.matches ? "dark" : "light")) === "dark";

function showTheme() {
  at("theme").setAttribute("aria-pressed", isDark());
}

// --- the address holds the view, so that it can be passed on ---

function remember(block, position) {
  const values = { block: blocks.indexOf(block) + 1, at: queryCentre().map(numberText).join(","), arrows: state.arrows, show: state.mode };
  try {
    history.replaceState(null, "", `#${new URLSearchParams(values)}`);
  } catch { /* some viewers allow no address: nothing depends on it */ }
}

function recall() {
  const values = new URLSearchParams(location.hash.slice(1));
  const point = (values.get("at") ?? "").split(",").map(Number);
  if (point.length === 3 && point.every(Number.isFinite)) state.point = point.map((v, axis) => clamp(v, 0, [clip.count, clip.height, clip.width][axis] - 1));
  if (MODES.some(([mode]) => mode === values.get("show"))) setMode(values.get("show"));
  if (Number(values.get("arrows")) >= 1) setArrows(Math.round(Number(values.get("arrows"))));
  const block = Number(values.get("block")) - 1;
  return blocks[block] ? block : 0;
}
