// Where things stand: layers from left to right. What something is made from stands left of it, and each kind has a column that it
// does not stand left of. The layers are ours; dagre orders what is in them, so that few edges cross, and says how far apart.

const COLUMN = new Map([
  ["subject", 0],
  ["trace", 1],
  ["sae", 2],
  ["run", 3],
  ["study", 3],
  ["sweep", 3],
  ["hypothesis", 4],
]);
const WEIGHT = new Map([
  ["refines", 4],
  ["evidence", 3],
  ["input", 1],
  ["contains", 1],
]);
const WIDEST = 226;
const size = (node) => (node.kind === "hypothesis" ? { width: WIDEST, height: 68 } : { width: 198, height: 42 });

function place(graph) {
  const layers = new dagre.Graph({ multigraph: true });
  layers.setGraph({ rankdir: "LR", nodesep: 14, edgesep: 9, ranksep: 60, ranker: (inner) => rank(inner, graph) });
  for (const [id, { node }] of graph.nodes) layers.setNode(`n${id}`, size(node));
  for (const edge of graph.edges) layers.setEdge(`n${edge.source}`, `n${edge.target}`, { weight: WEIGHT.get(edge.kind) ?? 1 }, edge.key);
  dagre.layout(layers);
  const at = (id) => layers.node(`n${id}`);
  return {
    nodes: new Map([...graph.nodes.keys()].map((id) => [id, at(id)])),
    edges: graph.edges.map((edge) => ({
      edge,
      points: ported(layers.edge(`n${edge.source}`, `n${edge.target}`, edge.key).points, at(edge.source), at(edge.target)),
    })),
  };
}

// Rank every node of dagre's graph (which has no circles any more, and a root of its own): as far left as its sources and its column
// let it. Runs then go as far right as their targets let them, which brings evidence to its hypothesis; so does what contains runs.
function rank(layers, graph) {
  const step = 2; // dagre keeps a rank between any two for labels
  const known = (name) => graph.nodes.has(name.slice(1));
  const columnOf = (name) => COLUMN.get(graph.nodes.get(name.slice(1)).node.kind) ?? COLUMN.get("run");
  const columns = [...new Set(layers.nodes().filter(known).map(columnOf))].sort((a, b) => a - b);
  const least = (name) => (graph.open.has(name.slice(1)) ? -step : step * columns.indexOf(columnOf(name)));
  const [early, late] = [new Map(), new Map()];
  const earliest = (name) => {
    const after = () =>
      layers
        .inEdges(name)
        .filter(({ v }) => known(v))
        .map(({ v }) => earliest(v) + step);
    if (!early.has(name)) early.set(name, Math.max(least(name), ...after()));
    return early.get(name);
  };
  const latest = (name) => {
    const before = columnOf(name) === COLUMN.get("run") ? layers.outEdges(name) : [];
    if (!late.has(name)) late.set(name, before.length ? Math.min(...before.map(({ w }) => latest(w) - step)) : earliest(name));
    return late.get(name);
  };
  for (const name of layers.nodes()) layers.node(name).rank = known(name) ? latest(name) : -2 * step;
}

// Where an edge leaves its source, where it enters and leaves each column between, and where it arrives. Of dagre's points every second
// is in a column, where it has kept room between the nodes; those in the gaps would only make the edge wobble.
function ported(points, source, target) {
  const way = source.x < target.x ? 1 : -1;
  const beside = ({ x, y }, by) => ({ x: x + way * by, y });
  const across = points
    .slice(1, -1)
    .filter((_, number) => number % 2)
    .flatMap((point) => [beside(point, -WIDEST / 2), beside(point, WIDEST / 2)]);
  return [beside(source, source.width / 2), ...across, beside(target, -target.width / 2 - 2)];
}

// An S through each gap, level through each column.
function curve(points) {
  let text = `M${points[0].x} ${points[0].y}`;
  for (let i = 0; i < points.length; i += 2) {
    const [from, to, after] = points.slice(i, i + 3);
    const middle = (from.x + to.x) / 2;
    text += `C${middle} ${from.y} ${middle} ${to.y} ${to.x} ${to.y}${after ? `H${after.x}` : ""}`;
  }
  return text;
}

function bounds(places) {
  const all = [...places];
  const low = (axis, extent) => Math.min(...all.map((place) => place[axis] - place[extent] / 2));
  const high = (axis, extent) => Math.max(...all.map((place) => place[axis] + place[extent] / 2));
  return all.length ? { left: low("x", "width"), right: high("x", "width"), top: low("y", "height"), bottom: high("y", "height") } : null;
}
