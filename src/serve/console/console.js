// SPDX-License-Identifier: Apache-2.0
// The console: chat, fit, palettes, ledger. No library, nothing from elsewhere. All text from outside goes in as text,
// never as markup.
"use strict";
(() => {
  const $ = (id) => document.getElementById(id);
  const el = (tag, cls, text) => {
    const e = document.createElement(tag);
    if (cls) e.className = cls;
    if (text !== undefined) e.textContent = text;
    return e;
  };
  const store = window.sessionStorage;
  let talk = [], stopper = null, speeds = [], entries = [];

  // ---- the server ----
  const headers = () => {
    const h = { "Content-Type": "application/json" };
    const key = store.getItem("key");
    if (key) h.Authorization = "Bearer " + key;
    return h;
  };
  const askKey = () => new Promise((done) => {
    const d = $("key-dialog");
    d.addEventListener("close", () => {
      if ($("key").value) store.setItem("key", $("key").value);
      done(Boolean($("key").value));
    }, { once: true });
    $("key").value = "";
    d.showModal();
  });
  const say = (text) => { $("alert").textContent = text || ""; $("alert").hidden = !text; };
  async function call(path, body, signal) {
    for (;;) {
      const r = await fetch(path, body === undefined ? { headers: headers(), signal }
        : { method: "POST", headers: headers(), body: JSON.stringify(body), signal });
      if (r.status === 401 && await askKey()) continue;
      if (r.ok) return r;
      let text = "HTTP " + r.status;
      try { text = (await r.json()).error.message || text; } catch (e) { /* no JSON */ }
      throw new Error(text);
    }
  }

  // ---- tabs ----
  const tabs = [...document.querySelectorAll("[role=tab]")];
  function show(tab, focus) {
    for (const t of tabs) {
      const on = t === tab;
      t.setAttribute("aria-selected", String(on));
      t.tabIndex = on ? 0 : -1;
      $(t.getAttribute("aria-controls")).hidden = !on;
    }
    if (focus) tab.focus();
    say("");
    const name = tab.getAttribute("aria-controls");
    history.replaceState(null, "", "#/" + name); // names no element: the focus stays
    if (name === "palettes") palettes();
    if (name === "ledger") ledger();
  }
  for (const t of tabs) t.addEventListener("click", () => show(t));
  $("tabs").addEventListener("keydown", (e) => {
    const at = tabs.indexOf(document.activeElement);
    const to = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: tabs.length - 1 }[e.key];
    if (at < 0 || to === undefined) return;
    e.preventDefault();
    show(tabs[(to + tabs.length) % tabs.length], true);
  });

  // ---- speed ----
  function speed(v) {
    speeds = [...speeds.slice(-19), v];
    $("speed").textContent = v.toFixed(v < 10 ? 1 : 0) + " tok/s";
    const most = Math.max(...speeds), svg = $("spark");
    svg.replaceChildren();
    if (speeds.length < 2) return;
    const line = document.createElementNS("http://www.w3.org/2000/svg", "polyline");
    line.setAttribute("points", speeds.map((s, i) => (i * 60 / (speeds.length - 1)).toFixed(1) + "," +
      (18 - 16 * s / most).toFixed(1)).join(" "));
    svg.append(line);
  }

  // ---- chat ----
  function turn(role) {
    $("hello").hidden = true;
    const box = el("article", "turn " + role), text = el("p");
    box.setAttribute("aria-label", role === "user" ? "You" : "crayon");
    box.append(text);
    $("log").append(box);
    return { box, text };
  }
  const bottom = () => { $("log").scrollTop = $("log").scrollHeight; };
  function facts(box, c, ms, first, tokens, pieces) {
    const f = el("div", "facts");
    const route = c && c.route === "server" ? "server" : "device";
    box.classList.add(route);
    f.append(el("span", "badge " + route, route === "server" ? "from the server" : "on this device"));
    if (c && typeof c.confidence === "number") {
      const label = el("span", "", "sure ");
      const m = document.createElement("meter");
      m.min = 0; m.max = 1; m.low = 0.35; m.high = 0.7; m.optimum = 1; m.value = c.confidence;
      m.setAttribute("aria-label", "Confidence");
      label.append(m, " " + Math.round(100 * c.confidence) + " %");
      f.append(label);
    }
    const blend = c && Array.isArray(c.blend) ? c.blend.map((b) => b.name).join(", ") : "";
    if (blend) f.append(el("span", "", "palette " + blend));
    if (tokens) f.append(el("span", "", tokens + " tokens, first after " + Math.round(first) + " ms"));
    if (c && c.left_device_bytes) f.append(el("span", "", c.left_device_bytes + " bytes left this device"));
    if (c && typeof c.cost === "number") f.append(el("span", "", "cost " + c.cost));
    if (c && c.why) {
      const d = el("details");
      d.append(el("summary", "", "why"), el("p", "", c.why));
      f.append(d);
    }
    box.append(f);
    if (pieces > 3 && tokens > 1 && ms > first) speed((tokens - 1) * 1000 / (ms - first));
  }
  async function answer() {
    const t = turn("assistant"), begin = performance.now();
    let text = "", first = 0, pieces = 0, tokens = 0, about = null, rest = "";
    t.box.classList.add("wait");
    stopper = new AbortController();
    $("send").textContent = "Stop";
    const event = (data) => {
      if (data === "[DONE]") return;
      const o = JSON.parse(data);
      if (o.error) throw new Error(o.error.message);
      if (o.usage) tokens = o.usage.completion_tokens;
      if (o.crayon) about = o.crayon;
      const d = o.choices && o.choices[0] && o.choices[0].delta;
      if (!d || !d.content) return;
      if (!pieces++) first = performance.now() - begin;
      text += d.content;
      t.text.textContent = text.trimStart();
      bottom();
    };
    try {
      const r = await call("v1/chat/completions", { model: $("model").value, messages: talk, stream: true, max_tokens: 256,
        stream_options: { include_usage: true }, crayon: { route: $("route").value } }, stopper.signal);
      const reader = r.body.getReader(), utf8 = new TextDecoder();
      for (;;) {
        const { done, value } = await reader.read();
        if (done) break;
        rest += utf8.decode(value, { stream: true });
        const lines = rest.split("\n");
        rest = lines.pop();
        for (const l of lines) if (l.startsWith("data: ")) event(l.slice(6));
      }
    } catch (e) {
      if (e.name !== "AbortError") say(e.message);
      else if (!text) text = "";
    }
    t.box.classList.remove("wait");
    if (!text && !about) t.box.remove();
    else facts(t.box, about, performance.now() - begin, first, tokens || pieces, pieces);
    if (text) talk.push({ role: "assistant", content: text });
    stopper = null;
    $("send").textContent = "Send";
    bottom();
  }
  $("ask").addEventListener("submit", (e) => {
    e.preventDefault();
    if (stopper) { stopper.abort(); return; }
    const text = $("prompt").value.trim();
    if (!text) return;
    say("");
    $("prompt").value = "";
    turn("user").text.textContent = text;
    talk.push({ role: "user", content: text });
    bottom();
    answer();
  });
  $("prompt").addEventListener("keydown", (e) => {
    if (e.key === "Enter" && !e.shiftKey && !e.isComposing) { e.preventDefault(); $("ask").requestSubmit(); }
  });
  document.addEventListener("keydown", (e) => { if (e.key === "Escape" && stopper) stopper.abort(); });
  $("clear").addEventListener("click", () => {
    if (stopper) stopper.abort();
    talk = [];
    for (const t of document.querySelectorAll(".turn")) t.remove();
    $("hello").hidden = false;
    $("prompt").focus();
  });

  // ---- models ----
  async function models() {
    const list = (await (await call("v1/models")).json()).data, now = $("model").value;
    $("model").replaceChildren(...list.map((m) => new Option(m.id, m.id)));
    const fitted = list.find((m) => m.parent);
    $("model").value = list.some((m) => m.id === now) ? now : (fitted || list[0]).id;
    return list;
  }
  async function palettes() {
    try {
      const list = await models();
      $("palette-list").replaceChildren(...list.map((m) => {
        const li = el("li"), use = el("button", "quiet", "Use in the chat");
        li.append(el("b", "", m.id), el("span", "small", m.parent ? "palette of " + m.parent : "the base model"), use);
        use.setAttribute("aria-label", "Use " + m.id + " in the chat");
        use.addEventListener("click", () => { $("model").value = m.id; show($("tab-chat")); $("prompt").focus(); });
        return li;
      }));
    } catch (e) { say(e.message); }
  }

  // ---- fit ----
  function csv(text) { // RFC 4180: quotes doubled
    const rows = [[]];
    let cell = "", quoted = false;
    for (let i = 0; i < text.length; i++) {
      const c = text[i];
      if (quoted) {
        if (c !== '"') cell += c;
        else if (text[i + 1] === '"') { cell += '"'; i++; } else quoted = false;
      } else if (c === '"') quoted = true;
      else if (c === "," || c === "\n") { rows[rows.length - 1].push(cell.replace(/\r$/, "")); cell = ""; if (c === "\n") rows.push([]); }
      else cell += c;
    }
    rows[rows.length - 1].push(cell);
    return rows.filter((r) => r.length > 1 || r[0]);
  }
  function examples(text, name) {
    const lines = text.split(/\r?\n/).filter((l) => l.trim());
    if (!lines.length) throw new Error("there are no examples yet");
    if (lines[0].trim().startsWith("{")) return lines.map((l, i) => {
      try { return JSON.parse(l); } catch (e) { throw new Error("line " + (i + 1) + " is no JSON"); }
    });
    if (/\.csv$/i.test(name) || /^[^,]*\bquestion\b[^,]*,/i.test(lines[0])) {
      const rows = csv(text), head = rows[0].map((h) => h.trim().toLowerCase());
      return rows.slice(1).map((r) => Object.fromEntries(head.map((h, i) => [h, r[i] || ""])));
    }
    return lines.map((l) => ({ question: l }));
  }
  async function take(file) {
    if (file.size > 2e6) { say("the file is larger than 2 MB"); return; }
    $("examples").value = await file.text();
    $("file-name").textContent = file.name;
    $("blend-name").value = file.name.replace(/\.[^.]*$/, "").replace(/[^A-Za-z0-9_.-]/g, "-").slice(0, 60) || "mine";
  }
  $("file").addEventListener("change", () => { if ($("file").files[0]) take($("file").files[0]); });
  for (const kind of ["dragover", "dragleave", "drop"]) $("drop").addEventListener(kind, (e) => {
    e.preventDefault();
    $("drop").classList.toggle("over", kind === "dragover");
    if (kind === "drop" && e.dataTransfer.files[0]) take(e.dataTransfer.files[0]);
  });
  const tile = (value, text) => { const t = el("div", "tile"); t.append(el("b", "", value), el("span", "", text)); return t; };
  const percent = (v) => (100 * v).toFixed(1) + " %";
  function weights(list) {
    const most = Math.max(...list.map((w) => Math.abs(w.weight)), 1e-9), ul = el("ul", "weights");
    for (const w of list) {
      const li = el("li"), track = el("div", "track"), fill = el("div", "fill" + (w.weight < 0 ? " minus" : ""));
      fill.style.left = "0";
      fill.style.width = (100 * Math.abs(w.weight) / most).toFixed(1) + "%";
      track.append(fill);
      li.append(el("span", "", w.name), track, el("span", "num", w.weight.toFixed(3)));
      ul.append(li);
    }
    return ul;
  }
  function result(r) {
    const box = $("blend-result"), tiles = el("div", "tiles");
    box.replaceChildren();
    tiles.id = "blend-tiles";
    tiles.append(tile(r.ms.toFixed(r.ms < 10 ? 1 : 0) + " ms", "from " + r.examples + " examples to a palette"));
    const list = (r.weights || []).map((w, i) => typeof w === "number" ? { name: "adapter " + i, weight: w } : w);
    box.append(tiles);
    if (r.nearest) box.append(el("p", "small", "Nearest task that the pool was trained on: " + r.nearest));
    if (list.length) box.append(el("h3", "", "Weights"), weights(list));
    if (r.model) {
      const use = el("button", "", "Chat with " + r.model);
      use.addEventListener("click", async () => { await models(); $("model").value = r.model; show($("tab-chat")); $("prompt").focus(); });
      box.append(use);
    }
    box.scrollIntoView({ block: "start" });
  }
  // Before and after, on lines that the blend has not seen: is the answer the wanted one, word for word?
  const wanted = (e) => typeof e.answer === "number" && e.choices ? e.choices[e.answer] : e.answer;
  const plain = (s) => String(s).trim().toLowerCase();
  async function right(model, held) {
    const prompt = held.map((e) => (e.context ? "Context: " + e.context + "\n" : "") + "Question: " + e.question + "\nAnswer:");
    const r = await (await call("v1/completions", { model, prompt, temperature: 0, max_tokens: 24, stop: ["\n"] })).json();
    return held.filter((e, i) => plain(r.choices[i].text) === plain(wanted(e))).length / held.length;
  }
  function split(list) { // every third labelled line is held out, at most 12
    const held = list.filter((e) => e.question && wanted(e) !== undefined && wanted(e) !== "").filter((e, i) => i % 3 === 2).slice(0, 12);
    return held.length < 3 ? { learn: list, held: [] } : { learn: list.filter((e) => !held.includes(e)), held };
  }
  $("blend").addEventListener("submit", async (e) => {
    e.preventDefault();
    say("");
    $("blend-go").disabled = true;
    $("blend-result").replaceChildren(el("p", "small", "Blending …"));
    try {
      const list = examples($("examples").value, $("file-name").textContent);
      const { learn, held } = split(list);
      const r = await (await call("v1/crayon/blend", { name: $("blend-name").value, level: "measured", examples: learn.slice(0, 64) })).json();
      result(r);
      const all = await models();
      if (held.length && r.model) {
        const base = all.find((m) => !m.parent).id;
        const before = await right(base, held), after = await right(r.model, held);
        $("blend-tiles").append(tile(percent(before), "right before, on " + held.length + " held-out lines"), tile(percent(after), "right after"));
      }
    } catch (err) {
      $("blend-result").replaceChildren();
      say(err.message);
    }
    $("blend-go").disabled = false;
  });

  // ---- ledger ----
  const bytes = (n) => n === null || n === undefined ? "–" : n < 1024 ? n + " B" : n < 1048576 ? (n / 1024).toFixed(1) + " KiB" : (n / 1048576).toFixed(1) + " MiB";
  async function ledger() {
    try {
      const l = await (await call("v1/crayon/ledger")).json(), t = l.totals;
      entries = l.entries;
      $("totals").replaceChildren(tile(String(t.rows), "requests to servers"), tile(bytes(t.bytes_out), "left"),
        tile(bytes(t.bytes_in), "came back"), tile(t.cost === null ? "–" : String(t.cost), "cost"), tile(String(t.failed), "failed"));
      $("rows").replaceChildren(...entries.map((r) => {
        const tr = el("tr"), ok = r.status === "ok";
        tr.append(el("td", "when", r.time.replace("T", " ").replace(/\.\d+Z/, " UTC")), el("td", "", r.destination + " (" + r.model + ")"),
          el("td", "why", r.reason), el("td", "num", bytes(r.bytes_out)), el("td", "num", bytes(r.bytes_in)),
          el("td", "num", r.cost === null ? "–" : String(r.cost)), el("td", ok ? "ok" : r.status === "pending" ? "" : "failed", r.status));
        return tr;
      }));
      if (!entries.length) {
        const tr = el("tr"), td = el("td", "", "Nothing has left this device.");
        td.colSpan = 7;
        tr.append(td);
        $("rows").append(tr);
      }
    } catch (e) { say(e.message); }
  }
  function save(name, type, text) {
    const a = el("a");
    a.href = URL.createObjectURL(new Blob([text], { type }));
    a.download = name;
    a.click();
    URL.revokeObjectURL(a.href);
  }
  const quote = (v) => {
    const s = v === null || v === undefined ? "" : String(v);
    return /^[=+\-@]/.test(s) && typeof v === "string" ? `"'${s.replace(/"/g, '""')}"` : /[",\r\n]/.test(s) ? `"${s.replace(/"/g, '""')}"` : s;
  };
  $("refresh").addEventListener("click", ledger);
  $("save-jsonl").addEventListener("click", () => save("ledger.jsonl", "application/jsonl", entries.map((r) => JSON.stringify(r) + "\n").join("")));
  $("save-csv").addEventListener("click", () => {
    const names = entries.length ? Object.keys(entries[0]) : [];
    save("ledger.csv", "text/csv", [names, ...entries.map((r) => names.map((n) => r[n]))].map((r) => r.map(quote).join(",") + "\r\n").join(""));
  });

  // ---- begin ----
  async function health() {
    let up = false;
    try { up = (await fetch("health")).ok; } catch (e) { /* down */ }
    $("health").className = "dot " + (up ? "up" : "down");
    $("health").setAttribute("aria-label", "Server: " + (up ? "running" : "not reachable"));
  }
  health();
  setInterval(health, 10000);
  models().catch((e) => say(e.message));
  show(tabs.find((t) => "#/" + t.getAttribute("aria-controls") === location.hash) || tabs[0]);
  if (location.hash === "#/chat") $("prompt").focus();
})();
