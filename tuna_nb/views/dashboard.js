// The live board: draws what the kernel sends, asks nobody but it, and says when it is looked at.
// `STYLE` and `BEAT_S` stand before this file. Words and figures come written; here they are placed, and lines drawn.

const WINDOW_S = 300, LEAST_S = 30, GAP_S = 3.5, HEIGHT = 96, LANE = 17, RIGHT = 62, SPLIT_S = 10, CALM_S = 20;
const SVG = "http://www.w3.org/2000/svg";

function make(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value !== null && value !== false) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child !== null));
  return made;
}

function shape(tag, attributes, title) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  if (title) made.appendChild(document.createElementNS(SVG, "title")).textContent = title;
  return made;
}

function label(x, y, text, anchor = "start") {
  const made = shape("text", { x, y, "text-anchor": anchor });
  made.textContent = text;
  return made;
}

// Only what has changed is touched, so that a reader's place and a selection stay.
function write(place, text) {
  if (place.textContent !== text) place.textContent = text;
}

const kind = (name) => (name.startsWith("spot") ? "spot" : "serverless");
const clock = (at) => new Date(at * 1000).toLocaleTimeString("en-GB");
const known = (value) => value !== null && value !== undefined;

function duration(s) {
  if (!known(s)) return "–";
  return s < 0.9995 ? `${Number((s * 1000).toPrecision(3))} ms` : `${Number(s.toPrecision(3))} s`;
}

function dollars(amount) {
  return known(amount) ? `$${amount.toFixed(amount >= 1 ? 2 : amount >= 0.1 ? 3 : 4)}` : "unknown";
}

function nice(most) {
  const size = 10 ** Math.floor(Math.log10(most));
  return [1, 1.5, 2, 3, 5, 8, 10].map((step) => step * size).find((step) => step >= most * 0.9999);
}

// A line cut where nothing is known, or nobody looked.
function pieces(line, gap = GAP_S) {
  const found = [];
  let last = null;
  for (const [at, value] of line) {
    if (!known(value)) { last = null; continue; }
    if (last === null || at - last > gap) found.push([]);
    found[found.length - 1].push([at, value]);
    last = at;
  }
  return found;
}

const path = (points) => `M${points.map(([x, y]) => `${x.toFixed(1)} ${y.toFixed(1)}`).join("L")}`;

function panel(title, keys = null) {
  const reading = make("span"), svg = shape("svg", { role: "img" });
  const box = make("div", { class: "panel" }, make("h4", {}, title, reading), svg, keys);
  return { box, svg, reading, title };
}

function keys(...entries) {
  return make("p", { class: "keys", "aria-hidden": "true" },
    ...entries.map(([name, words]) => make("span", {}, make("i", { class: `key ${name}` }), words)));
}

