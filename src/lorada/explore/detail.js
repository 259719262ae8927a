"use strict";
/* One head in detail: its matrices side by side. */

/** The pictures of a head of a layer: [{title, text, matrix, signed, most}]. */
async function picturesOf(layer, head) {
  const most = Math.max(layer.softmax.scale, layer.without.scale);
  const softmax = await matrixOf(layer.softmax, head);
  const without = await matrixOf(layer.without, head);
  const difference = together(softmax, without, -1);
  const found = [{
    title: "Softmax", matrix: softmax, signed: false, most,
    text: "The softmax with the adapter on: how much each token (left) looks at each other (top).",
  }];
  if (layer.map) {
    const map = await matrixOf(layer.map, head);
    found.push({
      title: "Map", matrix: map, signed: true, most: layer.map.scale,
      text: "The map, as it is added: blue adds to what a token takes from another, orange subtracts.",
    }, {
      title: layer.inside ? "Softmax with the map inside" : "Sum", signed: true,
      matrix: layer.inside ? await matrixOf(layer.fused, head) : together(softmax, map, 1),
      most: layer.fused?.scale ?? layer.softmax.scale + layer.map.scale,
      text: layer.inside
        ? "The map is added before the softmax here, so that no entry is below 0."
        : "Softmax plus map: the weights with which the head mixes the values. Orange is below 0.",
    });
  }
  return [...found, {
    title: "Without the adapter", matrix: without, signed: false, most,
    text: "The softmax of the model as it was before training.",
  }, {
    title: "Difference", matrix: difference, signed: true,
    most: difference.values.reduce((most, value) => Math.max(most, Math.abs(value)), 0),
    text: "Softmax with the adapter minus without: blue where it makes a token look more, orange where less.",
  }];
}

/** A line that says what two tokens have to do with each other in the pictures. */
function pairLine(pictures, at) {
  const [first] = pictures;
  const numbers = pictures.map((one) => `${one.title.toLowerCase()} ${number(one.value(at.query, at.key))}`);
  return ["“", quoted(first.tokens[at.query]), `” (${at.query}) looks at “`, quoted(first.tokens[at.key]),
    `” (${at.key}): ${numbers.join(" · ")}`];
}

/** The pictures of a head and the line above them, which ``tell`` fills. */
function headDetail(pictures, tokens, view) {
  const line = element("p", { class: "readout", "aria-live": "polite" });
  const made = pictures.map((one) => new MatrixPicture({ ...one, tokens, view }));
  const figures = made.map((picture, i) => element("figure", { class: "matrix" },
    element("h4", {}, picture.title), picture.canvas, entryLegend(picture.most, picture.signed),
    element("figcaption", {}, pictures[i].text)));
  const tell = (at) => line.replaceChildren(...(at ? pairLine(made, at)
    : ["Point at a square, or go to it with the arrow keys, to read its numbers."]));
  return { tell, element: element("div", {}, line, element("div", { class: "matrices" }, ...figures)) };
}
