// The tree of hypotheses. Arrow keys move and open, Enter selects, as in a file browser.

function makeTree(list, onSelect) {
  const closed = new Set();
  let latest = null;

  // With `wanted`, what a search found, the tree shows just that and what is above it, open whatever was closed.
  function draw(model, wanted, selected) {
    latest = [model, wanted, selected];
    const held = list.contains(document.activeElement) ? document.activeElement.dataset.id : null;
    const branches = hypothesisTree(model);
    const holds = (branch) => !wanted || wanted.has(branch.node.id) || branch.children.some(holds);
    const isOpen = (branch) => Boolean(wanted) || !closed.has(branch.node.id);
    const rows = (branch) => (holds(branch) ? [row(model, branch, isOpen(branch), selected), ...below(branch)] : []);
    const below = (branch) => (isOpen(branch) ? branch.children.flatMap(rows) : []);
    const items = branches.flatMap(rows);
    list.replaceChildren(...(items.length ? items : [el("li", { class: "none" }, nothing(branches))]));
    const current = items.find((item) => item.dataset.id === (held ?? selected)) ?? items[0];
    if (current) current.tabIndex = 0;
    if (held) current?.focus();
  }

  const nothing = (branches) =>
    branches.length ? "No hypothesis fits." : ["No hypothesis yet. Declare one with ", el("code", {}, "mlinterp hypothesis add"), "."];

  function row(model, { node, depth, children }, isOpen, selected) {
    const open = children.length ? isOpen : null;
    const counts = tally(evidenceOf(model, node.id)).map(([verdict, number]) =>
      el("span", { class: "tally", title: `${number} ${verdict}` }, icon(null, verdict), number),
    );
    const item = el(
      "li",
      {
        role: "treeitem",
        tabindex: -1,
        "aria-level": depth + 1,
        "aria-expanded": open,
        "aria-selected": node.id === selected,
        "aria-label": describe(node, []),
      },
      el("span", { class: "twist", "aria-hidden": "true" }, open === null ? "" : open ? "▾" : "▸"),
      el(
        "div",
        { class: "body" },
        el("p", { class: "head" }, icon(null, node.state), el("b", {}, node.id), el("span", { class: "state" }, node.state), counts),
        el("p", { class: "claim" }, node.title),
        hasConfidence(node) && el("p", { class: "sure" }, confidenceBar(node.confidence), percent(node.confidence)),
      ),
    );
    item.dataset.id = node.id;
    item.style.paddingInlineStart = `${6 + 16 * Math.min(depth, 8)}px`;
    return item;
  }

  const toggle = (id, open) => {
    if (open) closed.delete(id);
    else closed.add(id);
    draw(...latest);
  };
  const items = () => [...list.querySelectorAll("[role=treeitem]")];
  const move = (item) => {
    if (!item) return;
    items().forEach((other) => {
      other.tabIndex = other === item ? 0 : -1;
    });
    item.focus();
  };

  list.addEventListener("click", (event) => {
    const item = event.target.closest("[role=treeitem]");
    if (!item) return;
    if (event.target.closest(".twist") && item.hasAttribute("aria-expanded"))
      toggle(item.dataset.id, item.getAttribute("aria-expanded") === "false");
    else onSelect(item.dataset.id);
  });
  list.addEventListener("keydown", (event) => {
    const item = event.target.closest("[role=treeitem]");
    if (!item) return;
    const all = items();
    const position = all.indexOf(item);
    const level = (other) => Number(other.getAttribute("aria-level"));
    const expanded = item.getAttribute("aria-expanded");
    const act = {
      ArrowDown: () => move(all[position + 1]),
      ArrowUp: () => move(all[position - 1]),
      Home: () => move(all[0]),
      End: () => move(all[all.length - 1]),
      ArrowRight: () => (expanded === "false" ? toggle(item.dataset.id, true) : expanded === "true" && move(all[position + 1])),
      ArrowLeft: () =>
        expanded === "true" ? toggle(item.dataset.id, false) : move(all.slice(0, position).findLast((other) => level(other) < level(item))),
      Enter: () => onSelect(item.dataset.id),
      " ": () => onSelect(item.dataset.id),
    }[event.key];
    if (!act) return;
    event.preventDefault();
    event.stopPropagation();
    act();
  });

  return { draw };
}
