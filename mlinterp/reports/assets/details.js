// What is selected: its facts, a link to its page, and what it hangs together with.

const RELATIONS = [
  ["Evidence", "evidence", "above", "source"],
  ["Evidence for", "evidence", "below", "target"],
  ["Refines", "refines", "above", "source"],
  ["Refined by", "refines", "below", "target"],
  ["Made from", "input", "above", "source"],
  ["Used by", "input", "below", "target"],
  ["Part of", "contains", "above", "source"],
  ["Contains", "contains", "below", "target"],
];

function drawDetails(panel, model, id, onSelect) {
  panel.hidden = id === null;
  if (id === null) return panel.replaceChildren();
  const node = model.nodes.get(id);
  const title = node.link ? el("a", { href: node.link, title: "Open its page in MLflow" }, node.title) : node.title;
  const facts = [["created", when(node.at)], ...node.facts].filter(([, value]) => value !== "");
  return panel.replaceChildren(
    el(
      "button",
      { class: "close", type: "button", "aria-label": "Close the details", title: "Close (Esc)", onclick: () => onSelect(null) },
      "×",
    ),
    el(
      "p",
      { class: "chips" },
      icon(node.kind),
      el("span", {}, kindName(node.kind)),
      node.kind === "hypothesis" && el("b", {}, node.id),
      node.state && el("span", { class: `chip ${stateClass(node.state)}` }, icon(null, node.state), node.state),
      node.standing && el("span", { class: "chip uncounted" }, node.standing),
    ),
    el("h2", {}, title),
    ...(hasConfidence(node) ? [el("p", { class: "sure" }, "confidence ", confidenceBar(node.confidence), percent(node.confidence))] : []),
    ...(node.link ? [el("p", { class: "open" }, el("a", { href: node.link }, "Open in MLflow"))] : []),
    el(
      "dl",
      {},
      facts.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value))),
    ),
    ...RELATIONS.flatMap(([heading, kind, side, end]) => related(model, id, heading, kind, side, end, onSelect)),
  );
}

function related(model, id, heading, kind, side, end, onSelect) {
  const edges = model[side].get(id).filter((edge) => edge.kind === kind);
  if (!edges.length) return [];
  const entries = edges.map((edge) => ({ edge, other: model.nodes.get(edge[end]) })).sort((a, b) => a.other.at - b.other.at);
  const entry = ({ edge, other }) => {
    const words = [other.kind === "hypothesis" ? other.id : "", other.title].filter(Boolean).join(" ");
    const counts =
      kind === "evidence" ? [edge.label, (side === "above" ? other : model.nodes.get(id)).standing].filter(Boolean).join(", ") : edge.label;
    return el(
      "li",
      {},
      el(
        "button",
        { type: "button", "data-id": other.id, onclick: () => onSelect(other.id) },
        icon(null, kind === "evidence" ? edge.label : other.state),
        el("span", {}, words),
        el("small", {}, counts),
      ),
    );
  };
  return [el("h3", {}, heading, el("small", {}, edges.length)), el("ul", { class: "related" }, entries.map(entry))];
}
