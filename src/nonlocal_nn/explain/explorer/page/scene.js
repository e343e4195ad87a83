// Frames with heat and arrows over them.

const SVG = "http://www.w3.org/2000/svg";

function svgElement(name, attributes = {}) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  return element;
}

function htmlElement(name, className = "", text = "") {
  const element = document.createElement(name);
  if (className) element.className = className;
  element.textContent = text;
  return element;
}

// Heat: dark violet over red to cream, and blue for negative weights; opaque where the weight is large.
const WARM = [[46, 16, 92], [128, 37, 130], [216, 62, 96], [252, 148, 88], [255, 243, 196]];
const COLD = [[8, 30, 92], [18, 84, 160], [36, 150, 200], [120, 212, 228], [232, 252, 255]];
const OPAQUE = 210; // alpha of the largest weight

/** Colour and alpha of a weight as a part of the largest; the root keeps small weights visible. */
function heatColour(part) {
  const strength = Math.sqrt(Math.min(1, Math.abs(part)));
  const stops = part < 0 ? COLD : WARM;
  const place = strength * (stops.length - 1);
  const left = Math.min(stops.length - 2, Math.floor(place));
  const mixed = stops[left].map((value, i) => Math.round(value + (stops[left + 1][i] - value) * (place - left)));
  return [...mixed, Math.round(OPAQUE * strength)];
}

/** One picture of the clip with a canvas of the size of the key grid over it. */
class Tile {
  constructor(element, clip) {
    this.element = element;
    this.clip = clip;
    this.frame = 0;
    this.image = htmlElement("img");
    this.image.alt = "";
    this.image.draggable = false;
    this.heat = htmlElement("canvas", "heat");
    this.heat.setAttribute("aria-hidden", "true");
    // its size is known before the picture is; a sequence, one row of pixels, is drawn taller than it is
    element.style.aspectRatio = clip.aspect;
    element.prepend(this.image, this.heat);
  }

  setFrame(frame) {
    this.frame = frame;
    const picture = this.clip.pictures[frame];
    if (this.image.src !== picture) this.image.src = picture;
  }

  /** Show the row's weights in the keys' frame that is nearest to this picture. */
  drawHeat(block, row, largestSize) {
    const [, height, width] = block.keys.shape;
    const gridFrame = block.keys.nearestIndex(0, this.frame);
    // one more cell all around, like its neighbour: where the grid ends before the picture does
    Object.assign(this.heat, { width: width + 2, height: height + 2 });
    const context = this.heat.getContext("2d");
    const pixels = context.createImageData(width + 2, height + 2);
    for (let y = 0; y < height + 2; y += 1) {
      for (let x = 0; x < width + 2; x += 1) {
        const key = block.keys.flat([gridFrame, clamp(y - 1, 0, height - 1), clamp(x - 1, 0, width - 1)]);
        pixels.data.set(heatColour(largestSize ? row[key] / largestSize : 0), 4 * (y * (width + 2) + x));
      }
    }
    context.putImageData(pixels, 0, 0);
    // each key covers the box of one step around its centre; pixel 0 reaches from -0.5 to 0.5
    const [, firstRow, firstColumn] = block.keys.first;
    const [, stepRow, stepColumn] = block.keys.step;
    const percent = (value, whole) => `${(100 * value) / whole}%`;
    Object.assign(this.heat.style, {
      left: percent(firstColumn + 0.5 - 1.5 * stepColumn, this.clip.width),
      top: percent(firstRow + 0.5 - 1.5 * stepRow, this.clip.height),
      width: percent((width + 2) * stepColumn, this.clip.width),
      height: percent((height + 2) * stepRow, this.clip.height),
    });
  }

  /** Where a pixel of the clip lies, in pixels of `drawing`, an element that this tile is or lies in. */
  place([, row, column], drawing) {
    const box = this.element.getBoundingClientRect(), whole = drawing.getBoundingClientRect();
    return [
      box.left - whole.left + ((column + 0.5) / this.clip.width) * box.width,
      box.top - whole.top + ((row + 0.5) / this.clip.height) * box.height,
    ];
  }

