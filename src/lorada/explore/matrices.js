"use strict";
/* Unpacks matrices and draws them, with a pair of tokens marked. */

async function inflate(base64) {
  const bytes = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate-raw"));
  return new Int16Array(await new Response(stream).arrayBuffer());
}

/** The square matrix of one head, of int16 numbers of all heads, which stay unpacked. */
async function matrixOf(packed, head) {
  const [, size] = packed.shape;
  const whole = await (packed.whole ??= inflate(packed.data));
  const values = Float64Array.from(whole.subarray(head * size * size, (head + 1) * size * size));
  return { values: values.map((value) => value * packed.scale / 32767), size };
}

/** Two matrices together, entry by entry. */
function together(a, b, sign) {
  return { ...a, values: a.values.map((value, i) => value + sign * b.values[i]) };
}

const LABEL = 11; // size of the tokens' labels in pixels
const FONT = `${LABEL}px system-ui, "Liberation Sans", Arial, sans-serif`;
const WIDEST = 480; // pixels of a picture, or so many that an entry has LEAST_ENTRY
const LEAST_ENTRY = 3;

/** One matrix on a canvas with its tokens at the edges. */
class MatrixPicture {
  /**
   * Its ``matrix`` is {values, size}, square; ``most`` is the largest absolute value of the scale of
   * colours. ``view`` is shared: ``at`` is the marked pair; ``mark`` marks another.
   */
  constructor({ title, matrix, tokens, most, view, signed }) {
    Object.assign(this, { title, matrix, tokens, most, view, signed });
    this.canvas = element("canvas", {
      tabindex: "0", role: "application", "aria-roledescription": "matrix",
      "aria-label": `${title}: ${matrix.size} by ${matrix.size} tokens. Arrow keys go from token to token.`,
    });
    for (const kind of ["pointerdown", "pointermove"]) this.canvas.addEventListener(kind, (event) => this.point(event));
    this.canvas.addEventListener("keydown", (event) => this.press(event));
    view.pictures.push(this);
  }

  value(query, key) {
    return this.matrix.values[query * this.matrix.size + key];
  }

  draw() {
    const { canvas, matrix } = this;
    const room = Math.floor(canvas.parentElement?.getBoundingClientRect().width ?? 0);
    if (!room) return;
    const context = canvas.getContext("2d");
    context.font = FONT;
    const label = Math.max(...this.tokens.map((one) => context.measureText(short(one)).width)) + 14;
    const edge = Math.min(label, Math.min(room, WIDEST) / 4);
    const side = Math.max(Math.min(room, WIDEST) - edge - 1, LEAST_ENTRY * matrix.size);
    this.place = { edge, side };
    const ratio = devicePixelRatio || 1;
    for (const name of ["width", "height"]) {
      canvas.style[name] = `${edge + side + 1}px`;
      canvas[name] = Math.round((edge + side + 1) * ratio);
    }
    context.scale(ratio, ratio);
    context.imageSmoothingEnabled = false;
    context.drawImage(this.image(), edge, edge, side, side);
    this.drawEdges(context);
  }

  /** The matrix with one pixel an entry. */
  image() {
    if (this.painted?.theme === theme()) return this.painted.canvas;
    const { values, size } = this.matrix;
    const canvas = element("canvas", { width: size, height: size });
    const context = canvas.getContext("2d");
    const pixels = context.createImageData(size, size);
    values.forEach((value, i) => pixels.data.set([...entryColour(value, this.most), 255], 4 * i));
    context.putImageData(pixels, 0, 0);
    this.painted = { theme: theme(), canvas };
    return canvas;
  }

  /** The frame, the tokens' labels and the marked pair. */
  drawEdges(context) {
    const { matrix, view } = this;
    const { edge, side } = this.place;
    const style = getComputedStyle(document.body);
    const cell = side / matrix.size;
    const marked = view.at ? [view.at.key, view.at.query] : [];
    context.strokeStyle = context.fillStyle = style.color;
    context.globalAlpha = 0.35;
    context.strokeRect(edge - 0.5, edge - 0.5, side + 1, side + 1);
    context.globalAlpha = 1;
    context.direction = "ltr";
    context.textBaseline = "middle";
    context.textAlign = "right";
    for (const [i, y] of this.labelled(cell, marked[1])) {
      this.write(context, this.tokens[i], edge - 4, y, 0, i === marked[1]);
    }
    context.textAlign = "left";
    for (const [i, x] of this.labelled(cell, marked[0])) {
      this.write(context, this.tokens[i], x, edge - 4, -Math.PI / 2, i === marked[0]);
    }
    if (!view.at) return;
    const [x, y] = marked.map((number) => edge + number * cell);
    const size = Math.max(cell, 4);
    context.lineWidth = 2;
    context.strokeRect(x, y, size, size);
    context.strokeStyle = style.backgroundColor;
    context.lineWidth = 1;
    context.strokeRect(x - 1.5, y - 1.5, size + 3, size + 3);
  }

  /** The rows or columns whose label has room, [number, middle in pixels]; the marked one has. */
  labelled(cell, marked) {
    const every = Math.ceil((LABEL + 1) / cell);
    const has = (i) => i === marked || (i % every === 0 && !(Math.abs(i - marked) < every));
    return this.tokens.map((_, i) => [i, this.place.edge + (i + 0.5) * cell]).filter(([i]) => has(i));
  }

  write(context, token, x, y, angle, bold) {
    context.font = `${bold ? "bold " : ""}${FONT}`;
    context.save();
    context.translate(x, y);
    context.rotate(angle);
    context.fillText(short(token), 0, 0, this.place.edge - 6);
    context.restore();
  }

  /** Mark the pair of tokens under a pointer. */
  point(event) {
    const { matrix, view, place } = this;
    const number = (offset) => Math.floor((offset - place.edge) / place.side * matrix.size);
    const [query, key] = [number(event.offsetY), number(event.offsetX)];
    if (query < 0 || key < 0 || query >= matrix.size || key >= matrix.size) return;
    if (query !== view.at?.query || key !== view.at?.key) view.mark(query, key);
  }

  /** Go to the next token with an arrow key; the marked pair stays in sight. */
  press(event) {
    const { view, matrix, place } = this;
    const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    if (!step || event.ctrlKey || event.altKey || event.metaKey) return;
    event.preventDefault();
    const from = view.at ?? { query: -step[0], key: -step[1] };
    const [query, key] = [from.query + step[0], from.key + step[1]].map(
      (number) => Math.min(Math.max(number, 0), matrix.size - 1));
    view.mark(query, key);
    const box = this.canvas.parentElement;
    box.scrollLeft = place.edge + place.side * key / matrix.size - box.clientWidth / 2;
  }
}
