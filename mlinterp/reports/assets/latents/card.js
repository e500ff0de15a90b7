// A latent's card: its numbers, what it fires on, what it writes, its neighbours, its contexts.

const panel = (heading, about, ...inside) =>
  el("section", { class: "panel" }, el("h3", {}, heading, about && el("small", {}, about)), inside);
const nothing = (why) => el("p", { class: "none" }, why);

function drawCard(main, model, card, place) {
  main.replaceChildren(head(model, card, place), numbers(model, card), panels(model, card), ...contexts(model, card), foot(model));
}

function head(model, card, { previous, next, index, total }) {
  const step = (id, sign, words) =>
    el(
      "a",
      { class: id === null ? "step off" : "step", href: id === null ? null : `#latent-${id}`, title: words, "aria-label": words },
      sign,
    );
  return el(
    "header",
    {},
    step(previous, "‹", "Previous latent (k or ←)"),
    el("h2", {}, "Latent ", el("b", {}, String(card.id))),
    step(next, "›", "Next latent (j or →)"),
    el("p", { class: "muted" }, index < 0 ? "not among those found" : `${whole(index + 1)} of ${whole(total)}`),
  );
}

function numbers(model, card) {
  const interval = card.interval ? `95 %: ${percent(card.interval[0])} to ${percent(card.interval[1])}` : "no interval from one example";
  const fact = (name, value, remark) =>
    el("div", {}, el("dt", {}, name), el("dd", {}, value), remark && el("dd", { class: "muted" }, remark));
  return el(
    "dl",
    { class: "numbers" },
    fact("density", percent(card.density), interval),
    fact("largest activation", card.n ? short(card.max) : "–", "the full colour below"),
    fact("mean when active", card.mean === null ? "–" : short(card.mean)),
    fact("active rows", whole(card.n), `of ${whole(model.rows)}`),
    fact("active examples", whole(card.examples), `of ${whole(model.examples)}`),
  );
}

function panels(model, card) {
  const inactive = () => nothing("Never active on these rows.");
  const firesOn = card.tokens.map(([token, part, ofAll]) =>
    bar(alone(model, token), percent(part), part, `${percent(part)} of its active rows; ${percent(ofAll)} of all rows`),
  );
  return el(
    "div",
    { class: "panels" },
    panel(
      model.sets ? "Fires on contexts with" : model.tokensAre === "answer" ? "Fires where the answer is" : "Fires on",
      model.sets || model.tokensAre === "answer" ? "share" : "share of rows",
      card.n ? el("ul", { class: "bars" }, firesOn) : inactive(),
    ),
    panel("How strongly", "active rows by activation", card.n ? histogram(card) : inactive()),
    card.evaluations.length ? panel("When", "density at each evaluation", card.n ? evaluations(model, card) : inactive()) : [],
    writes(model, card),
    panel(
      "Near it",
      "decoder cosine",
      card.nearest.length ? relations(model, card.nearest, (value) => short(value)) : nothing("It writes nothing."),
    ),
    panel(
      "Active together",
      "correlation φ",
      card.together.length ? relations(model, card.together, (value) => short(value)) : nothing("With none more than by chance."),
    ),
  );
}

function writes(model, card) {
  const about = "direct effect on logits, per unit";
  if (!model.hasLogits) return panel("Writes", about, nothing(model.logits));
  const largest = Math.max(...[...card.raises, ...card.lowers].map(([, effect]) => Math.abs(effect)), 1e-30);
  const side = (words, entries, kind) =>
    el(
      "div",
      {},
      el("h4", {}, words),
      el(
        "ul",
        { class: "bars" },
        entries.map(([token, effect]) =>
          bar(
            alone(model, token),
            signed(effect),
            Math.abs(effect) / largest,
            `${signed(effect)} a unit, ${signed(effect * card.max)} at its largest activation`,
            kind,
          ),
        ),
      ),
    );
  return el(
    "section",
    { class: "panel wide" },
    el("h3", { title: model.logits }, "Writes", el("small", {}, about)),
    el("div", { class: "sides" }, side("raises", card.raises, "up"), side("lowers", card.lowers, "down")),
  );
}

