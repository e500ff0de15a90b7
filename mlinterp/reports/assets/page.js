// The page begins: read the lineage, draw it, and read it again when asked to.

function drawHead(model) {
  const name = model.link ? el("a", { href: model.link, title: "Open the project's runs in MLflow" }, model.project) : model.project;
  const numbers = [...KINDS].map(([kind, words]) => [[...model.nodes.values()].filter((node) => node.kind === kind).length, words]);
  byId("project").replaceChildren("Lineage of ", name);
  byId("counts").textContent = numbers
    .filter(([number]) => number)
    .map(([number, words]) => count(number, words))
    .join(" · ");
  byId("generated").textContent =
    `as of ${new Date(model.generated).toLocaleString(undefined, { dateStyle: "medium", timeStyle: "medium" })}`;
  byId("refresh").hidden = !model.live;
}

// Read the lineage again; what is selected, sought, hidden and in view stays so.
async function refresh() {
  byId("refresh").disabled = true;
  byId("status").textContent = "reading …";
  try {
    const answer = await fetch(`${location.pathname}.json`, { cache: "no-store" });
    if (!answer.ok) throw new Error(`the server answered ${answer.status}`);
    const model = makeModel(await answer.json());
    const added = [...model.nodes.keys()].filter((id) => !page.model.nodes.has(id)).length;
    drawHead(model);
    showModel(model);
    byId("status").textContent = added ? `${added} new` : "up to date";
  } catch (error) {
    byId("status").textContent = `not refreshed: ${error.message}`;
  } finally {
    byId("refresh").disabled = false;
  }
}

// What is selected is the address's fragment, so that a link can lead to it.
function remember(id) {
  try {
    history.replaceState(null, "", id === null ? location.pathname + location.search : `#${encodeURIComponent(id)}`);
  } catch {
    // inside a sandboxed frame a page has no say over its address
  }
}

function recalled() {
  try {
    return decodeURIComponent(location.hash.slice(1));
  } catch {
    return null;
  }
}

const model = makeModel(JSON.parse(byId("data").textContent));
drawLegend(byId("legend"));
drawHead(model);
page.selected = recalled();
openScene(model);
listen(refresh);
window.addEventListener("hashchange", () => select(recalled()));
document.documentElement.dataset.ready = "true";