  /** [frame, row, column] under a pointer; beyond the edge it is the edge. */
  point(event) {
    const box = this.element.getBoundingClientRect();
    const part = (value, size) => clamp(value / size, 0, 1);
    return [
      this.frame,
      part(event.clientY - box.top, box.height) * this.clip.height - 0.5,
      part(event.clientX - box.left, box.width) * this.clip.width - 0.5,
    ];
  }

  contains(event) {
    const box = this.element.getBoundingClientRect();
    return event.clientX >= box.left && event.clientX < box.right && event.clientY >= box.top && event.clientY < box.bottom;
  }
}

/** The box around the query, of the size of one position. */
function queryMark([x, y], width, height, isElsewhere) {
  const group = svgElement("g", { class: isElsewhere ? "query elsewhere" : "query", "data-x": x, "data-y": y });
  const [w, h] = [Math.max(13, width), Math.max(13, height)];
  for (const layer of ["under", "over"]) {
    group.append(svgElement("rect", { class: layer, x: x - w / 2, y: y - h / 2, width: w, height: h, rx: 2 }));
  }
  if (!isElsewhere) group.append(svgElement("circle", { class: "dot", cx: x, cy: y, r: 2.5 }));
  return group;
}

/** An arrow whose tip is exactly at `to`; thickness by `part`, the weight as a part of the largest. */
function arrow(from, to, part, scale) {
  const group = svgElement("g", { class: part < 0 ? "arrow negative" : "arrow", "data-x": to[0], "data-y": to[1] });
  const size = Math.abs(part);
  const thickness = (1.2 + 3.2 * size) * scale;
  const [dx, dy] = [to[0] - from[0], to[1] - from[1]];
  const length = Math.hypot(dx, dy);
  const head = (6 + 5 * size) * scale;
  if (length < head + 2) { // a place that looks at itself, or right beside: a ring
    const ring = { cx: to[0], cy: to[1], r: 5 * scale + thickness, "stroke-width": thickness };
    group.append(svgElement("circle", { class: "case", ...ring, "stroke-width": thickness + 1.4 }));
    group.append(svgElement("circle", { class: "line", ...ring }));
    return group;
  }
  // A slight bow, so that arrows along one line can be told apart.
  const bow = Math.min(0.12 * length, 36);
  const bend = [from[0] + dx / 2 + (dy / length) * bow, from[1] + dy / 2 - (dx / length) * bow];
  const toBend = Math.hypot(to[0] - bend[0], to[1] - bend[1]);
  const along = [(to[0] - bend[0]) / toBend, (to[1] - bend[1]) / toBend];
  const base = [to[0] - along[0] * head, to[1] - along[1] * head];
  const wing = head * 0.45;
  const corners = [to, [base[0] - along[1] * wing, base[1] + along[0] * wing], [base[0] + along[1] * wing, base[1] - along[0] * wing]];
  const curve = `M${from}Q${bend} ${base.map((v, i) => v + along[i])}`;
  group.append(svgElement("path", { class: "case", d: curve, "stroke-width": thickness + 1.4 }));
  group.append(svgElement("polygon", { class: "head", points: corners.join(" ") }));
  group.append(svgElement("path", { class: "line", d: curve, "stroke-width": thickness }));
  return group;
}

/** The shown tile that is nearest to a frame; of two the earlier. */
function nearestTile(tiles, frame) {
  return tiles.reduce((best, tile) => (Math.abs(tile.frame - frame) < Math.abs(best.frame - frame) ? tile : best));
}

/** How many columns make `count` tiles largest in a space, full last rows first. */
function columnsFor(count, width, height, aspect, gap) {
  let best = { columns: 1, score: 0 };
  for (let columns = 1; columns <= count; columns += 1) {
    const rows = Math.ceil(count / columns);
    const byWidth = (width - gap * (columns - 1)) / columns;
    const byHeight = ((height - gap * (rows - 1)) / rows) * aspect;
    const score = Math.min(byWidth, byHeight) * (count % columns ? 0.9 : 1);
    if (score > best.score) best = { columns, score, tile: Math.min(byWidth, byHeight) };
  }
  return best;
}
