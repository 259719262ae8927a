"use strict";
/* Elements, numbers, texts of tokens and colours. */

/** An element; children that are text stay text. */
function element(tag, attributes = {}, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

/** The same for parts of an SVG picture. */
function drawn(tag, attributes = {}, ...children) {
  return filled(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
}

function filled(made, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

/** Three digits, with a real minus sign. */
function number(value) {
  if (value === 0) return "0";
  const size = Math.abs(value);
  const text = size < 1e-3 || size >= 1e5
    ? size.toExponential(2).replace("e-", "e−").replace("e+", "e")
    : String(Number(size.toPrecision(3)));
  return value < 0 ? `−${text}` : text;
}

function percent(share) {
  return `${(100 * share).toFixed(1)} %`;
}

// What cannot be seen or turns the direction of text: controls, line ends, bidirectional marks.
const UNSEEN = /[\u0000-\u001f\u007f-\u00a0\u00ad\u061c\u200b\u200c\u200e\u200f\u2028-\u202f\u2060-\u206f\ufeff]/g;
const SIGNS = { "\n": "⏎", "\r": "␍", "\t": "⇥" };

/** A text with signs for unseen characters. */
function visible(text) {
  return text.replace(UNSEEN, (one) => SIGNS[one] ?? `\\u${one.charCodeAt(0).toString(16).padStart(4, "0")}`);
}

/** At most so many characters of a text. */
function cut(text, most) {
  const letters = [...text];
  return letters.length > most ? `${letters.slice(0, most - 1).join("")}…` : letters.join("");
}

/** A token as it can be seen, blanks as signs too: at most so many characters of it. */
function short(token, most = 12) {
  return token === "" ? "(empty)" : cut(visible(token.replaceAll(" ", "␣")), most);
}

/** A token for reading in a line of text; its direction does not reach beyond it. */
function quoted(token) {
  return element("bdi", { class: "token" }, short(token, 30));
}

/* Colours. Blue and orange differ for every kind of colour vision; lightness alone tells sizes. */

const STOPS = {
  light: {
    above: [[250, 250, 250], [180, 209, 235], [94, 158, 204], [24, 100, 170], [6, 40, 92]],
    below: [[250, 250, 250], [253, 208, 150], [236, 140, 40], [178, 84, 8], [92, 40, 4]],
  },
  dark: {
    above: [[30, 33, 38], [24, 72, 120], [40, 116, 182], [112, 178, 228], [226, 241, 252]],
    below: [[30, 33, 38], [104, 56, 14], [190, 98, 16], [246, 160, 72], [255, 232, 200]],
  },
};

function theme() {
  return matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
}

/** [red, green, blue] at a place from 0 to 1 on a scale of colours. */
function colourAt(stops, place) {
  const on = Math.min(Math.max(place, 0), 1) * (stops.length - 1);
  const from = Math.min(Math.floor(on), stops.length - 2);
  return stops[from].map((part, i) => Math.round(part + (on - from) * (stops[from + 1][i] - part)));
}

/** The colour of a share, or of a size between two ends. */
function shareColour(value, low, high) {
  return `rgb(${colourAt(STOPS[theme()].above, high > low ? (value - low) / (high - low) : 0)})`;
}

const LEAST = 0.15; // how far from the colour of 0 the smallest values are

/**
 * The colour of a matrix' entry. It grows with the square root, so that small entries can be seen
 * beside large ones; whatever is above 0 is bluish, whatever is below 0 is orange.
 */
function entryColour(value, most) {
  const stops = STOPS[theme()];
  if (!value || !most) return stops.above[0];
  const place = LEAST + (1 - LEAST) * Math.sqrt(Math.abs(value) / most);
  return colourAt(value > 0 ? stops.above : stops.below, place);
}

/** A strip of colours with the numbers at its ends and in its middle. */
function legend(colours, labels) {
  const strip = element("span", { class: "strip", "aria-hidden": "true" });
  strip.style.background = `linear-gradient(to right, ${colours.join(", ")})`;
  return element("div", { class: "legend" }, strip,
    element("span", { class: "ends" }, ...labels.map((label) => element("span", {}, label))));
}

/** The legend of matrices whose largest absolute entry is ``most``. */
function entryLegend(most, signed) {
  const places = Array.from({ length: 21 }, (_, i) => signed ? i / 10 - 1 : i / 20);
  const colours = places.map((at) => `rgb(${entryColour(Math.sign(at) * at * at * most, most)})`);
  const labels = signed ? [-most, 0, most] : [0, most / 4, most];
  return legend(colours, labels.map(number));
}
