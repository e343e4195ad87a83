// The wall as a PNG picture, to put into a talk or a paper.

async function savePicture() {
  const wall = at("wall"), scale = 2;
  const { width, height, left, top } = wall.getBoundingClientRect();
  const canvas = document.createElement("canvas");
  Object.assign(canvas, { width: Math.round(width * scale), height: Math.round(height * scale) });
  const context = canvas.getContext("2d");
  context.scale(scale, scale);
  context.fillStyle = getComputedStyle(document.querySelector(".card")).backgroundColor;
  context.fillRect(0, 0, width, height);
  for (const { element, image, heat } of state.tiles) {
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
  for (const shape of at("wall-marks").querySelectorAll("path, polygon, circle, rect")) drawShape(context, shape);
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
