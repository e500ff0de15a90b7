// Texts that fit: into a line, into two, into the reader's language.

const LONGEST_LINE = 200;
const ruler = document.createElement("canvas").getContext("2d");

// The greatest length up to a limit that fits, by bisection.
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
  const shortened = (end) => `${letters.slice(0, end).join("").trimEnd()}…${tail}`;
  return shortened(most(Math.min(letters.length - 8, LONGEST_LINE), (end) => fits(shortened(end))));
}

// A text in two lines at most; what does not fit ends in an ellipsis.
function twoLines(text, width, font) {
  const fits = narrower(width, font);
  if (fits(text)) return [text];
  const letters = Array.from(text);
  const first = Math.max(
    1,
    most(Math.min(letters.length, LONGEST_LINE), (end) => fits(letters.slice(0, end).join(""))),
  );
  const space = letters.slice(0, first + 1).lastIndexOf(" ");
  const cut = space > 0 ? space : first;
  const rest = letters.slice(cut).join("").trimStart();
  if (fits(rest)) return [letters.slice(0, cut).join(""), rest];
  const others = Array.from(rest);
  const shortened = (end) => `${others.slice(0, end).join("").trimEnd()}…`;
  return [letters.slice(0, cut).join(""), shortened(most(Math.min(others.length, LONGEST_LINE), (end) => fits(shortened(end))))];
}

const count = (number, [one, many]) => `${number} ${number === 1 ? one : many}`;
const when = (ms) => (ms ? new Date(ms).toLocaleString(undefined, { dateStyle: "medium", timeStyle: "short" }) : "");
const percent = (confidence) => `${Math.round(100 * confidence)} %`;
