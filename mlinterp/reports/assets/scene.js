// What is seen: the part of the lineage that is wanted, laid out, with what hangs together brought out. All state of the page is here.

const LARGE = 60;
const LEGIBLE = { all: 0.66, focused: 0.5 };
const page = {
  model: null,
  graph: null,
  placed: null,
  drawn: null,
  selected: null,
  query: "",
  focused: false,
  groups: { collapsed: false, except: new Set() },
};

function openScene(model) {
  const canvas = byId("canvas");
  page.stage = svg("g");
  canvas.append(arrowHeads(), page.stage);
  page.camera = makeCamera(canvas, page.stage);
  page.tree = makeTree(byId("tree"), (id) => select(id));
  page.filters = makeFilters(byId("filters"), () => arrange());
  page.groups.collapsed = model.nodes.size > LARGE;
  showModel(model);
  overview();
  new ResizeObserver(settle).observe(canvas);
}

// The room has changed, as when the details open: all stays in view where all was, else what is selected.
function settle() {
  const spot = page.placed.nodes.get(page.graph.standsFor.get(page.selected));
  if (page.camera.isWhole()) overview();
  else if (spot) page.camera.reveal(spot);
}

function showModel(model) {
  page.model = model;
  if (!model.nodes.has(page.selected)) page.selected = null;
  page.filters.draw(model);
  arrange(page.selected);
}

// Lay out what is to be seen, anew; the node `steady` stays where it is on the screen.
function arrange(steady = null) {
  const { model, groups, filters, selected } = page;
  const only = page.focused && selected !== null ? lineageOf(model, selected) : null;
  const collapsed = only && only.size <= LARGE ? () => false : (id) => groups.collapsed !== groups.except.has(id);
  const before = page.placed?.nodes.get(steady);
  page.graph = visibleGraph(model, (node) => filters.keeps(node) && (!only || only.has(node.id)), collapsed);
  page.placed = place(page.graph);
  page.drawn = drawGraph(page.stage, page.graph, page.placed);
  const after = page.placed.nodes.get(steady);
  if (before && after) page.camera.keep(before, after);
  light();
}

// Bring out the lineage of what is selected, or else what the search found; the rest steps back.
function light() {
  const { model, graph, drawn, selected, query } = page;
  const found = query ? new Set([...model.nodes.values()].filter(matcher(query)).map((node) => node.id)) : null;
  const lit = selected === null ? found : lineageOf(model, selected);
  const shown = new Set([...(lit ?? [])].map((id) => graph.standsFor.get(id)));
  const at = graph.standsFor.get(selected);
  byId("canvas").classList.toggle("chosen", lit !== null);
  for (const [id, card] of drawn.nodes) {
    card.classList.toggle("lit", shown.has(id));
    card.classList.toggle("selected", id === at);
    card.setAttribute("aria-pressed", id === at);
    card.tabIndex = -1;
  }
  for (const { edge, path } of drawn.edges) {
    path.classList.toggle("lit", selected !== null && edge.parts.some((part) => lit.has(part.source) && lit.has(part.target)));
  }
  const first = drawn.nodes.get(at) ?? drawn.nodes.values().next().value;
  if (first) first.tabIndex = 0;
  page.tree.draw(model, found, selected);
  drawDetails(byId("details"), model, selected, select);
  drawFound(byId("found"), model, found, selected, select);
  drawState();
}

function drawState() {
  const { model, graph, groups } = page;
  byId("focus").disabled = page.selected === null;
  byId("focus").setAttribute("aria-pressed", page.focused);
  byId("groups").hidden = model.groups.size === 0;
  byId("groups").textContent = groups.collapsed ? "Expand studies" : "Collapse studies";
  byId("empty").hidden = graph.nodes.size > 0;
  byId("empty").replaceChildren(
    ...(model.nodes.size
      ? ["All of it is hidden: tick more of the filters on the left."]
      : [
          "Nothing here yet. The first ",
          el("code", {}, "mlinterp run SPEC"),
          " or ",
          el("code", {}, "mlinterp hypothesis add"),
          " will show up on this page.",
        ]),
  );
}

// Select a node, or nothing (null), and bring it into view.
function select(id) {
  const wasFocused = page.focused;
  page.selected = page.model.nodes.has(id) ? id : null;
  page.focused = wasFocused && page.selected !== null;
  remember(page.selected);
  if (wasFocused) arrange(page.selected);
  else light();
  settle();
}

function seek(query) {
  page.query = query.trim();
  select(null);
}

function toggleGroup(id) {
  const { except } = page.groups;
  if (!except.delete(id)) except.add(id);
  arrange(id);
}

function toggleGroups() {
  page.groups.collapsed = !page.groups.collapsed;
  page.groups.except.clear();
  arrange();
  overview();
}

function toggleFocus() {
  if (page.selected === null) return;
  page.focused = !page.focused;
  arrange(page.selected);
  overview();
}

// As wide as there is room, yet legible; what is selected, or else the first hypothesis, in view.
function overview() {
  const { model, graph, placed, selected } = page;
  const roots = hypothesisTree(model).map(({ node }) => node.id);
  const anchor =
    [graph.standsFor.get(selected), ...roots].map((id) => placed.nodes.get(id)).find(Boolean) ?? placed.nodes.values().next().value;
  if (anchor) page.camera.fitWidth(bounds(placed.nodes.values()), anchor, page.focused ? LEGIBLE.focused : LEGIBLE.all);
}

function whole() {
  if (page.placed.nodes.size) page.camera.fit(bounds(page.placed.nodes.values()));
}