function relations(model, entries, value) {
  return el(
    "ul",
    { class: "bars" },
    entries.map(([id, closeness, part]) => {
      const other = model.byId.get(id);
      const words = other ? previewOf(model, other) : el("span", { class: "muted" }, "not on this page");
      const name = el("span", { class: "other" }, other ? el("a", { href: `#latent-${id}` }, String(id)) : el("b", {}, String(id)), words);
      const title =
        part === undefined ? `cosine ${short(closeness)}` : `φ ${short(closeness)}; active in ${percent(part)} of this one's active rows`;
      return bar(name, value(closeness), closeness, title);
    }),
  );
}

// The tokens that a latent fires on most, in brief; those it rarely fires on are left out.
const RARE = 0.03;

function previewOf(model, card) {
  if (!card.n) return el("span", { class: "muted" }, "never active");
  const often = card.tokens.filter(([, part], index) => !index || part >= RARE).slice(0, 4);
  return el(
    "span",
    { class: "preview" },
    often.map(([token]) => alone(model, token)),
  );
}

function contexts(model, card) {
  if (!card.n) return [];
  const band = ({ low, high, least, most, contexts: drawn }) =>
    group(
      model,
      card,
      drawn,
      `${Math.round(100 * low)}–${Math.round(100 * high)} %`,
      `activations ${short(least)} to ${short(most)}, drawn at random`,
    );
  return [
    group(
      model,
      card,
      card.top,
      "Strongest",
      `one context of each example${model.grid ? "; bold: given, italic: the answer to a blank" : ""}`,
    ),
    ...card.bands.filter((part) => part.contexts.length).map(band),
  ];
}

function group(model, card, drawn, heading, about) {
  const inside = model.grid
    ? el(
        "div",
        { class: "tiles" },
        drawn.map((context) => tile(model, card, context)),
      )
    : el(
        "ol",
        { class: model.sets ? "lines sets" : "lines" },
        drawn.map((context) => entry(model, card, context)),
      );
  return el("section", { class: "contexts" }, el("h3", {}, heading, el("small", {}, about)), inside);
}

// A context that opens to its whole text.
function entry(model, card, context) {
  const act = short(context.acts.get(context.position) ?? 0);
  const name = [context.evaluation, context.text.name].filter(Boolean).join(" · ");
  const button = el("button", { type: "button", class: "act", "aria-expanded": "false", title: "Show the whole text (e: all)" }, act);
  const item = el(
    "li",
    {},
    button,
    el("div", { class: "line" }, line(model, card, context)),
    el("small", { class: "name", title: name }, name),
  );
  const toggle = (open = button.getAttribute("aria-expanded") === "false") => {
    button.setAttribute("aria-expanded", String(open));
    item.classList.toggle("open", open);
    const text = item.querySelector(".text");
    if (open && !text) button.after(el("div", { class: "text" }, wholeText(model, card, context)));
    else text?.toggleAttribute("hidden", !open);
  };
  item.toggle = toggle;
  item.addEventListener("click", (event) => {
    if (!getSelection().toString() && !event.target.closest(".text, a")) toggle();
  });
  return item;
}

function foot(model) {
  const facts = model.facts.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value)));
  const about = [
    "Observational: activations were read and nothing was changed, so the page shows what goes together, not what causes what.",
    "Quarters and shares of tokens come from an even draw of at most 512 of a latent's active rows.",
    `Effects on logits. ${model.logits}`,
  ];
  return el(
    "footer",
    {},
    el("dl", { class: "facts" }, facts),
    about.map((text) => el("p", {}, text)),
    el(
      "p",
      { class: "keys" },
      "Keys: ",
      ["j", "k", "e", "/"].map((key) => el("kbd", {}, key)),
      " next, previous, open all contexts, search",
    ),
  );
}
