"use strict";
/* Unpacks matrices and draws them, with a pair of tokens marked. */

async function inflate(base64) {
  const bytes = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate-raw"));
  return new Int16Array(await new Response(stream).arrayBuffer());
}

/** The matrix of one head, of int16 numbers of all heads, (H, T, K), which stay unpacked. */
async function matrixOf(packed, head) {
  const [, queries, keys] = packed.shape;
  const whole = await (packed.whole ??= inflate(packed.data));
  const values = Float64Array.from(whole.subarray(head * queries * keys, (head + 1) * queries * keys));
  return { values: values.map((value) => value * packed.scale / 32767), queries, keys };
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
   * Its ``matrix`` is {values, queries, keys}; ``most`` is the largest absolute value of the scale of
   * colours. ``view`` is shared: ``at`` is the marked pair, whose keys count from the first token, so
   * that what a prefix adds has numbers below 0; ``mark`` marks another.
   */
  constructor({ title, matrix, tokens, most, view, signed }) {
    Object.assign(this, { title, matrix, most, view, signed });
    this.offset = Math.max(0, matrix.keys - matrix.queries);
    const fits = tokens.length === matrix.queries;
    this.tokens = fits ? tokens : Array.from({ length: matrix.queries }, (_, i) => `token ${i}`);
    this.canvas = element("canvas", {
      tabindex: "0", role: "application", "aria-roledescription": "matrix",
      "aria-label": `${title}: ${matrix.queries} by ${matrix.keys} tokens. Arrow keys go from token to token.`,
    });
    for (const kind of ["pointerdown", "pointermove"]) this.canvas.addEventListener(kind, (event) => this.point(event));
    this.canvas.addEventListener("keydown", (event) => this.press(event));
    view.pictures.push(this);
  }

  key(column) {
    const at = column - this.offset;
    return at < 0 ? `prefix ${column}` : this.tokens[at];
  }

  value(query, key) {
    return this.matrix.values[query * this.matrix.keys + key + this.offset];
  }

  draw() {
    const { canvas, matrix } = this;
    const room = Math.floor(canvas.parentElement?.getBoundingClientRect().width ?? 0);
    if (!room) return;
    const context = canvas.getContext("2d");
    context.font = FONT;
    const names = [...this.tokens, ...(this.offset ? [this.key(0)] : [])].map((one) => short(one));
    const label = Math.max(...names.map((one) => context.measureText(one).width)) + 14;
    const edge = Math.min(label, Math.min(room, WIDEST) / 4);
    const side = Math.max(Math.min(room, WIDEST) - edge - 1, LEAST_ENTRY * matrix.keys);
    const tall = Math.min(side * matrix.queries / matrix.keys, side);
    this.place = { edge, side, tall };
    const ratio = devicePixelRatio || 1;
    const size = { width: edge + side + 1, height: Math.round(edge + tall + 1) };
    for (const [name, pixels] of Object.entries(size)) {
      canvas.style[name] = `${pixels}px`;
      canvas[name] = Math.round(pixels * ratio);
    }
    context.scale(ratio, ratio);
    context.imageSmoothingEnabled = false;
    context.drawImage(this.image(), edge, edge, side, tall);
    this.drawEdges(context);
  }

  /** The matrix with one pixel an entry. */
  image() {
    if (this.painted?.theme === theme()) return this.painted.canvas;
    const { values, queries, keys } = this.matrix;
    const canvas = element("canvas", { width: keys, height: queries });
    const context = canvas.getContext("2d");
    const pixels = context.createImageData(keys, queries);
    values.forEach((value, i) => pixels.data.set([...entryColour(value, this.most), 255], 4 * i));
    context.putImageData(pixels, 0, 0);
    this.painted = { theme: theme(), canvas };
    return canvas;
  }

  /** The frame, the tokens' labels and the marked pair. */
  drawEdges(context) {
    const { matrix, view, place } = this;
    const { edge, side, tall } = place;
    const style = getComputedStyle(document.body);
    const cell = [side / matrix.keys, tall / matrix.queries];
    const marked = view.at ? [view.at.key + this.offset, view.at.query] : [];
    context.strokeStyle = context.fillStyle = style.color;
    context.globalAlpha = 0.35;
    context.strokeRect(edge - 0.5, edge - 0.5, side + 1, tall + 1);
    context.globalAlpha = 1;
    context.direction = "ltr";
    context.textBaseline = "middle";
    context.textAlign = "right";
    for (const [i, y] of this.labelled(cell[1], matrix.queries, marked[1])) {
      this.write(context, this.tokens[i], edge - 4, y, 0, i === marked[1]);
    }
    context.textAlign = "left";
    for (const [i, x] of this.labelled(cell[0], matrix.keys, marked[0])) {
      this.write(context, this.key(i), x, edge - 4, -Math.PI / 2, i === marked[0]);
    }
    if (!view.at || marked[0] < 0 || marked[0] >= matrix.keys || marked[1] >= matrix.queries) return;
    const [x, y] = marked.map((number, axis) => edge + number * cell[axis]);
    const [w, h] = cell.map((one) => Math.max(one, 4));
    context.lineWidth = 2;
    context.strokeRect(x, y, w, h);
    context.strokeStyle = style.backgroundColor;
    context.lineWidth = 1;
    context.strokeRect(x - 1.5, y - 1.5, w + 3, h + 3);
  }

  /** The rows or columns whose label has room, [number, middle in pixels]; the marked one has. */
  labelled(cell, count, marked) {
    const every = Math.ceil((LABEL + 1) / cell);
    const has = (i) => i === marked || (i % every === 0 && !(Math.abs(i - marked) < every));
    return Array.from({ length: count }, (_, i) => [i, this.place.edge + (i + 0.5) * cell]).filter(([i]) => has(i));
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
    const query = Math.floor((event.offsetY - place.edge) / place.tall * matrix.queries);
    const column = Math.floor((event.offsetX - place.edge) / place.side * matrix.keys);
    if (query < 0 || column < 0 || query >= matrix.queries || column >= matrix.keys) return;
    const key = column - this.offset;
    if (query !== view.at?.query || key !== view.at?.key) view.mark(query, key);
  }

  /** Go to the next token with an arrow key; the marked pair stays in sight. */
  press(event) {
    const { view, matrix, offset, place } = this;
    const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    if (!step || event.ctrlKey || event.altKey || event.metaKey) return;
    event.preventDefault();
    const from = view.at ?? { query: -step[0], key: -step[1] };
    const query = Math.min(Math.max(from.query + step[0], 0), matrix.queries - 1);
    const column = Math.min(Math.max(from.key + offset + step[1], 0), matrix.keys - 1);
    view.mark(query, column - offset);
    const box = this.canvas.parentElement;
    box.scrollLeft = place.edge + place.side * column / matrix.keys - box.clientWidth / 2;
  }
}
