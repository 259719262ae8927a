"use strict";
/* Unpacks matrices and draws them, with a part of them in view and a pair of tokens marked. */

const unpackedBefore = new Map();
const KEPT = 40;

/** The int16 numbers of all heads, (H, T, K); the last few are kept. */
function wholeNumbers(at) {
  if (!unpackedBefore.has(at)) {
    unpackedBefore.set(at, inflate(document.getElementById(`packed-${at}`).textContent));
    if (unpackedBefore.size > KEPT) unpackedBefore.delete(unpackedBefore.keys().next().value);
  }
  return unpackedBefore.get(at);
}

async function inflate(base64) {
  const text = atob(base64);
  const bytes = Uint8Array.from(text, (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate-raw"));
  return new Int16Array(await new Response(stream).arrayBuffer());
}

/** The matrix of one head. A layer with fewer maps than heads repeats them. */
async function matrixOf(packed, head) {
  const [heads, queries, keys] = packed.shape;
  const whole = await wholeNumbers(packed.at);
  const from = (head % heads) * queries * keys;
  const values = Float64Array.from(whole.subarray(from, from + queries * keys));
  for (let i = 0; i < values.length; i++) values[i] *= packed.scale / 32767;
  return { values, queries, keys };
}

/** Two matrices together, entry by entry. */
function together(a, b, sign) {
  return { ...a, values: a.values.map((value, i) => value + sign * b.values[i]) };
}

/**
 * What several pictures show together: the part in view and the marked pair.
 *
 * ``left`` and ``top`` are shares of the matrix from 0 to 1; its 1/zoom is in view. Keys count from
 * the first token, so that what a prefix adds has numbers below 0.
 */
class View {
  constructor(onChange) {
    Object.assign(this, { zoom: 1, left: 0, top: 0, at: null, pictures: [], onChange });
  }

  changed() {
    const most = 1 - 1 / this.zoom;
    this.left = Math.min(Math.max(this.left, 0), most);
    this.top = Math.min(Math.max(this.top, 0), most);
    for (const picture of this.pictures) picture.draw();
    this.onChange(this);
  }

  /** Zoom by a factor about the marked pair, else about the middle of what is seen. */
  zoomBy(factor) {
    const most = Math.max(1, ...this.pictures.map((one) => one.matrix.queries / 6));
    const zoom = Math.min(Math.max(this.zoom * factor, 1), most);
    const [first] = this.pictures;
    const [x, y] = this.at ? first.middle(this.at) : [this.left + 0.5 / this.zoom, this.top + 0.5 / this.zoom];
    Object.assign(this, { zoom, left: x - 0.5 / zoom, top: y - 0.5 / zoom });
    this.changed();
  }

  whole() {
    Object.assign(this, { zoom: 1, left: 0, top: 0 });
    this.changed();
  }

  mark(query, key) {
    this.at = { query, key };
    this.changed();
  }

  /** Bring the marked pair, at these shares of a matrix, into view. */
  follow(x, y, width, height) {
    const seenShare = 1 / this.zoom;
    this.left = Math.max(Math.min(this.left, x), x + width - seenShare);
    this.top = Math.max(Math.min(this.top, y), y + height - seenShare);
  }
}

const LABEL = 11; // size of the tokens' labels in pixels
const FONT = `${LABEL}px system-ui, "Liberation Sans", Arial, sans-serif`;

/** One matrix on a canvas with its tokens at the edges. */
class MatrixPicture {
  /**
   * @param title of the picture
   * @param matrix {values, queries, keys}
   * @param tokens of the sentence
   * @param most the largest absolute value of the scale of colours
   * @param view shared with other pictures
   */
  constructor({ title, matrix, tokens, most, view, signed }) {
    Object.assign(this, { title, matrix, most, view, signed });
    this.offset = Math.max(0, matrix.keys - matrix.queries);
    const fits = tokens.length === matrix.queries;
    this.tokens = fits ? tokens : Array.from({ length: matrix.queries }, (_, i) => `token ${i}`);
    this.canvas = element("canvas", {
      tabindex: "0", role: "application", "aria-roledescription": "matrix",
      "aria-label": `${title}: ${matrix.queries} by ${matrix.keys} tokens. Arrow keys go from token `
        + "to token, plus and minus zoom, 0 shows all.",
    });
    this.listen();
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
    const { canvas, matrix, view } = this;
    const width = canvas.clientWidth;
    if (!width) return;
    const context = canvas.getContext("2d");
    context.font = FONT;
    const names = [...this.tokens, ...(this.offset ? [this.key(0)] : [])].map((one) => short(one));
    const edge = Math.min(Math.max(...names.map((one) => context.measureText(one).width)) + 14, width / 4);
    const side = width - edge - 1;
    const place = { edge, side, tall: Math.min(side * matrix.queries / matrix.keys, side) };
    this.place = place;
    const ratio = devicePixelRatio || 1;
    const height = Math.round(edge + place.tall + 1);
    canvas.style.height = `${height}px`;
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
    context.scale(ratio, ratio);
    context.imageSmoothingEnabled = false;
    const [wide, high] = [matrix.keys / view.zoom, matrix.queries / view.zoom];
    context.drawImage(this.image(), view.left * matrix.keys, view.top * matrix.queries, wide, high,
      edge, edge, side, place.tall);
    this.drawEdges(context, wide, high);
    canvas.style.touchAction = view.zoom > 1 ? "pinch-zoom" : "manipulation";
  }

  /** The matrix with one pixel an entry. */
  image() {
    if (this.painted?.theme === theme()) return this.painted.canvas;
    const { values, queries, keys } = this.matrix;
    const canvas = element("canvas", { width: keys, height: queries });
    const context = canvas.getContext("2d");
    const pixels = context.createImageData(keys, queries);
    const steps = 1024;
    const colours = Array.from({ length: 2 * steps + 1 },
      (_, i) => entryColour(Math.sign(i - steps) * ((i - steps) / steps) ** 2, 1));
    for (let i = 0; i < values.length; i++) {
      const size = Math.min(Math.sqrt(Math.abs(values[i]) / (this.most || 1)), 1);
      const at = values[i] ? Math.sign(values[i]) * Math.max(1, Math.round(size * steps)) : 0;
      pixels.data.set(colours[steps + at], 4 * i);
      pixels.data[4 * i + 3] = 255;
    }
    context.putImageData(pixels, 0, 0);
    this.painted = { theme: theme(), canvas };
    return canvas;
  }

  /** The frame, the tokens' labels and the marked pair; ``wide`` by ``high`` entries are in view. */
  drawEdges(context, wide, high) {
    const { matrix, view, place } = this;
    const { edge, side, tall } = place;
    const style = getComputedStyle(document.body);
    const cell = [side / wide, tall / high];
    const from = [view.left * matrix.keys, view.top * matrix.queries];
    const marked = view.at ? [view.at.key + this.offset, view.at.query] : [];
    context.strokeStyle = context.fillStyle = style.color;
    context.globalAlpha = 0.35;
    context.strokeRect(edge - 0.5, edge - 0.5, side + 1, tall + 1);
    context.globalAlpha = 1;
    context.direction = "ltr";
    context.textBaseline = "middle";
    context.textAlign = "right";
    for (const [i, y] of this.labelled(from[1], cell[1], tall, marked[1])) {
      this.write(context, this.tokens[i], edge - 4, y, 0, i === marked[1]);
    }
    context.textAlign = "left";
    for (const [i, x] of this.labelled(from[0], cell[0], side, marked[0])) {
      this.write(context, this.key(i), x, edge - 4, -Math.PI / 2, i === marked[0]);
    }
    if (!view.at) return;
    const [x, y] = [0, 1].map((axis) => edge + (marked[axis] - from[axis]) * cell[axis]);
    if (x < edge - 1 || y < edge - 1 || x > edge + side || y > edge + tall) return;
    const [w, h] = cell.map((one) => Math.max(one, 4));
    context.lineWidth = 2;
    context.strokeRect(x, y, w, h);
    context.strokeStyle = style.backgroundColor;
    context.lineWidth = 1;
    context.strokeRect(x - 1.5, y - 1.5, w + 3, h + 3);
  }

  /** The rows or columns whose label has room, [number, middle in pixels]; the marked one has. */
  labelled(from, cell, length, marked) {
    const every = Math.ceil((LABEL + 1) / cell);
    const found = [];
    for (let i = Math.max(Math.ceil(from - 0.5), 0); (i + 0.5 - from) * cell < length; i++) {
      const near = marked !== undefined && Math.abs(i - marked) < every;
      if (i === marked || (i % every === 0 && !near)) found.push([i, this.place.edge + (i + 0.5 - from) * cell]);
    }
    return found;
  }

  write(context, token, x, y, angle, bold) {
    context.font = `${bold ? "bold " : ""}${FONT}`;
    context.save();
    context.translate(x, y);
    context.rotate(angle);
    context.fillText(short(token), 0, 0, this.place.edge - 6);
    context.restore();
  }

  /** The pair of tokens under a place of the canvas, or null. */
  under(event) {
    const { matrix, view, place } = this;
    const x = (event.offsetX - place.edge) / place.side;
    const y = (event.offsetY - place.edge) / place.tall;
    if (x < 0 || y < 0 || x >= 1 || y >= 1) return null;
    const query = Math.floor((view.top + y / view.zoom) * matrix.queries);
    const column = Math.floor((view.left + x / view.zoom) * matrix.keys);
    return { query, key: column - this.offset };
  }

  /** The middle of an entry, as shares of the matrix. */
  middle(at) {
    return [(at.key + this.offset + 0.5) / this.matrix.keys, (at.query + 0.5) / this.matrix.queries];
  }

  listen() {
    const { canvas, view } = this;
    let held = null; // where the pointer that is pressed was last
    canvas.addEventListener("pointerdown", (event) => {
      this.mark(event);
      held = [event.offsetX, event.offsetY];
      canvas.setPointerCapture(event.pointerId);
    });
    canvas.addEventListener("pointermove", (event) => {
      if (!held || view.zoom === 1) return this.mark(event);
      view.left -= (event.offsetX - held[0]) / this.place.side / view.zoom;
      view.top -= (event.offsetY - held[1]) / this.place.tall / view.zoom;
      held = [event.offsetX, event.offsetY];
      return view.changed();
    });
    for (const end of ["pointerup", "pointercancel"]) canvas.addEventListener(end, () => { held = null; });
    canvas.addEventListener("keydown", (event) => {
      if (!event.ctrlKey && !event.altKey && !event.metaKey && this.press(event.key)) event.preventDefault();
    });
  }

  mark(event) {
    const at = this.under(event);
    if (at && (at.query !== this.view.at?.query || at.key !== this.view.at?.key)) this.view.mark(at.query, at.key);
  }

  /** Do what a key asks for; whether it is one of ours. */
  press(key) {
    const { view, matrix, offset } = this;
    const steps = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
    if (key === "+" || key === "=") view.zoomBy(2);
    else if (key === "-") view.zoomBy(0.5);
    else if (key === "0") view.whole();
    else if (key in steps) {
      const from = view.at ?? { query: -steps[key][0], key: -steps[key][1] };
      const query = Math.min(Math.max(from.query + steps[key][0], 0), matrix.queries - 1);
      const column = Math.min(Math.max(from.key + offset + steps[key][1], 0), matrix.keys - 1);
      const cell = [1 / matrix.keys, 1 / matrix.queries];
      view.follow(column * cell[0], query * cell[1], ...cell);
      view.mark(query, column - offset);
    } else return false;
    return true;
  }
}
