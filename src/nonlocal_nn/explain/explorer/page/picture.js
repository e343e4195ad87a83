// All frames (or the one image) as a PNG picture, to put into a talk or a paper.

async function savePicture() {
  const isStill = clip.count === 1, scale = 2;
  const tiles = isStill ? [stage] : state.tiles;
  const marks = at(isStill ? "stage-marks" : "wall-marks");
  const { width, height, left, top } = marks.parentElement.getBoundingClientRect();
  const canvas = document.createElement("canvas");
  Object.assign(canvas, { width: Math.round(width * scale), height: Math.round(height * scale) });
  const context = canvas.getContext("2d");
  context.scale(scale, scale);
  context.fillStyle = getComputedStyle(document.querySelector(".card")).backgroundColor;
  context.fillRect(0, 0, width, height);
  for (const { element, image, heat } of tiles) {
    const box = element.getBoundingClientRect();
    context.save();
    context.beginPath();
    context.rect(box.left - left, box.top - top, box.width, box.height);
    context.clip();
    for (const layer of [image, heat]) {
      const style = getComputedStyle(layer);
      if (style.display === "none") continue;
      const area = layer.getBoundingClientRect();
      context.filter = style.filter;
      context.imageSmoothingEnabled = style.imageRendering !== "pixelated";
      context.drawImage(layer, area.left - left, area.top - top, area.width, area.height);
    }
    context.restore();
  }
  for (const shape of marks.querySelectorAll("path, polygon, circle, rect")) drawShape(context, shape);
  const blob = await new Promise((done) => canvas.toBlob(done, "image/png"));
  const link = Object.assign(document.createElement("a"), { href: URL.createObjectURL(blob), download: "nonlocal.png" });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

/** One SVG shape on a canvas, as it is styled now. */
function drawShape(context, shape) {
  const style = getComputedStyle(shape);
  if (style.display === "none" || getComputedStyle(shape.parentElement).display === "none") return;
  const number = (name) => Number(shape.getAttribute(name));
  const outline = {
    path: () => new Path2D(shape.getAttribute("d")),
    polygon: () => new Path2D(`M${shape.getAttribute("points")}Z`),
    circle: () => { const path = new Path2D(); path.arc(number("cx"), number("cy"), number("r"), 0, 2 * Math.PI); return path; },
    rect: () => { const path = new Path2D(); path.rect(number("x"), number("y"), number("width"), number("height")); return path; },
  }[shape.tagName]();
  context.globalAlpha = Number(style.opacity) * Number(getComputedStyle(shape.parentElement).opacity);
  context.setLineDash(style.strokeDasharray === "none" ? [] : style.strokeDasharray.split(",").map(parseFloat));
  context.lineCap = style.strokeLinecap;
  if (style.fill !== "none") { context.fillStyle = style.fill; context.fill(outline); }
  if (style.stroke !== "none") { context.strokeStyle = style.stroke; context.lineWidth = parseFloat(style.strokeWidth); context.stroke(outline); }
  context.globalAlpha = 1;
}
