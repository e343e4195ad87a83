// Numbers beside the pictures: list of weights, charts, classes, and texts.

/** A weight as text: percent where a row adds up to one, else three digits. */
function weightText(block, weight) {
  if (block.sumsToOne) return percentText(weight);
  return (weight < 0 ? "−" : "") + Number(Math.abs(weight).toPrecision(3)).toString();
}

function percentText(part) {
  const percent = 100 * part;
  const digits = percent >= 9.95 ? 0 : percent >= 0.995 ? 1 : 2;
  return percent > 0 && percent < 0.005 ? "< 0.01 %" : `${percent.toFixed(digits)} %`;
}

function pointText([frame, row, column]) {
  return `frame ${numberText(frame)}, row ${Math.round(row)}, column ${Math.round(column)}`;
}

function numberText(value) {
  return Number(value.toFixed(1)).toString();
}

/** Fill the table of the highest weights; a row knows its key, so that pointing at it can light its arrow. */
function fillWeights(body, block, row, keys) {
  const size = keys.length ? Math.abs(row[keys[0]]) : 1;
  body.replaceChildren(...keys.map((key, rank) => {
    const line = htmlElement("tr");
    line.dataset.key = key;
    const weight = htmlElement("td", row[key] < 0 ? "weight negative" : "weight");
    const bar = htmlElement("span", "weight-bar");
    bar.style.width = `${(100 * Math.abs(row[key])) / size}%`;
    weight.append(bar, htmlElement("span", "weight-text", weightText(block, row[key])));
    const [frame, y, x] = block.keys.centre(key);
    const cells = [numberText(frame), Math.round(y), Math.round(x)].map((text) => htmlElement("td", "", text));
    line.append(htmlElement("td", "", rank + 1), weight, ...cells);
    return line;
  }));
}

/** Bars with labels; `marks` are a second set of values, drawn as ticks. */
function drawBars(svg, { labels, values, marks, lit, summary }) {
  const [width, height, bottom, top] = [360, 168, 22, 16];
  const step = width / Math.max(1, values.length);
  const most = Math.max(0.01, ...values, ...marks);
  const tall = (value) => (value / most) * (height - bottom - top);
  const near = (mark, value) => (tall(mark) > tall(value) && tall(mark) - tall(value) < 16 ? tall(mark) : 0); // no text on a tick
  const every = Math.ceil(labels.length / Math.floor(width / 34));
  const parts = [];
  values.forEach((value, i) => {
    const gap = Math.min(6, step * 0.18);
    const x = i * step + gap / 2, w = step - gap;
    parts.push(svgElement("rect", { class: i === lit ? "bar-lit" : "bar-plain", x, width: w, y: height - bottom - tall(value), height: tall(value), rx: Math.min(2, w / 2), "data-share": value }));
    parts.push(svgElement("line", { class: "mean", x1: x, x2: x + w, y1: height - bottom - tall(marks[i]), y2: height - bottom - tall(marks[i]) }));
    if (step > 30) {
      const text = svgElement("text", { class: "value", x: x + w / 2, y: height - bottom - Math.max(tall(value), near(marks[i], value)) - 4 });
      text.textContent = value >= 0.005 ? `${Math.round(100 * value)}` : "";
      parts.push(text);
    }
    if ((i - Math.max(0, lit)) % every === 0) {
      const label = svgElement("text", { class: i === lit ? "label lit" : "label", x: x + w / 2, y: height - 6 });
      label.textContent = labels[i];
      parts.push(label);
    }
  });
  parts.push(svgElement("line", { class: "axis", x1: 0, x2: width, y1: height - bottom + 0.5, y2: height - bottom + 0.5 }));
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  svg.setAttribute("aria-label", summary);
  svg.replaceChildren(...parts);
}

