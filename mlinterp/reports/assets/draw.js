// The graph as SVG: a card for each node, an arrow for each edge.

const edgeClass = ({ kind, label, uncounted }) =>
  ["edge", kind, kind === "evidence" && VERDICTS.includes(label) && label, uncounted && "uncounted"].filter(Boolean).join(" ");
const arrowOf = ({ kind, label }) => (kind !== "evidence" ? kind : VERDICTS.includes(label) ? label : "input");
const fonts = () => {
  const family = getComputedStyle(document.body).fontFamily;
  return { title: `600 12px ${family}`, claim: `12px ${family}`, small: `11px ${family}` };
};

function arrowHeads() {
  const head = (name) =>
    svg(
      "marker",
      {
        id: `arrow-${name}`,
        class: `arrow ${name}`,
        viewBox: "0 0 8 8",
        refX: 7,
        refY: 4,
        markerWidth: 7,
        markerHeight: 7,
        markerUnits: "userSpaceOnUse",
        orient: "auto",
      },
      svg("path", { d: "M0 .6L8 4 0 7.4z" }),
    );
  return svg("defs", {}, ["refines", "input", "contains", ...VERDICTS].map(head));
}

function drawGraph(stage, graph, placed) {
  const font = fonts();
  const edges = placed.edges.map(({ edge, points }) => {
    const path = svg("path", { class: edgeClass(edge), d: curve(points), "marker-end": `url(#arrow-${arrowOf(edge)})` });
    return { edge, path };
  });
  const nodes = new Map();
  for (const [id, { node, members }] of graph.nodes) nodes.set(id, drawNode(node, members, graph.open.has(id), placed.nodes.get(id), font));
  stage.replaceChildren(
    svg(
      "g",
      { class: "edges", "aria-hidden": "true" },
      edges.map(({ path }) => path),
    ),
    svg("g", { class: "nodes" }, [...nodes.values()]),
  );
  return { nodes, edges };
}

function describe(node, members) {
  const parts = [kindName(node.kind), node.kind === "hypothesis" ? node.id : "", node.title, node.state, node.standing];
  if (hasConfidence(node)) parts.push(`confidence ${percent(node.confidence)}`);
  if (members.length) parts.push(`${members.length} inside`);
  return parts.filter(Boolean).join(", ");
}

function drawNode(node, members, open, place, font) {
  const { width, height } = place;
  const group = members.length > 0 || open;
  const looks = [
    "node",
    `kind-${KINDS.has(node.kind) ? node.kind : "run"}`,
    stateClass(node.state),
    node.standing && "uncounted",
    ["retracted", "deleted"].includes(node.standing) && "struck",
  ];
  const card = svg("g", {
    class: looks.filter(Boolean).join(" "),
    transform: `translate(${place.x - width / 2} ${place.y - height / 2})`,
    tabindex: -1,
    role: "button",
    "aria-label": describe(node, members),
    "aria-expanded": group ? open : null,
  });
  card.dataset.id = node.id;
  card.append(...shape(node.kind, width, height), svg("title", {}, node.title));
  card.append(...(node.kind === "hypothesis" ? claimCard(node, width, height, font) : runCard(node, members, group, width, height, font)));
  if (group) card.append(moved(toggleMark(open), width - 19, height / 2));
  return card;
}

const toggleMark = (open) => svg("g", { class: "toggle" }, svg("circle", { r: 9 }), svg("path", { d: open ? "M-4 0h8" : "M-4 0h8M0-4v8" }));

const words = (text, x, y, kind) => svg("text", { x, y, class: kind }, text);
const moved = (element, x, y, scale = 1) => fill(element, { transform: `translate(${x} ${y}) scale(${scale})` }, []);

function claimCard(node, width, height, font) {
  const bar = (name, share) => svg("rect", { class: name, x: 10, y: height - 6, width: (width - 20) * share, height: 3, rx: 1.5 });
  const sure = () => [words(percent(node.confidence), width - 12, 22, "sure"), bar("meter", 1), bar("level", node.confidence)];
  return [
    moved(glyph(node.state), 19, 18),
    words(line([node.id, node.state].filter(Boolean).join(" · "), width - 86, font.title), 33, 22, "title"),
    ...twoLines(node.title, width - 24, font.claim).map((part, number) => words(part, 12, 41 + 15 * number, "claim")),
    ...(hasConfidence(node) ? sure() : []),
    words(node.id, width / 2 + 20, height / 2 + 12, "from-afar"),
  ];
}

function runCard(node, members, group, width, height, font) {
  const room = width - 37 - (group ? 34 : 14);
  const inside = tally(members).map(([verdict, number], place) => [verdict, number, 86 + 26 * place]);
  const state = members.length ? `${members.length} inside` : node.standing || node.state;
  const about = [kindName(node.kind), inside.length ? "" : state].filter(Boolean).join(" · ");
  return [
    moved(glyph(node.state), 22, height / 2),
    words(line(node.title, room, font.title), 37, 18, "title"),
    words(line(about, room, font.small), 37, 33, "about"),
    ...inside.flatMap(([verdict, number, x]) => [
      svg("g", { class: "mini" }, moved(glyph(verdict), x, 29, 0.66)),
      words(number, x + 7, 33, "about"),
    ]),
    words(kindName(node.kind), width / 2 + 8, height / 2 + 8, "from-afar"),
  ];
}

function drawLegend(list) {
  const row = (edge, text) =>
    el(
      "li",
      {},
      svg(
        "svg",
        { width: 28, height: 10, viewBox: "0 0 28 10", "aria-hidden": "true" },
        svg("path", { class: edgeClass(edge), d: "M1 5H26", "marker-end": `url(#arrow-${arrowOf(edge)})` }),
      ),
      text,
    );
  list.append(
    row({ kind: "evidence", label: "supports" }, "supports"),
    row({ kind: "evidence", label: "refutes" }, "refutes"),
    row({ kind: "evidence", label: "inconclusive" }, "inconclusive"),
    row({ kind: "evidence", label: "supports", uncounted: true }, "does not count"),
    row({ kind: "refines" }, "refined by"),
    row({ kind: "input" }, "used by"),
    row({ kind: "contains" }, "contains"),
  );
}
