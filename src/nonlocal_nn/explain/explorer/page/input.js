// Input by pointer, keys and controls; and the start of the page.

// --- pointer ---

function listenToPointer(area, tilesOf) {
  let dragging = false;
  const under = (event) => tilesOf().find((tile) => tile.contains(event));
  const put = (event, tile) => {
    if (tile !== stage) showFrame(tile.frame);
    setQuery(tile.point(event));
  };
  area.addEventListener("pointerdown", (event) => {
    const tile = under(event);
    if (!tile || event.button !== 0 || !state.block?.arrays) return;
    dragging = true;
    area.setPointerCapture(event.pointerId);
    hideTip();
    put(event, tile);
  });
  area.addEventListener("pointermove", (event) => {
    // outside of all frames a drag stays where it was, but on the stage it follows along the edge
    const tile = under(event) ?? (area === stage.element ? stage : undefined);
    if (dragging && tile) put(event, tile);
    else if (tile && event.pointerType === "mouse") showTip(event, tile);
    else hideTip();
  });
  for (const name of ["pointerup", "pointercancel", "lostpointercapture"]) {
    area.addEventListener(name, () => { dragging = false; });
  }
  area.addEventListener("pointerleave", hideTip);
}

function showTip(event, tile) {
  if (!state.row) return;
  const key = state.block.keys.nearest(tile.point(event));
  const tip = at("tip");
  tip.textContent = `${weightText(state.block, state.row[key])} · ${pointText(state.block.keys.centre(key))}`;
  tip.hidden = false;
  const [x, y] = [Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 8), event.clientY + 18];
  Object.assign(tip.style, { left: `${x + scrollX}px`, top: `${y + scrollY}px` });
  highlight(key);
}

function hideTip() {
  at("tip").hidden = true;
  highlight(null);
}

/** Highlight the arrows and the line of the list that belong to one key. */
function highlight(key) {
  document.body.classList.toggle("has-lit", key !== null && state.keys.includes(key));
  for (const lit of document.querySelectorAll(".lit-key")) lit.classList.remove("lit-key");
  if (key === null) return;
  for (const mark of document.querySelectorAll(`.arrow[data-key="${key}"], tr[data-key="${key}"]`)) mark.classList.add("lit-key");
}

function listenToList() {
  const body = document.querySelector("#weights tbody");
  const keyOf = (event) => event.target.closest("tr")?.dataset.key;
  body.addEventListener("pointerover", (event) => highlight(keyOf(event) === undefined ? null : Number(keyOf(event))));
  body.addEventListener("pointerleave", () => highlight(null));
  body.addEventListener("click", (event) => {
    if (keyOf(event) === undefined) return;
    const [frame, row, column] = state.block.keys.centre(Number(keyOf(event)));
    goTo([nearestFrame(frame), row, column]);
  });
}

// --- keys ---

const KEYS = {
  ArrowLeft: () => moveQuery(0, 0, -1),
  ArrowRight: () => moveQuery(0, 0, 1),
  ArrowUp: () => moveQuery(0, -1, 0),
  ArrowDown: () => moveQuery(0, 1, 0),
  PageUp: () => moveQuery(-1, 0, 0),
  PageDown: () => moveQuery(1, 0, 0),
  ",": () => stepTo(state.frame - 1),
  ".": () => stepTo(state.frame + 1),
  Home: () => stepTo(0),
  End: () => stepTo(clip.count - 1),
  " ": () => play(!playing),
  "+": () => setArrows(state.arrows + 1),
  "=": () => setArrows(state.arrows + 1),
  "-": () => setArrows(state.arrows - 1),
  a: () => setMode("arrows"),
  h: () => setMode("heat"),
  b: () => setMode("both"),
  s: () => goTo(strongestPoint(state.block)),
  c: () => goTo(centrePoint()),
  t: () => setTheme(!isDark()),
  "?": () => at("help-dialog").showModal(),
};

