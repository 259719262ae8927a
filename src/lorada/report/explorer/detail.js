"use strict";
/* One head in detail: its matrices side by side, for each run. */

const PICTURES = {
  map: "softmax, map and sum",
  adapter: "softmax with the adapter and without it",
};

/**
 * The three pictures of a head: [{title, text, matrix, signed, most}].
 *
 * @param layer of the run that is shown
 * @param head its number
 * @param which a key of PICTURES; layers without a map have only "adapter"
 * @param same the same layer in all runs and steps, which share the scale of colours
 */
async function picturesOf(layer, head, which, same) {
  const largest = (size) => Math.max(...same.map(size));
  const softmax = {
    title: "Softmax", matrix: await matrixOf(layer.softmax, head), signed: false,
    most: largest((one) => Math.max(one.softmax.scale, one.without.scale)),
    text: "The softmax with the adapter on: how much each token (left) looks at each other (top).",
  };
  if (which === "map" && layer.map) {
    const map = await matrixOf(layer.map, head);
    const sum = layer.inside ? await matrixOf(layer.fused, head) : together(softmax.matrix, map, 1);
    return [softmax, {
      title: "Map", matrix: map, signed: true, most: largest((one) => one.map?.scale ?? 0),
      text: "The map, as it is added: blue adds to what a token takes from another, orange subtracts.",
    }, {
      title: layer.inside ? "Softmax with the map inside" : "Sum", matrix: sum, signed: true,
      most: largest((one) => one.fused?.scale ?? one.softmax.scale + (one.map?.scale ?? 0)),
      text: layer.inside
        ? "The map is added before the softmax here, so that no entry is below 0."
        : "Softmax plus map: the weights with which the head mixes the values. Orange is below 0.",
    }];
  }
  const without = await matrixOf(layer.without, head);
  const difference = together(softmax.matrix, without, -1);
  return [{ ...softmax, title: "With the adapter" }, {
    ...softmax, title: "Without the adapter", matrix: without,
    text: "The softmax of the model as it was before training.",
  }, {
    title: "Difference", matrix: difference, signed: true,
    most: difference.values.reduce((most, value) => Math.max(most, Math.abs(value)), 0),
    text: "With minus without: blue where the adapter makes a token look more, orange where less.",
  }];
}

/** A line that says what two tokens have to do with each other in a run's pictures. */
function pairLine(pictures, at) {
  const [first] = pictures;
  const column = at.key + first.offset;
  if (at.query >= first.matrix.queries || column < 0 || column >= first.matrix.keys) return [];
  const numbers = pictures.map((one) => `${one.title.toLowerCase()} ${number(one.value(at.query, at.key))}`);
  return ["“", quoted(first.tokens[at.query]), `” (${at.query}) looks at “`, quoted(first.key(column)),
    `” (${at.key}): ${numbers.join(" · ")}`];
}

/** The pictures of one run and the line below them. */
class RunDetail {
  constructor(heading, pictures, tokens, view) {
    this.line = element("p", { class: "readout", "aria-live": "polite" });
    this.pictures = pictures.map((one) => new MatrixPicture({ ...one, tokens, view }));
    const figures = this.pictures.map((picture, i) => element("figure", { class: "matrix" },
      element("h4", {}, picture.title), picture.canvas, entryLegend(picture.most, picture.signed),
      element("figcaption", {}, pictures[i].text)));
    this.element = element("div", { class: "run" },
      heading, this.line, element("div", { class: "matrices" }, ...figures));
  }

  tell(at) {
    this.line.replaceChildren(...(at ? pairLine(this.pictures, at)
      : ["Point at a square, or go to it with the arrow keys, to read its numbers."]));
  }
}
