// Which nodes are wanted: ticked kinds, states and standings, with their numbers: the legend too.

const FACETS = [
  ["Kinds", "kind", (node) => node.kind],
  ["Hypotheses", "status", (node) => (node.kind === "hypothesis" ? node.state : "")],
  ["Runs", "verdict", (node) => (node.kind === "hypothesis" ? "" : node.state)],
  ["Do not count", "standing", (node) => node.standing],
];
const ORDER = [...KINDS.keys(), ...GLYPHS.keys()];

function makeFilters(place, onChange) {
  const hidden = new Set();
  const key = (facet, value) => `${facet} ${value}`;

  function draw(model) {
    const sections = FACETS.map(([title, facet, read]) => {
      const numbers = new Map();
      for (const node of model.nodes.values()) if (read(node)) numbers.set(read(node), (numbers.get(read(node)) ?? 0) + 1);
      const values = [...numbers.keys()].sort((a, b) => ORDER.indexOf(a) - ORDER.indexOf(b));
      if (!values.length) return null;
      return el(
        "fieldset",
        {},
        el("legend", {}, title),
        values.map((value) => choice(facet, value, numbers.get(value))),
      );
    });
    place.replaceChildren(...sections.filter(Boolean));
  }

  function choice(facet, value, number) {
    const tick = el("input", {
      type: "checkbox",
      "data-facet": facet,
      "data-value": value,
      onchange: () => {
        if (tick.checked) hidden.delete(key(facet, value));
        else hidden.add(key(facet, value));
        onChange();
      },
    });
    tick.checked = !hidden.has(key(facet, value));
    const picture = facet === "kind" ? icon(value) : facet === "standing" ? null : icon(null, value);
    return el(
      "label",
      { class: facet },
      tick,
      picture,
      el("span", {}, facet === "kind" ? kindName(value) : value),
      el("small", {}, number),
    );
  }

  return { draw, keeps: (node) => FACETS.every(([, facet, read]) => !hidden.has(key(facet, read(node)))) };
}