/** The two charts for one query position. */
function drawCharts(block, position) {
  const [gridFrame] = block.queries.indices(position);
  const [frame] = block.queries.centre(position);
  const inFrames = block.shares("frame_shares", position);
  const distances = inFrames.map((_, t) => block.keys.first[0] + t * block.keys.step[0] - frame);
  const own = distances.reduce((best, d, t) => (Math.abs(d) < Math.abs(distances[best]) ? t : best), 0);
  const labels = distances.map((d) => (Math.abs(d) < 0.05 ? "0" : `${d < 0 ? "−" : "+"}${numberText(Math.abs(d))}`));
  const elsewhere = sum(inFrames) - inFrames[own];
  drawBars(document.getElementById("frame-chart"), {
    labels, values: inFrames, marks: block.meanShares("frame_shares", gridFrame), lit: own,
    summary: `Share of weight by frames from the query: ${labels.map((l, t) => `${l}: ${Math.round(100 * inFrames[t])} %`).join(", ")}`,
  });
  document.getElementById("frame-chart-text").textContent =
    inFrames.length > 1 ? `Share in %, by frames from the query. ${Math.round(100 * elsewhere)} % lies outside its own frame. Lines: the mean of all positions in this frame.` : "All keys lie in one frame.";

  const inSpace = block.shares("space_shares", position);
  const edges = inSpace.map((_, i) => numberText(i * block.binPixels));
  const near = inSpace.findIndex((_, i) => sum(inSpace.slice(0, i + 1)) >= 0.5 * sum(inSpace));
  drawBars(document.getElementById("space-chart"), {
    labels: edges, values: inSpace, marks: block.meanShares("space_shares", gridFrame), lit: -1,
    summary: `Share of weight by distance in pixels, from ${edges.map((l, i) => `${l}: ${Math.round(100 * inSpace[i])} %`).join(", ")}`,
  });
  document.getElementById("space-chart-text").textContent =
    `Share in %, by pixels from the query. Half of the weight lies within ${numberText((near + 1) * block.binPixels)} pixels.`;
}

function fillClasses(list, classes) {
  const scores = classes.map(([name, score]) => {
    const item = htmlElement("li");
    const bar = htmlElement("span", "class-bar");
    bar.style.width = `${100 * score}%`;
    item.append(htmlElement("span", "class-name", name), htmlElement("span", "class-score", percentText(score)), bar);
    return item;
  });
  list.replaceChildren(...scores);
}

function fillAbout(list, block) {
  const size = (grid) => grid.shape.join(" × ");
  const rows = [
    ["Function f", block.pairwise],
    ["Span", block.groups > 1 ? `${block.span}, in ${block.groups} runs of frames` : block.span],
    ["Queries", `${size(block.queries)} (frames × rows × columns)`],
    ["Keys", size(block.keys)],
    ["Stored", block.stored],
  ];
  list.replaceChildren(...rows.flatMap(([name, text]) => [htmlElement("dt", "", name), htmlElement("dd", "", text)]));
}

/** What has to be known to read weights that are no shares of a whole; "" for a softmax. */
function noteFor(block) {
  if (block.sumsToOne) return "";
  const negative = block.signed ? " Negative ones are blue and dashed; the largest are chosen by size, whatever the sign." : "";
  return `${block.pairwise}: the weights are divided by the number of positions and do not add up to one.${negative} Shares are of the weights' sizes.`;
}

/** How concentrated a row is. */
function factsText(block, row, keys) {
  const sizes = Float64Array.from(row, Math.abs).sort().reverse();
  const total = sum(sizes);
  if (!total) return "All weights of this place are zero.";
  let [count, reached] = [0, 0];
  while (reached < total / 2) reached += sizes[count++];
  const times = (sizes[0] * row.length) / total;
  const many = count === 1 ? "1 place holds" : `${count} places hold`;
  return `Largest weight ${weightText(block, row[keys[0]])}, ${times < 9.95 ? numberText(times) : Math.round(times)} times an even share. ${many} half of the weight, of ${row.length}.`;
}
