// Every element of the page is made here. Text is set as text and never parsed, so a name cannot become markup.

const byId = (id) => document.getElementById(id);

const ABSENT = new Set([null, undefined, false, ""]);

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") element.addEventListener(name.slice(2), value);
    else if (name.startsWith("aria-") ? value !== null : !ABSENT.has(value)) element.setAttribute(name, value === true && !name.startsWith("aria-") ? "" : String(value));
  }
  element.append(...children.flat().filter((child) => !ABSENT.has(child)));
  return element;
}

function el(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

function svg(tag, attributes = {}, ...children) {
  return fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
}

const ruler = document.createElement("canvas").getContext("2d");

function most(length, fits) {
  let [low, high] = [0, length];
  while (low < high) {
    const middle = Math.ceil((low + high) / 2);
    if (fits(middle)) low = middle;
    else high = middle - 1;
  }
  return low;
}

const narrower = (width, font) => {
  ruler.font = font;
  return (text) => ruler.measureText(text).width <= width;
};

// A text in one line of a width in pixels; one that is too long loses its middle, since names often differ in their ends.
function line(text, width, font) {
  const fits = narrower(width, font);
  if (fits(text)) return text;
  const letters = Array.from(text);
  const tail = letters.slice(-8).join("").trimStart();
  return letters.slice(0, most(Math.min(letters.length - 8, 200), (end) => fits(`${letters.slice(0, end).join("")}…${tail}`))).join("").trimEnd() + "…" + tail;
}

// A text in two lines at most; what does not fit ends in an ellipsis.
function twoLines(text, width, font) {
  const fits = narrower(width, font);
  if (fits(text)) return [text];
  const letters = Array.from(text);
  const end = Math.max(1, most(Math.min(letters.length, 200), (length) => fits(letters.slice(0, length).join(""))));
  const space = letters.slice(0, end + 1).lastIndexOf(" ");
  const cut = space > 0 ? space : end;
  const rest = Array.from(letters.slice(cut).join("").trimStart());
  const second = fits(rest.join("")) ? rest : [...rest.slice(0, most(Math.min(rest.length, 200), (length) => fits(`${rest.slice(0, length).join("")}…`))), "…"];
  return [letters.slice(0, cut).join(""), second.join("")];
}

const count = (number, [one, many]) => `${number} ${number === 1 ? one : many}`;
const when = (ms) => (ms ? new Date(ms).toLocaleString(undefined, { dateStyle: "medium", timeStyle: "short" }) : "");
