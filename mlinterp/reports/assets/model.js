// The lineage as it was read, indexed; what is reachable from where; and which part of it is to be drawn.

function makeModel(data) {
  const nodes = new Map(data.nodes.map((node) => [node.id, node]));
  const edges = data.edges.filter((edge) => nodes.has(edge.source) && nodes.has(edge.target));
  const below = new Map(data.nodes.map((node) => [node.id, []]));
  const above = new Map(data.nodes.map((node) => [node.id, []]));
  const container = new Map();
  for (const edge of edges) {
    below.get(edge.source).push(edge);
    above.get(edge.target).push(edge);
    if (edge.kind === "contains") container.set(edge.target, edge.source);
  }
  const groups = data.nodes.filter((node) => below.get(node.id).some((edge) => edge.kind === "contains")).map((node) => node.id);
  return { ...data, nodes, edges, below, above, container, groups: new Set(groups) };
}

function reach(start, neighbours) {
  const found = new Set([start]);
  for (const id of found) neighbours(id).forEach((next) => found.add(next));
  return found;
}

// Everything that a node rests on and everything that rests on it, itself included.
function lineageOf(model, id) {
  const up = reach(id, (from) => model.above.get(from).map((edge) => edge.source));
  const down = reach(id, (from) => model.below.get(from).map((edge) => edge.target));
  return new Set([...up, ...down]);
}

// Hypotheses as {node, depth, children}, in order; one that is in a circle of parents stands at the root.
function hypothesisTree(model) {
  const seen = new Set();
  const branch = (id, depth) => {
    seen.add(id);
    const children = model.below
      .get(id)
      .filter((edge) => edge.kind === "refines" && !seen.has(edge.target))
      .map((edge) => edge.target);
    children.forEach((child) => seen.add(child));
    return { node: model.nodes.get(id), depth, children: children.map((child) => branch(child, depth + 1)) };
  };
  const hypotheses = [...model.nodes.values()].filter((node) => node.kind === "hypothesis").map((node) => node.id);
  const roots = hypotheses.filter((id) => !model.above.get(id).some((edge) => edge.kind === "refines"));
  return [...roots, ...hypotheses].flatMap((id) => (seen.has(id) ? [] : [branch(id, 0)]));
}

// How many of some nodes are in each state that is evidence.
function tally(nodes) {
  const numbers = VERDICTS.map((verdict) => [verdict, nodes.filter((node) => node.state === verdict && !node.standing).length]);
  return numbers.filter(([, number]) => number);
}

const evidenceOf = (model, id) =>
  model.above
    .get(id)
    .filter((edge) => edge.kind === "evidence")
    .map((edge) => model.nodes.get(edge.source));

// What is drawn: `keep(node)` says which nodes, `collapsed(id)` which groups stand for all that they contain.
function visibleGraph(model, keep, collapsed) {
  const standsFor = new Map();
  const shownAs = (id) => {
    let shown = id;
    const chain = new Set([id]);
    for (let up = model.container.get(id); up !== undefined && !chain.has(up); up = model.container.get(up)) {
      chain.add(up);
      if (collapsed(up) && keep(model.nodes.get(up))) shown = up;
    }
    return shown;
  };
  for (const node of model.nodes.values()) {
    const shown = shownAs(node.id);
    if (keep(model.nodes.get(shown))) standsFor.set(node.id, shown);
  }
  const nodes = new Map();
  for (const [id, shown] of standsFor) {
    if (!nodes.has(shown)) nodes.set(shown, { node: model.nodes.get(shown), members: [] });
    if (id !== shown && keep(model.nodes.get(id))) nodes.get(shown).members.push(model.nodes.get(id));
  }
  const edges = new Map();
  for (const edge of model.edges) {
    const [source, target] = [standsFor.get(edge.source), standsFor.get(edge.target)];
    if (source === undefined || target === undefined || source === target) continue;
    const uncounted = edge.kind === "evidence" && Boolean(model.nodes.get(edge.source).standing);
    const key = JSON.stringify([source, target, edge.kind, edge.label, uncounted]);
    if (!edges.has(key)) edges.set(key, { key, source, target, kind: edge.kind, label: edge.label, uncounted, parts: [] });
    edges.get(key).parts.push(edge);
  }
  const open = new Set([...model.groups].filter((id) => nodes.has(id) && !collapsed(id)));
  return { nodes, edges: [...edges.values()], standsFor, open };
}