export default {
  render({ model, el }) {
    const page = crypto.randomUUID ? crypto.randomUUID() : String(Math.random());
    const tell = (said) => {
      try { model.send({ said, page }); } catch { /* the kernel is gone, and hears nobody */ }
    };
    const host = el.appendChild(document.createElement("div"));
    // JupyterLab's own keys (arrows move between cells, Enter edits one) are not meant here.
    host.setAttribute("data-lm-suppress-shortcuts", "true");
    host.dataset.tunaBoard = model.get("face").name;
    const root = host.attachShadow({ mode: "open" });

    let moments = [], marks = [], spending = [], cross = null;
    let arrived = performance.now();  // of the last word of the kernel
    const opened = performance.now() / 1000;
    let lastSaid = 0, lastTone = "", lastEvent = "";

    // Building ----------------------------------------------------------------------------------------------------
    const name = make("b"), about = make("small"), linkWords = make("span");
    const link = make("div", { class: "link" }, make("i", { "aria-hidden": "true" }), linkWords);
    const stop = make("button", {
      type: "button", title: "Stop, and leave the last figures as plain text",
      onclick: () => { stop.disabled = true; write(stop, "Stopping"); tell("stop"); },
    }, "Stop");
    const tiles = make("dl", { class: "tiles" });
    const split = make("div", { class: "split", role: "img" });
    const panels = {
      traffic: panel("Answered per second",
        keys(["spot", "spot"], ["serverless", "serverless"], ["line", "sent"])),
      dollars: panel("Dollars per hour"),
      first: panel("Time to first token", keys(["p50k", "p50"], ["p95k", "p95"])),
      between: panel("Between tokens", keys(["p50k", "p50"], ["p95k", "p95"])),
      states: panel("States", keys(["full", "ready"], ["pale", "on its way"], ["empty", "none"], ["taken", "taken away"])),
    };
    const charts = make("div", {
      class: "charts", tabindex: "0", role: "group",
      "aria-label": "charts of the last minutes; left and right arrow read them moment by moment",
      onkeydown: walk, onpointermove: point, onpointerleave: () => { cross = null; draw(); },
    });
    const read = make("div", { class: "hidden", role: "status", "aria-live": "polite" });
    const table = make("table"), scroll = make("div", { class: "scroll" }, table);
    const events = make("ol", { class: "events", role: "log", "aria-label": "what happened, the newest first", tabindex: "0" });
    const notes = make("div", { class: "note" });
    const said = make("div", { class: "hidden", role: "status", "aria-live": "polite" });
    const section = make("section", { "aria-label": `live board of ${model.get("face").name}` });
    section.append(make("header", {}, make("div", { class: "title" }, name, about), stop, link), tiles, split, charts, read, scroll, events, notes, said);
    root.append(make("style", {}, STYLE), section);

    // Words -------------------------------------------------------------------------------------------------------
    function show() {
      const face = model.get("face");
      write(name, face.name + (face.state ? ` is ${face.state}` : ""));
      write(about, face.about);
      const silent = (performance.now() - arrived) / 1000 > 4 * BEAT_S;
      link.className = `link ${silent ? "bad" : face.tone}`;
      write(linkWords, silent ? "the kernel does not answer: it is busy, or gone" : face.link);
      section.className = `${face.money_first ? "money-first" : ""} ${silent || face.tone === "bad" ? "stale" : ""}`;
      fill(tiles, face.tiles.length, () => {
        const dt = make("dt"), dd = make("dd"), note = make("dd", { class: "note" });
        return make("div", { class: "tile" }, dt, dd, note);
      }, (tile, i) => {
        const { label, value, note, money } = face.tiles[i];
        tile.className = `tile${money ? " money" : ""}`;
        [label, value, note].forEach((text, n) => write(tile.children[n], text));
      });
      const answering = face.shares.filter(([, , share]) => share);
      split.setAttribute("aria-label", answering.length
        ? `answered by ${answering.map(([who, , share]) => `${who} ${Math.round(share * 100)} %`).join(", ")}`
        : "nobody asks now");
      fill(split, Math.max(answering.length, 1), () => make("div"), (bar, i) => {
        const [who, which, share] = answering[i] ?? ["no request in the last ten seconds", "nobody", 1];
        bar.className = which;
        bar.style.flexGrow = share;
        bar.style.flexBasis = "0";
        const words = which === "nobody" ? who : `${who} ${Math.round(share * 100)} %`;
        bar.title = words;
        write(bar, words);
      });
      rows(face);
      fill(events, face.events.length, () => make("li", {}, make("time"), make("span")), (line, i) => {
        const [when, what, words] = face.events[i];
        line.className = what;
        write(line.children[0], when);
        write(line.children[1], words);
      });
      write(notes, face.notes.join(" · "));
      speak(face);
      draw();
    }

    function fill(place, count, create, change) {
      while (place.children.length > count) place.lastChild.remove();
      while (place.children.length < count) place.append(create());
      for (let i = 0; i < count; i++) change(place.children[i], i);
    }

    function rows(face) {
      const wanted = JSON.stringify([face.columns, face.rows]);
      if (table.dataset.shown === wanted) return;
      table.dataset.shown = wanted;
      table.replaceChildren(
        make("caption", {}, "backends and their replicas"),
        make("thead", {}, make("tr", {}, ...face.columns.map((column) => make("th", { scope: "col", class: column }, column)))),
        make("tbody", {}, ...face.rows.map((row) => make("tr", {}, ...row.map((text, i) => i
          ? make("td", { class: face.columns[i] }, text)
          : make("th", { scope: "row" }, make("i", { class: `swatch ${kind(text)}`, "aria-hidden": "true" }), text))))),
      );
    }

    // For a screen reader: at once when something happened, else now and then.
    function speak(face) {
      const event = face.events[0] ? face.events[0][2] : "", now = performance.now() / 1000;
      if (!face.whole && now - opened < CALM_S) return;
      if (face.tone === lastTone && event === lastEvent && now - lastSaid < CALM_S) return;
      write(said, (event !== lastEvent && lastSaid ? `${event}. ` : "") + face.summary);
      [lastTone, lastEvent, lastSaid] = [face.tone, event, now];
    }

    // Lines -------------------------------------------------------------------------------------------------------
    function draw() {
      const face = model.get("face");
      const shown = face.money_first ? ["dollars", "traffic", "first", "between", "states"] : ["traffic", "states", "first", "between"];
      const boxes = shown.map((which) => panels[which].box);
      if (boxes.some((box, i) => charts.children[i] !== box) || charts.children.length !== boxes.length) charts.replaceChildren(...boxes);
      charts.hidden = moments.length < 2;
      // Not laid out, as in a tab that is behind another: what stands there stays.
      if (moments.length < 2 || charts.firstChild.clientWidth < 2 * RIGHT) return;
      const last = moments[moments.length - 1].t;
      const end = Math.max(last, last + (face.tone === "good" ? 0 : (performance.now() - heardAt) / 1000));
      const start = Math.max(Math.min(moments[0].t, end - LEAST_S), end - WINDOW_S);
      const at = cross === null ? null : nearest(start + cross * (end - start));
      const axis = { start, end, at, last };
      traffic(axis);
      quantiles(panels.first, "first", axis);
      quantiles(panels.between, "between", axis);
      states(axis);
      if (face.money_first) money(axis);
    }

    function nearest(when) {
      return moments.reduce((best, m) => (Math.abs(m.t - when) < Math.abs(best.t - when) ? m : best));
    }

    // An empty panel with its time axis, marks and cross; returns the scales.
    function begin({ svg }, axis, most, words, height = HEIGHT) {
      const width = svg.parentNode.clientWidth, foot = height - 16, head = 8;
      svg.setAttribute("height", height);
      svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
      const x = (t) => ((t - axis.start) / (axis.end - axis.start)) * (width - RIGHT);
      const y = (v) => foot - Math.min(v / most, 1) * (foot - head);
      const parts = [];
      if (words !== null) {
        for (const [v, text] of [[0, "0"], [most, words]]) {
          parts.push(shape("line", { class: "grid", x1: 0, x2: width - RIGHT, y1: y(v), y2: y(v) }), label(width - RIGHT + 6, y(v) + 4, text));
        }
      }
      parts.push(label(0, height - 3, clock(axis.start)), label(width - RIGHT, height - 3, clock(axis.end), "end"));
      if (axis.end - axis.last > GAP_S) {
        parts.push(shape("rect", { class: "lost", x: x(axis.last), width: x(axis.end) - x(axis.last), y: head, height: foot - head }, "no figures"));
      }
      return { x, y, foot, head, width, parts };
    }

    function finish({ svg }, axis, { x, foot, head, parts }) {
      for (const [at, what, , words] of marks) {
        if (at < axis.start || at > axis.end) continue;
        if (what === "preemption") {
          parts.push(shape("line", { class: "taken", x1: x(at), x2: x(at), y1: head, y2: foot }, words),
            shape("path", { class: "taken-head", d: `M${x(at) - 5} 0h10l-5 8z` }, `${clock(at)} ${words}`));
        } else {
          parts.push(shape("line", { class: "change", x1: x(at), x2: x(at), y1: foot, y2: foot + 4 }, `${clock(at)} ${words}`));
        }
      }
      if (axis.at) parts.push(shape("line", { class: "cross", x1: x(axis.at.t), x2: x(axis.at.t), y1: 0, y2: foot }));
      svg.replaceChildren(...parts);
    }

    const seen = (axis) => moments.filter((m) => m.t >= axis.start);
    const answers = (m, which) => Object.entries(m.split).reduce((sum, [who, n]) => sum + (kind(who) === which ? n : 0), 0) / SPLIT_S;

    function traffic(axis) {
      const shown = seen(axis), kinds = ["spot", "serverless"];
      const most = nice(Math.max(0.1, ...shown.map((m) => Math.max(m.sent ?? 0, answers(m, "spot") + answers(m, "serverless")))));
      const scales = begin(panels.traffic, axis, most, String(Number(most.toPrecision(3))));
      const { x, y, parts } = scales;
      const below = new Map();
      for (const which of kinds) {
        const line = shown.map((m) => [m.t, answers(m, which)]);
        if (line.some(([, v]) => v > 0)) {
          for (const piece of pieces(line)) {
            const upper = piece.map(([t, v]) => [x(t), y((below.get(t) ?? 0) + v)]);
            const lower = piece.map(([t]) => [x(t), y(below.get(t) ?? 0)]).reverse();
            parts.push(shape("path", { class: `area ${which}`, d: `${path([...upper, ...lower])}Z` }));
          }
        }
        for (const [t, v] of line) below.set(t, (below.get(t) ?? 0) + v);
      }
      for (const piece of pieces(shown.map((m) => [m.t, m.sent]))) {
        parts.push(shape("path", { class: "sent", d: path(piece.map(([t, v]) => [x(t), y(v)])) }));
      }
      const m = axis.at ?? shown[shown.length - 1];
      tellOf(panels.traffic, axis, `spot ${answers(m, "spot").toFixed(1)}, serverless ${answers(m, "serverless").toFixed(1)}, sent ${known(m.sent) ? m.sent.toFixed(1) : "–"}`);
      finish(panels.traffic, axis, scales);
    }

    function quantiles(which, key, axis) {
      const shown = seen(axis);
      const most = nice(Math.max(0.001, ...shown.flatMap((m) => m[key]).filter(known)));
      const scales = begin(which, axis, most, shown.some((m) => m[key].some(known)) ? duration(most) : "");
      for (const [place, look] of [[1, "p95"], [0, "p50"]]) {
        for (const piece of pieces(shown.map((m) => [m.t, m[key][place]]))) {
          scales.parts.push(shape("path", { class: look, d: path(piece.map(([t, v]) => [scales.x(t), scales.y(v)])) }));
        }
      }
      const m = axis.at ?? shown[shown.length - 1];
      tellOf(which, axis, `p50 ${duration(m[key][0])}, p95 ${duration(m[key][1])}`);
      finish(which, axis, scales);
    }

    function money(axis) {
      const shown = spending.filter(([t]) => t >= axis.start && t <= axis.end);
      const most = nice(Math.max(0.001, ...shown.map(([, rate]) => rate ?? 0)));
      const scales = begin(panels.dollars, axis, most, `$${Number(most.toPrecision(3))}`);
      for (const piece of pieces(shown, 40)) {
        const points = [];
        for (const [t, v] of [...piece, [Math.min(piece[piece.length - 1][0] + 15, axis.end), piece[piece.length - 1][1]]]) {
          if (points.length) points.push([scales.x(t), points[points.length - 1][1]]);
          points.push([scales.x(t), scales.y(v)]);
        }
        scales.parts.push(shape("path", { class: "dollars", d: path(points) }));
      }
      const when = axis.at ? axis.at.t : axis.end;
      const now = shown.filter(([t]) => t <= when).pop() ?? shown[0];
      tellOf(panels.dollars, axis, now ? `${dollars(now[1])} per hour` : "not known yet");
      finish(panels.dollars, axis, scales);
    }

    function states(axis) {
      const shown = seen(axis), names = [...new Set(shown.flatMap((m) => Object.keys(m.states)))];
      const scales = begin(panels.states, axis, 1, null, Math.max(HEIGHT - 16, names.length * (LANE + 16) + 8) + 16);
      const { x, width, parts } = scales;
      names.forEach((who, lane) => {
        const top = 12 + lane * (LANE + 16);
        const runs = [];
        for (const m of shown) {
          const state = m.states[who], run = runs[runs.length - 1];
          if (!state) continue;
          const close = run && m.t - run.until <= GAP_S;
          if (close && run.state === state) run.until = m.t;
          else {
            if (close) run.until = m.t;
            runs.push({ state, from: m.t, until: m.t });
          }
        }
        parts.push(label(0, top + 8, who));
        for (const { state, from, until } of runs) {
          const wide = Math.max(x(until) - x(from), 1.5);
          const look = ["READY", "WARMING", "DRAINING", "COOLING", "COLD"].includes(state) ? state : "other";
          parts.push(shape("rect", { class: `lane ${kind(who)} ${look}`, x: x(from), y: top + 12, width: wide, height: LANE - 5, rx: 2 }, `${who}: ${state.toLowerCase()}`));
        }
        const now = (axis.at ?? shown[shown.length - 1]).states[who];
        parts.push(label(width - RIGHT + 6, top + 22, (now ?? "–").toLowerCase()));
      });
      const m = axis.at ?? shown[shown.length - 1];
      tellOf(panels.states, axis, axis.at ? clock(m.t) : "", names.map((who) => `${who} ${(m.states[who] ?? "unknown").toLowerCase()}`).join(", "));
      finish(panels.states, axis, scales);
    }

    function tellOf(which, axis, words, aloud = words) {
      write(which.reading, axis.at && words && !words.includes(":") ? `${clock(axis.at.t)} · ${words}` : words);
      which.svg.setAttribute("aria-label", `${which.title}: ${axis.at ? `at ${clock(axis.at.t)}, ` : ""}${aloud}`);
    }

    // Pointing ----------------------------------------------------------------------------------------------------
    function point(event) {
      const svg = event.composedPath().find((node) => node.nodeName === "svg");
      if (!svg) return;
      const box = svg.getBoundingClientRect();
      cross = Math.min(Math.max((event.clientX - box.left) / (box.width - RIGHT), 0), 1);
      draw();
    }

    function walk(event) {
      if (event.key === "Escape") cross = null;
      else if (event.key === "ArrowLeft" || event.key === "ArrowRight") {
        const end = moments[moments.length - 1].t, start = Math.max(Math.min(moments[0].t, end - LEAST_S), end - WINDOW_S);
        const here = cross === null ? moments.length - 1 : moments.indexOf(nearest(start + cross * (end - start)));
        const next = moments[Math.min(Math.max(here + (event.key === "ArrowLeft" ? -1 : 1), 0), moments.length - 1)];
        cross = (next.t - start) / (end - start);
      } else return;
      event.preventDefault();
      draw();
      const shown = [...charts.children].map((box) => box.querySelector("svg").getAttribute("aria-label"));
      write(read, cross === null ? "" : shown.join(". "));
    }

    // The kernel --------------------------------------------------------------------------------------------------
    let heardAt = performance.now();  // when the last moment came
    function heard(message) {
      arrived = performance.now();
      if (message.all) moments = message.all;
      else if (message.add) moments = moments.concat(message.add);
      else return;
      if (message.all || message.add.length) heardAt = arrived;
      const last = moments.length ? moments[moments.length - 1].t : 0;
      moments = moments.filter((m) => m.t >= last - WINDOW_S);
      [marks, spending] = [message.marks, message.spending];
      draw();
    }
    const changed = () => { arrived = performance.now(); show(); };
    model.on("msg:custom", heard);
    model.on("change:face", changed);
    const beat = setInterval(() => {
      tell(document.hidden ? "hidden" : "beat");
      if ((performance.now() - arrived) / 1000 > 4 * BEAT_S) show();
    }, BEAT_S * 1000);
    let hiding = 0;
    const seenAgain = () => {
      clearTimeout(hiding);
      // Later: a page that is closed is hidden first, and its `close` must be the last that is heard of it.
      if (document.hidden) hiding = setTimeout(() => tell("hidden"), 2000);
      else tell("beat");
    };
    const leaves = () => tell("close");
    document.addEventListener("visibilitychange", seenAgain);
    window.addEventListener("pagehide", leaves);
    const sized = new ResizeObserver(() => draw());
    sized.observe(host);
    show();
    tell("open");

    return () => {
      clearInterval(beat);
      clearTimeout(hiding);
      sized.disconnect();
      document.removeEventListener("visibilitychange", seenAgain);
      window.removeEventListener("pagehide", leaves);
      model.off("msg:custom", heard);
      model.off("change:face", changed);
      tell("close");
    };
  },
};