/** Keys that a control needs for itself: the ends and arrows of sliders and choices, space on buttons. */
function controlTakes(target, key) {
  if (target.closest("select")) return true;
  const moves = key.startsWith("Arrow") || ["Home", "End", "PageUp", "PageDown"].includes(key);
  if (target.matches("input[type=range], input[type=radio]") && moves) return true;
  if (target.closest(".scroll") && moves) return true;
  return key === " " && target.closest("button, input") !== null;
}

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || !state.block?.arrays || at("help-dialog").open) return;
  if (controlTakes(event.target, event.key)) return;
  const digit = /^[1-9]$/.test(event.key) ? Number(event.key) : 0;
  const action = digit ? () => setBlock(digit - 1) : KEYS[event.key.length === 1 ? event.key.toLowerCase() : event.key];
  if (!action) return;
  event.preventDefault();
  if ([",", ".", "Home", "End"].includes(event.key)) play(false);
  action();
}

// --- controls ---

/** Radio buttons, styled as a row of buttons. */
function fillChoice(fieldset, name, options, onChoose) {
  for (const [value, text] of options) {
    const label = htmlElement("label"), input = htmlElement("input");
    Object.assign(input, { type: "radio", name, value });
    input.addEventListener("change", () => onChoose(value));
    label.append(input, htmlElement("span", "", text));
    fieldset.append(label);
  }
}

function fillShown() {
  const counts = [4, 8, 16].filter((count) => count < clip.count);
  const most = Math.min(clip.count, 64);
  for (const count of [...counts, most]) at("shown").append(new Option(count === clip.count ? `all ${count}` : count, count));
  at("shown").value = most;
  at("shown-field").hidden = clip.count < 5;
  at("shown").addEventListener("change", () => setShown(Number(at("shown").value)));
}

function listenToControls() {
  at("arrow-count").addEventListener("input", (event) => setArrows(Number(event.target.value)));
  at("smooth").addEventListener("change", (event) => document.body.classList.toggle("cells", !event.target.checked));
  at("previous").addEventListener("click", () => { play(false); stepTo(state.frame - 1); });
  at("next").addEventListener("click", () => { play(false); stepTo(state.frame + 1); });
  at("play").addEventListener("click", () => play(!playing));
  at("frame").addEventListener("input", (event) => { play(false); stepTo(Number(event.target.value)); });
  at("travel").addEventListener("change", () => stepTo(state.frame));
  at("theme").addEventListener("click", () => setTheme(!isDark()));
  prefersDark.addEventListener("change", showTheme);
  at("help").addEventListener("click", () => at("help-dialog").showModal());
  at("help-close").addEventListener("click", () => at("help-dialog").close());
  at("save").addEventListener("click", savePicture);
  document.addEventListener("keydown", onKey);
  new ResizeObserver(layOut).observe(document.body);
}

// --- the start ---

async function start() {
  const size = `${clip.count} ${clip.count === 1 ? "frame" : "frames"} of ${clip.height} × ${clip.width} pixels`;
  at("summary").textContent = `${size} · ${blocks.length} non-local ${blocks.length === 1 ? "block" : "blocks"}`;
  at("made-by").textContent = `Made by nonlocal_nn ${page.version}. This file holds all it needs and loads nothing.`;
  document.body.classList.toggle("still", clip.count === 1);
  stage.element.style.maxWidth = `${Math.round(75 * clip.aspect)}vh`; // a tall frame fits the window
  at("frame").max = clip.count - 1;
  at("classes-card").hidden = page.classes.length === 0;
  fillClasses(at("classes"), page.classes);
  fillChoice(at("blocks"), "block", blocks.map((block, i) => [i, block.name]), setBlock);
  fillChoice(at("modes"), "mode", MODES, setMode);
  fillShown();
  listenToControls();
  listenToPointer(at("wall"), () => state.tiles);
  listenToPointer(stage.element, () => [stage]);
  listenToList();
  showTheme();
  setMode("both");
  setShown(Number(at("shown").value));
  const first = recall();
  await setBlock(first);
  showFrame(Math.round(state.point[0]));
}

// For the console: explorer.blocks[0].row(12) is what position 12 of the first block looks at.
globalThis.explorer = { clip, blocks, state, largest };

start().catch((error) => {
  at("failure").textContent = `This page could not be unpacked: ${error.message}. It needs a browser of 2023 or newer.`;
  at("failure").hidden = false;
  throw error;
});
