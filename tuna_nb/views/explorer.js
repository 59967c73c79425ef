// The price explorer: filters, sorts and draws a list of offers that came with the page. It asks nobody for anything.
// `mount` is all there is to call; `host` keeps what stands in it for pages that run no scripts.

function mount(host, data, style, chosen) {
  if (host.shadowRoot) return;
  // JupyterLab's own keys (arrows move between cells, Enter edits one) are not meant here.
  host.setAttribute("data-lm-suppress-shortcuts", "true");
  const root = host.attachShadow({ mode: "open" });
  const { words, columns, vram } = data;
  const count = columns.gpu.length;
  const PAGE = 20, MORE = 100;
  const inOrder = new Intl.Collator("en", { numeric: true });
  const SORTS = {
    price: ["$/GPU-h", (i) => columns.price[i]],
    all: ["all in $/h", (i) => columns.all[i]],
    gpu: ["GPU", (i) => words.gpu[columns.gpu[i]]],
    memory: ["memory", (i) => vram[columns.gpu[i]]],
    provider: ["provider", (i) => words.provider[columns.provider[i]] + words.kind[columns.kind[i]]],
    region: ["region", (i) => words.region[columns.region[i]]],
    saves: ["saves", (i) => saving(i), "down"],
    seen: ["seen", (i) => columns.age[i]],
  };
  const start = () => ({
    gpu: "", provider: "", region: "", kinds: words.kind.slice(), vram: 0, budget: null, by: "price",
    sort: "price", down: false, limit: PAGE,
  });
  let choice = start();

  // Building ------------------------------------------------------------------------------------------------------
  function make(tag, attributes = {}, ...children) {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
      else if (value !== null && value !== false) made.setAttribute(name, value === true ? "" : value);
    }
    made.append(...children.filter((child) => child !== null));
    return made;
  }

  function swatch(kind) {
    return make("i", { class: `swatch ${kind}`, "aria-hidden": "true" });
  }

  function labelled(label, control) {
    control.id = control.name;
    return make("div", {}, make("label", { for: control.id }, label), control);
  }

  function select(name, options) {
    const control = make("select", { name, onchange: (event) => change({ [name]: event.target.value }) });
    for (const [value, label] of options) control.append(make("option", { value }, label));
    return control;
  }

  const names = (list) => [["", "any"], ...list.map((name) => [name, name]).sort((a, b) => compare(a[0], b[0]))];
  const sizes = [...new Set(vram)].sort((a, b) => a - b);
  const controls = {
    gpu: select("gpu", names(words.gpu)),
    provider: select("provider", names(words.provider)),
    region: select("region", names(words.region.filter((name) => name))),
    vram: select("vram", [["0", "any"], ...sizes.map((size) => [String(size), `${size} GB`])]),
    by: select("by", [["price", "GPU alone"], ["all", "all in"]]),
    sort: select("sort", Object.entries(SORTS).flatMap(([key, [label]]) => [[key, `${label}, up`], [`-${key}`, `${label}, down`]])),
    budget: make("input", {
      name: "budget", type: "number", min: "0", step: "0.05", inputmode: "decimal", placeholder: "no limit",
      oninput: (event) => change({ budget: event.target.value === "" ? null : Number(event.target.value) }),
    }),
  };
  const ORDER = ["serverless", "spot", "on-demand", "interruptible", "dedicated"];
  const boxes = ORDER.filter((kind) => words.kind.includes(kind)).map((kind) =>
    make("input", {
      type: "checkbox", value: kind,
      onchange: () => change({ kinds: boxes.filter((box) => box.checked).map((box) => box.value) }),
    }),
  );
  const form = make(
    "form",
    { "aria-label": "which prices", onsubmit: (event) => event.preventDefault() },
    labelled("GPU", controls.gpu),
    labelled("Memory, at least", controls.vram),
    labelled("Provider", controls.provider),
    labelled("Region", controls.region),
    labelled("Compare", controls.by),
    labelled("At most, $ per hour", controls.budget),
    labelled("Sort", controls.sort),
    make(
      "div",
      { class: "row" },
      make(
        "fieldset",
        {},
        make("legend", {}, "Kind"),
        ...boxes.map((box) => make("label", { class: "kind" }, box, swatch(box.value), box.value)),
      ),
      make("button", { type: "button", onclick: () => change(start()) }, "Reset"),
    ),
  );
  const said = make("p", { role: "status", "aria-live": "polite" });
  const anySaved = Array.from({ length: count }, (_, i) => saving(i)).some((share) => share !== null);
  const HEADS = ["gpu", "provider", "region", "price", "all", ...(anySaved ? ["saves"] : []), "seen"];
  const heads = HEADS.map((key) =>
    make(
      "th",
      { scope: "col", class: key },
      make("button", { type: "button", "data-key": key, onclick: () => sortBy(key), onkeydown: walk }, SORTS[key][0]),
    ),
  );
  const body = make("tbody");
  const more = make("button", { type: "button", onclick: () => showMore() });
  const table = make(
    "table",
    {},
    make("caption", {}, "GPU prices"),
    make("thead", {}, make("tr", {}, ...heads)),
    body,
  );
  root.append(
    make("style", {}, style),
    make(
      "section",
      { "aria-label": "price explorer" },
      form,
      said,
      make("div", { class: "scroll" }, table),
      more,
      make("p", { class: "foot" }, ...data.notes.flatMap((note) => [note, make("br")])),
    ),
  );

  // Choosing ------------------------------------------------------------------------------------------------------
  function change(part) {
    if ("sort" in part && !("down" in part)) {
      part = { ...part, sort: part.sort.replace(/^-/, ""), down: part.sort.startsWith("-") };
    }
    // To compare otherwise is to want the order of it, too.
    if (part.by && choice.sort === choice.by) part = { ...part, sort: part.by };
    choice = { ...choice, limit: PAGE, ...part, vram: Number("vram" in part ? part.vram : choice.vram) };
    draw();
  }

  function sortBy(key) {
    const first = SORTS[key][2] === "down";
    change({ sort: key, down: choice.sort === key ? !choice.down : first });
  }

  // Arrows walk along the headings; Enter and space press, as on any button.
  function walk(event) {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    const all = heads.map((head) => head.firstChild).filter((button) => button.offsetParent !== null);
    all[(all.indexOf(event.target) + step + all.length) % all.length].focus();
  }

  function showMore() {
    const next = choice.limit;
    choice = { ...choice, limit: choice.limit + MORE };
    draw();
    if (more.hidden) body.rows[next].firstChild.focus();
  }

  function saving(i) {
    const known = [columns.demand[i], columns.serverless[i]].filter((share) => share !== null);
    return known.length ? Math.max(...known) : null;
  }

  function compare(a, b) {
    return typeof a === "number" ? a - b : inOrder.compare(a, b);
  }

  function found() {
    const gpu = words.gpu.indexOf(choice.gpu), provider = words.provider.indexOf(choice.provider);
    const region = choice.region ? words.region.indexOf(choice.region) : -1;
    const kinds = new Set(choice.kinds.map((kind) => words.kind.indexOf(kind)));
    const amount = columns[choice.by];
    const kept = [];
    for (let i = 0; i < count; i++) {
      if (gpu >= 0 && columns.gpu[i] !== gpu) continue;
      if (provider >= 0 && columns.provider[i] !== provider) continue;
      if (region >= 0 && columns.region[i] !== region) continue;
      if (!kinds.has(columns.kind[i]) || vram[columns.gpu[i]] < choice.vram) continue;
      // What has no price can't be said to be within a budget.
      if (choice.budget !== null && !(amount[i] !== null && amount[i] <= choice.budget)) continue;
      kept.push(i);
    }
    const value = SORTS[choice.sort][1];
    const keys = new Map(kept.map((i) => [i, value(i)]));
    const none = (key) => key === null || key === undefined || key === "";
    // What is not known comes last, whichever way one sorts.
    return kept.sort((a, b) => {
      const x = keys.get(a), y = keys.get(b);
      if (none(x) || none(y)) return none(x) - none(y) || a - b;
      return (choice.down ? compare(y, x) : compare(x, y)) || a - b;
    });
  }

  // Drawing -------------------------------------------------------------------------------------------------------
  const usd = (amount) => (amount === null ? "unknown" : `$${amount.toFixed(amount < 1 ? 3 : 2)}`);
  const percent = (share) => `${Math.round(share * 100) || 0} %`.replace("-", "−");

  function age(seconds) {
    for (const [size, unit] of [[86400, "d"], [3600, "h"], [60, "m"]]) {
      if (seconds >= size) return `${Math.floor(seconds / size)}${unit}`;
    }
    return `${seconds}s`;
  }

  function row(i, top) {
    const kind = words.kind[columns.kind[i]], stale = columns.stale[i] === 1;
    const source = words.source[columns.source[i]], note = words.note[columns.note[i]];
    const amount = columns[choice.by][i], lacks = words.lacks[columns.lacks[i]];
    const saves = [[columns.demand[i], "on-demand"], [columns.serverless[i], "serverless"]].filter(([share]) => share !== null);
    const width = `width:${amount === null ? 0 : Math.max(1, (100 * amount) / top).toFixed(1)}%`;
    const bar = (by) => by !== choice.by ? null :
      make("div", { class: `bar ${kind}${stale ? " stale" : ""}`, style: width, "aria-hidden": "true" });
    const seen = `${age(columns.age[i])} ago`;
    const region = words.region[columns.region[i]] || "any";
    return make(
      "tr",
      {},
      make(
        "td",
        { class: "gpu", tabindex: "-1" },
        make("b", {}, words.gpu[columns.gpu[i]]),
        make("small", {}, `${vram[columns.gpu[i]]} GB${columns.count[i] > 1 ? ` × ${columns.count[i]}` : ""}`),
      ),
      make(
        "td",
        { class: "provider" },
        words.provider[columns.provider[i]],
        make("small", {}, swatch(kind), kind),
        make("small", { class: "narrow" }, `${region}, ${seen}${stale ? ", stale" : ""}`),
      ),
      make("td", { class: "region" }, region),
      make(
        "td",
        { class: "price number" },
        columns.price[i] === null ? make("span", { title: note || null }, "no quote") : usd(columns.price[i]),
        bar("price"),
        columns.price[i] === null && note ? make("small", {}, note) : null,
      ),
      make("td", { class: "all number" }, `${lacks && columns.all[i] !== null ? "≥ " : ""}${usd(columns.all[i])}`, bar("all"),
        lacks ? make("small", {}, `without ${lacks}`) : null),
      !anySaved ? null : make("td", { class: "saves number" },
        ...saves.map(([share, than]) => make("div", {}, `${percent(share)} `, make("small", {}, `of ${than}`)))),
      make("td", { class: "seen" }, seen, stale ? " " : "", stale ? make("em", {}, "stale") : null, make("small", {}, source)),
    );
  }

  function draw() {
    const began = performance.now();
    const kept = found();
    const shown = kept.slice(0, choice.limit);
    const amount = columns[choice.by];
    const top = Math.max(...shown.map((i) => amount[i] ?? 0), 1e-9);
    const part = document.createDocumentFragment();
    for (const i of shown) part.append(row(i, top));
    if (!kept.length) part.append(make("tr", {}, make("td", { colspan: String(HEADS.length) }, "No offer matches; Reset shows all again.")));
    body.replaceChildren(part);
    let best = null;
    for (const i of kept) if (amount[i] !== null && (best === null || amount[i] < amount[best])) best = i;
    const cheapest = best === null ? "" :
      `; the cheapest is ${usd(amount[best])}: ${words.gpu[columns.gpu[best]]} at ${words.provider[columns.provider[best]]}, ${words.kind[columns.kind[best]]}`;
    const text = `${kept.length.toLocaleString("en")} of ${count.toLocaleString("en")} offers${cheapest}`;
    if (said.textContent !== text) said.textContent = text;
    more.hidden = shown.length >= kept.length;
    more.textContent = `Show ${Math.min(MORE, kept.length - shown.length)} more of ${kept.length}`;
    for (const head of heads) {
      const own = head.firstChild.dataset.key === choice.sort;
      if (own) head.setAttribute("aria-sort", choice.down ? "descending" : "ascending");
      else head.removeAttribute("aria-sort");
    }
    for (const name of ["gpu", "provider", "region", "by"]) controls[name].value = choice[name];
    controls.vram.value = String(choice.vram);
    controls.sort.value = (choice.down ? "-" : "") + choice.sort;
    // Not while one types: "0." is a number on its way.
    if (root.activeElement !== controls.budget) controls.budget.value = choice.budget === null ? "" : choice.budget;
    for (const box of boxes) box.checked = choice.kinds.includes(box.value);
    host.dataset.drawnInMs = (performance.now() - began).toFixed(1);
    if (chosen) chosen(kept);
  }

  draw();
}
