"use strict";
// What the page holds: the description of clip and blocks, and each block's rows, unpacked when it is first shown.

const TYPES = { uint8: Uint8Array, uint16: Uint16Array, float32: Float32Array };

/** One packed array: base64 of a raw deflate stream, in a script element that no browser runs. */
async function unpack({ id, dtype, row, differences }) {
  const text = atob(document.getElementById(id).textContent);
  const packed = Uint8Array.from(text, (letter) => letter.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate-raw"));
  const values = new TYPES[dtype](await new Response(stream).arrayBuffer());
  if (differences) for (let i = row; i < values.length; i += 1) values[i] += values[i - row]; // modulo 256
  return values;
}

const clamp = (value, low, high) => Math.min(high, Math.max(low, value));
const sum = (values) => values.reduce((total, value) => total + value, 0);

/** A grid of positions over the clip; `first` and `step` in frames and pixels, pixel centres at whole numbers. */
class Grid {
  constructor({ shape, first, step }) {
    Object.assign(this, { shape, first, step, count: shape[0] * shape[1] * shape[2] });
  }

  /** [frame, row, column] of a flat position, as indices of the grid. */
  indices(position) {
    const [, height, width] = this.shape;
    return [Math.floor(position / (height * width)), Math.floor(position / width) % height, position % width];
  }

  flat([frame, row, column]) {
    return (frame * this.shape[1] + row) * this.shape[2] + column;
  }

  /** [frame, row, column] of a flat position's centre, in frames and pixels of the clip. */
  centre(position) {
    return this.indices(position).map((index, axis) => this.first[axis] + index * this.step[axis]);
  }

  nearestIndex(axis, value) {
    return clamp(Math.round((value - this.first[axis]) / this.step[axis]), 0, this.shape[axis] - 1);
  }

  /** The flat position whose centre is nearest to [frame, row, column] of the clip. */
  nearest(point) {
    return this.flat(point.map((value, axis) => this.nearestIndex(axis, value)));
  }
}

/** One non-local block: who it is, and the rows of f / C, one for each query position. */
class Block {
  constructor(description) {
    const { queries, keys, arrays, ...rest } = description;
    Object.assign(this, rest);
    this.queries = new Grid(queries);
    this.keys = new Grid(keys);
    this.packed = arrays;
    this.arrays = null;
    this.parts = partsOf(this.steps, this.signed);
    this.leaderParts = partsOf(this.leaderSteps, false);
  }

  /** Unpack the arrays; whoever asks meanwhile waits for the same. */
  load() {
    this.loading ??= this.unpackAll();
    return this.loading;
  }

  async unpackAll() {
    const names = Object.keys(this.packed);
    const arrays = await Promise.all(names.map((name) => unpack(this.packed[name])));
    this.arrays = Object.fromEntries(names.map((name, i) => [name, arrays[i]]));
  }

  /** A row of one of the arrays. */
  slice(name, position) {
    const length = this.packed[name].row;
    return this.arrays[name].subarray(position * length, (position + 1) * length);
  }

  /** The values that codes stand for, given their row's [zero, range]. */
  values(codes, [zero, range], parts = this.parts) {
    return Float32Array.from(codes, (code) => zero + range * parts[code]);
  }

  /** The weights of all keys for one query position. */
  row(position) {
    let row;
    if (this.top === null) {
      row = this.values(this.slice("codes", position), this.slice("scale", position));
    } else {
      row = new Float32Array(this.keys.count).fill(NaN);
      for (const [key, value] of this.some("", position, this.parts)) row[key] = value;
      this.spreadRest(row, this.values(this.slice("rest_codes", position), this.slice("rest_scale", position)));
    }
    if (this.leaders) this.putLeaders(row, this.some("lead_", position, this.leaderParts));
    return row;
  }

  /** [key, weight] of the weights that are stored with their positions. */
  some(prefix, position, parts) {
    const low = this.slice(`${prefix}gap_low`, position), high = this.slice(`${prefix}gap_high`, position);
    const values = this.values(this.slice(`${prefix}codes`, position), this.slice(`${prefix}scale`, position), parts);
    let key = 0;
    return Array.from(values, (value, i) => [(key += low[i] + 256 * high[i]), value]);
  }

  leadersOf(position) {
    return new Set(this.leaders ? this.some("lead_", position, this.leaderParts).map(([key]) => key) : []);
  }

  /** The finer weights of the leaders; no other weight is larger than the least of them. */
  putLeaders(row, leaders) {
    const least = Math.min(...leaders.map(([, value]) => Math.abs(value)));
    row.forEach((value, key) => {
      if (Math.abs(value) > least) row[key] = Math.sign(value) * least;
    });
    for (const [key, value] of leaders) row[key] = value;
  }

  /** Fill what is still NaN: each cell's remaining weight, spread evenly over its remaining keys. */
  spreadRest(row, rest) {
    const [, height, width] = this.keys.shape;
    const down = cellOf(height, this.cells), across = cellOf(width, this.cells);
    const rows = down.at(-1) + 1, columns = across.at(-1) + 1;
    const cell = (key) => {
      const [t, y, x] = this.keys.indices(key);
      return (t * rows + down[y]) * columns + across[x];
    };
    const open = new Uint32Array(rest.length);
    row.forEach((value, key) => { if (Number.isNaN(value)) open[cell(key)] += 1; });
    row.forEach((value, key) => { if (Number.isNaN(value)) row[key] = rest[cell(key)] / open[cell(key)]; });
  }

  /** Parts (adding up to one, or all zero) of a row's weight: by frame of the keys, or by distance in space. */
  shares(name, position) {
    return Array.from(this.slice(name, position), (part) => part / 255);
  }

  /** The mean of `shares` over all query positions of one frame of the query grid. */
  meanShares(name, gridFrame) {
    const perFrame = this.queries.shape[1] * this.queries.shape[2];
    const length = this.packed[name].row;
    const total = new Float64Array(length);
    const all = this.arrays[name];
    const start = gridFrame * perFrame * length;
    for (let i = 0; i < perFrame * length; i += 1) total[i % length] += all[start + i];
    return Array.from(total, (value) => value / (255 * perFrame));
  }
}

/** What each code stands for, as a part of its row's range: see quantise() in encode.py. */
function partsOf(steps, signed) {
  return Float32Array.from({ length: signed ? 2 * steps + 1 : steps + 1 }, (_, code) => {
    const root = code / steps - (signed ? 1 : 0);
    return root * Math.abs(root);
  });
}

/** Which of `cells` nearly equal runs each of `size` places belongs to: see cell_starts() in encode.py. */
function cellOf(size, cells) {
  const count = Math.min(size, cells);
  const starts = Array.from({ length: count }, (_, i) => Math.floor((i * size) / count));
  return Array.from({ length: size }, (_, place) => starts.findLastIndex((start) => start <= place));
}

/** The `count` keys of the largest weights by size, largest first; of equals the leaders, then the earlier. */
function largest(row, count, leaders = new Set()) {
  const keys = Array.from(row.keys());
  keys.sort((a, b) => Math.abs(row[b]) - Math.abs(row[a]) || leaders.has(b) - leaders.has(a) || a - b);
  return keys.slice(0, count).filter((key) => row[key] !== 0);
}
