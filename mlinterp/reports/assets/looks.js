// How kinds and states look: a shape for each kind; a colour and a glyph for each state, so that colour is never alone.

const KINDS = new Map([
  ["hypothesis", ["hypothesis", "hypotheses"]],
  ["run", ["run", "runs"]],
  ["sae", ["SAE", "SAEs"]],
  ["trace", ["trace", "traces"]],
  ["subject", ["subject", "subjects"]],
  ["study", ["study", "studies"]],
  ["sweep", ["sweep", "sweeps"]],
]);

const VERDICTS = ["supports", "refutes", "inconclusive"];

const TICK = "M-3.6.4l2.5 2.5 4.7-5.6";
const CROSS = "M-3-3l6 6M3-3l-6 6";
const GLYPHS = new Map([
  ["supports", TICK],
  ["supported", TICK],
  ["refutes", CROSS],
  ["refuted", CROSS],
  ["inconclusive", "M-2-1.9a2.1 2.1 0 1 1 3 1.9Q0 .6 0 1.5M0 3.9v.1"],
  ["proposed", "M0-3a3 3 0 1 0 .01 0z"],
  ["testing", "M-3.2 0h.01M0 0h.01M3.2 0h.01"],
  ["superseded", "M-3.6 0h7M.8-2.8L3.6 0 .8 2.8"],
  ["finished", "M0 0h.01"],
  ["failed", "M0-3.8v4.4M0 3.6v.1"],
  ["killed", "M-2.3-2.3h4.6v4.6h-4.6z"],
  ["running", "M-1.6-3v6L3 0z"],
]);

const stateClass = (state) => (GLYPHS.has(state) ? `state-${state}` : "state-other");
const kindName = (kind) => (KINDS.get(kind) ?? ["node"])[0];

function glyph(state) {
  return svg(
    "g",
    { class: `glyph ${stateClass(state)}`, "aria-hidden": "true" },
    svg("circle", { r: 8 }),
    svg("path", { d: GLYPHS.get(state) ?? "M-3 0h6" }),
  );
}

// The outline of a node of a kind, its upper left corner at (0, 0).
function outline(kind, width, height) {
  const round = (r) => {
    const corner = (x, y) => `a${r} ${r} 0 0 1 ${x} ${y}`;
    return `M${r} 0H${width - r}${corner(r, r)}V${height - r}${corner(-r, r)}H${r}${corner(-r, -r)}V${r}${corner(r, -r)}z`;
  };
  const slant = height / 4;
  switch (kind) {
    case "hypothesis":
      return round(Math.min(10, height / 3));
    case "subject":
      return round(height / 2);
    case "sae":
      return `M${slant} 0H${width - slant}L${width} ${height / 2} ${width - slant} ${height}H${slant}L0 ${height / 2}z`;
    case "trace":
      return `M${slant} 0H${width}L${width - slant} ${height}H0z`;
    case "study":
      return `M0 0H${width * 0.36}l${height / 8} ${height / 8}H${width}V${height}H0z`;
    default:
      return round(Math.min(3, height / 5));
  }
}

function shape(kind, width, height) {
  const body = svg("path", { class: "body", d: outline(kind, width, height) });
  if (kind !== "sweep") return [body];
  const edge = (by) => svg("path", { class: "sheet", d: `M${by} ${height}v${by}H${width + by}V${by}h-${by}` });
  return [edge(height / 8), edge(height / 16), body];
}

// A small picture for lists: the shape of a kind, or the glyph of a state.
function icon(kind, state) {
  const inside = kind
    ? svg("g", { class: `node ${state ? stateClass(state) : ""}`, transform: "translate(1 3)" }, shape(kind, 17, 11))
    : svg("g", { transform: "translate(10 8.5)" }, glyph(state));
  return svg("svg", { class: "icon", width: 20, height: 17, viewBox: "0 0 20 17", "aria-hidden": "true" }, inside);
}

const hasConfidence = (node) => typeof node.confidence === "number";

function confidenceBar(confidence) {
  const bar = el("span", { class: "bar" }, el("i"));
  bar.firstChild.style.width = `${100 * confidence}%`;
  return bar;
}
