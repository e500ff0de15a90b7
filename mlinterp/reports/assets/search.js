// Search: the nodes whose texts hold every word.

const MOST_FOUND = 50;

function matcher(query) {
  const words = query.toLowerCase().split(/\s+/).filter(Boolean);
  return (node) => {
    const text = [node.id, node.title, kindName(node.kind), node.state, node.standing, ...node.facts.flat()].join("\n").toLowerCase();
    return words.every((word) => text.includes(word));
  };
}

function drawFound(list, model, found, selected, onSelect) {
  if (!found) return list.replaceChildren();
  const entry = (node) => {
    const name = [node.kind === "hypothesis" ? node.id : "", node.title].filter(Boolean).join(" ");
    return el(
      "li",
      {},
      el(
        "button",
        { type: "button", "data-id": node.id, "aria-pressed": node.id === selected, onclick: () => onSelect(node.id) },
        icon(node.kind, node.state),
        el("span", {}, name),
      ),
    );
  };
  const head = found.size
    ? `${found.size} of ${model.nodes.size}${found.size > MOST_FOUND ? `, the first ${MOST_FOUND}:` : ""}`
    : "Nothing found.";
  return list.replaceChildren(
    el("li", { class: "number" }, head),
    ...[...found].slice(0, MOST_FOUND).map((id) => entry(model.nodes.get(id))),
  );
}
