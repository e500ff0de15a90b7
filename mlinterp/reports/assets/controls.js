// What a reader can do: click, double-click, walk the graph by keyboard, press a button or its key.

function listen(refresh) {
  const canvas = byId("canvas");
  const cardAt = (event) => event.target.closest(".node[data-id]");
  const hold = (id) => page.drawn.nodes.get(id)?.focus({ preventScroll: true });

  canvas.addEventListener("click", (event) => {
    if (event.detail > 1 || canvas.classList.contains("dragged")) return;
    const card = cardAt(event);
    if (!card) return select(null);
    const { id } = card.dataset;
    select(id);
    if (event.target.closest(".toggle") || card.getAttribute("aria-expanded") === "false") toggleGroup(id);
    hold(id);
  });
  canvas.addEventListener("dblclick", (event) => {
    const link = page.model.nodes.get(page.selected)?.link; // the first click selected; what is below the second may have moved
    if (link && !event.target.closest(".toggle")) location.assign(link);
  });
  canvas.addEventListener("keydown", (event) => {
    const card = cardAt(event);
    const way = { ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowDown: [0, 1], ArrowUp: [0, -1] }[event.key];
    if (!card || !(way || event.key === "Enter" || event.key === " ")) return;
    event.preventDefault();
    if (way) return walk(card, nearest(page.placed.nodes, card.dataset.id, way));
    select(card.dataset.id);
    if (card.hasAttribute("aria-expanded")) toggleGroup(card.dataset.id);
    hold(card.dataset.id);
  });
  const walk = (card, next) => {
    if (next === null) return;
    card.tabIndex = -1;
    page.drawn.nodes.get(next).tabIndex = 0;
    hold(next);
    page.camera.reveal(page.placed.nodes.get(next));
  };

  const query = byId("query");
  query.addEventListener("input", () => seek(query.value));
  query.addEventListener("keydown", (event) => {
    const entries = [...byId("found").querySelectorAll("button")].map((entry) => entry.dataset.id);
    if (event.key === "Escape") seek((query.value = ""));
    else if (event.key === "Enter" && entries.length) select(entries[(entries.indexOf(page.selected) + 1) % entries.length]);
  });

  const buttons = {
    focus: toggleFocus,
    groups: toggleGroups,
    "fit-width": overview,
    fit: whole,
    out: () => page.camera.zoom(0.8),
    in: () => page.camera.zoom(1.25),
    refresh,
  };
  for (const [id, act] of Object.entries(buttons)) byId(id).addEventListener("click", act);
  const keys = new Map([
    ["f", toggleFocus],
    ["0", overview],
    ["9", whole],
    ["-", buttons.out],
    ["+", buttons.in],
    ["=", buttons.in],
    ["/", () => query.focus()],
    ["Escape", () => select(null)],
  ]);
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target === query || !keys.has(event.key)) return;
    event.preventDefault();
    keys.get(event.key)();
  });
}

// The nearest node in a direction; what lies aside counts double.
function nearest(places, from, [dx, dy]) {
  const here = places.get(from);
  let [best, least] = [null, Infinity];
  for (const [id, there] of places) {
    const ahead = (there.x - here.x) * dx + (there.y - here.y) * dy;
    const aside = Math.abs((there.x - here.x) * dy) + Math.abs((there.y - here.y) * dx);
    if (ahead > 1 && ahead + 2 * aside < least) [best, least] = [id, ahead + 2 * aside];
  }
  return best;
}
