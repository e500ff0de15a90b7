// Tokens with their activations: text stays text, what cannot be seen is drawn as a sign.

const SIGNS = new Map([
  ["\n", "⏎"],
  ["\t", "⇥"],
  ["\r", "␍"],
]);
const BEFORE = 46; // letters to the left of the token that a line is about
const AFTER = 90; // and from it on

// A token's text for a running line: signs for what would break it, everything else as it is.
function pieces(text, breaks) {
  const sign = (part) => [el("i", { class: "sign" }, SIGNS.get(part)), breaks && part === "\n" && el("br")];
  return text.split(/([\n\t\r])/).map((part) => (SIGNS.has(part) ? sign(part) : part));
}

// A token by itself: its spaces are drawn too, since they are part of it.
function alone(model, token) {
  if (token < 0) return el("i", { class: "sign" }, token === PREFIX ? "prefix" : "padding");
  if (model.sets) return el("bdi", { class: "word" }, model.vocabulary[token]); // names of its members, whose spaces mean nothing
  const parts = model.vocabulary[token].split(/( +|\n+|\t+|\r+)/).filter(Boolean);
  const blank = (part) => (SIGNS.get(part[0]) ?? "␣") + (part.length > 1 ? `×${part.length}` : "");
  const drawn = parts.map((part) => (/^[ \n\t\r]/.test(part) ? el("i", { class: "sign" }, blank(part)) : part));
  return el("bdi", { class: "word" }, drawn.length ? drawn : el("i", { class: "sign" }, "empty"));
}

// One place of a context. Its activation, as a share of the latent's largest, is the strength of the colour behind it.
function place(model, card, context, at, ...inside) {
  const act = context.acts.get(at) ?? 0;
  const unread = context.isUnread(at);
  const span = el("span", {
    class: ["token", act > 0 && "on", unread && "unread", at === context.position && "peak"].filter(Boolean).join(" "),
    "data-at": String(at),
  });
  if (act > 0) span.style.setProperty("--act", Math.max(0.06, Math.min(1, act / card.max)).toFixed(3));
  fill(span, {}, inside);
  span.facts = () => describe(model, context, at, act, unread);
  return span;
}

function running(model, card, context, at, breaks = false) {
  const token = tokenAt(context.text, at);
  const inside =
    token >= 0 ? pieces(model.vocabulary[token], breaks) : el("i", { class: "sign" }, token === PREFIX ? `[prefix ${at}]` : "[padding]");
  return place(model, card, context, at, inside);
}

// What the tip says about a place.
function describe(model, context, at, act, unread) {
  const token = tokenAt(context.text, at);
  const answer = answerAt(context.text, at);
  const where = model.grid ? `row ${Math.floor(at / model.grid[0]) + 1}, column ${(at % model.grid[0]) + 1}` : `position ${at}`;
  return [
    el("b", {}, unread ? "not read by the SAE" : act > 0 ? `activation ${short(act)}` : "inactive"),
    el("span", {}, alone(model, token)),
    answer >= 0 && el("span", {}, "answer ", alone(model, answer)),
    el("span", { class: "muted" }, at < 0 ? `prefix row ${at}` : where),
    el("span", { class: "muted name" }, [context.text.name, context.evaluation].filter(Boolean).join(" · ")),
  ];
}

// A context in one line, the token that it is about at the same place in every line.
function line(model, card, context) {
  const { text, position } = context;
  const length = (at) => {
    const token = tokenAt(text, at);
    return token >= 0 ? model.vocabulary[token].length : 2;
  };
  const last = text.start + text.tokens.length - 1;
  let [first, end] = [position, position];
  for (let room = BEFORE; first > text.start && room > 0; room -= length(first)) first -= 1;
  for (let room = AFTER; end < last && room > 0; room -= length(end)) end += 1;
  const spans = (from, to) => Array.from({ length: to - from + 1 }, (_, index) => running(model, card, context, from + index));
  return [
    el("span", { class: "left" }, el("span", {}, first > text.start || text.before ? "…" : "", spans(first, position - 1))),
    el("span", { class: "right" }, spans(position, end), end < last || text.after ? "…" : ""),
  ];
}

// A context as a whole, lines broken where the text breaks them.
function wholeText(model, card, context) {
  const { text } = context;
  const spans = text.tokens.map((_, index) => running(model, card, context, text.start + index, true));
  const more = (number, where) => (number ? [el("i", { class: "cut" }, `${whole(number)} more ${where}`)] : []);
  return [...more(text.before, "before"), ...spans, ...more(text.after, "after")];
}

// A context as a grid: clues as they are given, blank cells with their answer.
function tile(model, card, context) {
  const [columns, boxRows, boxColumns] = model.grid;
  const { text } = context;
  const cells = text.tokens.flatMap((token, index) => {
    const at = text.start + index;
    if (at < 0) return [];
    const answer = answerAt(text, at);
    const given = token >= 0 && (answer < 0 || answer === token);
    const word = el("span", { class: given ? "given" : "asked" }, model.vocabulary[given ? token : answer] ?? "");
    const cell = place(model, card, context, at, word);
    if (boxColumns && (at % columns) % boxColumns === 0 && at % columns) cell.classList.add("box-left");
    if (boxRows && Math.floor(at / columns) % boxRows === 0 && at >= columns) cell.classList.add("box-top");
    return [cell];
  });
  const grid = el("div", { class: "grid" }, cells);
  grid.style.setProperty("--columns", String(columns));
  const about = [context.evaluation && el("span", {}, context.evaluation), el("span", { class: "name" }, text.name)];
  return el("figure", { class: "tile" }, grid, el("figcaption", {}, el("b", {}, short(context.acts.get(context.position) ?? 0)), about));
}
