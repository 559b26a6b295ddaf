// The page of `natpunch web`. All that comes from the mesh is set as text, never as markup.
"use strict";

const INTERVAL = 2000;
const SVG = "http://www.w3.org/2000/svg";
// What a picture may be made of.
const ELEMENTS = new Set(["path", "rect", "text"]);
const ATTRIBUTES = new Set(["d", "x", "y", "width", "height", "rx", "transform", "text-anchor", "stroke-width"]);
// A mark for each kind of path, for those who don't see its colour.
const MARKS = { lan: "■", direct: "●", pinned: "◉", relayed: "◆", resting: "○", searching: "◌", down: "✕" };
const WORST = ["down", "searching", "relayed", "pinned", "direct", "lan", "resting"];

// In the order of people: oslo-9 before oslo-10.
const NAMES = new Intl.Collator("en", { numeric: true });
const at = (id) => document.getElementById(id);
const peers = new Map();
const rows = new Map();
let shown = null;
let picture = -1;
let lastEvent = 0;

function put(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

function make(name, text, className) {
  const element = document.createElement(name);
  if (text !== undefined) element.textContent = text;
  if (className) element.className = className;
  return element;
}

// What is behind the `#`: the token, and the peer that is shown.
function address() {
  const [token, peer] = location.hash.slice(1).split("/", 2);
  return { token, peer };
}

function show(name) {
  shown = name;
  const peer = name === null ? "" : `/${encodeURIComponent(name)}`;
  history.replaceState(null, "", `#${address().token}${peer}`);
  at("peer").hidden = name === null;
  list();
}

async function ask(path) {
  const headers = { "X-Natpunch-Token": address().token };
  const response = await fetch(path, { headers, cache: "no-store", redirect: "error" });
  if (response.ok) return response.json();
  const error = new Error((await response.text()).slice(0, 500).trim());
  error.status = response.status;
  throw error;
}

function rtt(ms) {
  return ms === null || ms === undefined ? "–" : ms < 10 ? `${ms.toFixed(1)} ms` : `${ms.toFixed(0)} ms`;
}

function bytes(count) {
  if (count < 1024) return `${Math.round(count)} B`;
  const units = ["KiB", "MiB", "GiB", "TiB"];
  let unit = -1;
  do { count /= 1024; unit += 1; } while (count >= 1024 && unit < units.length - 1);
  return `${count.toFixed(1)} ${units[unit]}`;
}

function ago(seconds) {
  for (const [unit, length] of [["d", 86400], ["h", 3600], ["min", 60]]) {
    if (seconds >= 2 * length) return `${Math.floor(seconds / length)} ${unit}`;
  }
  return `${Math.floor(Math.max(seconds, 0))} s`;
}

function clock(seconds) {
  return new Date(seconds * 1000).toLocaleTimeString();
}

function kindClass(kind) {
  return Object.hasOwn(MARKS, kind) ? kind : "down";
}

// ---- the map

function draw(drawn) {
  const svg = at("picture");
  svg.setAttribute("viewBox", `0 0 ${Number(drawn.width)} ${Number(drawn.height)}`);
  svg.setAttribute("aria-label", drawn.title);
  at("map").classList.toggle("large", drawn.width > 1200);
  const shapes = document.createDocumentFragment();
  for (const shape of drawn.shapes) {
    if (!ELEMENTS.has(shape.element)) continue;
    const element = document.createElementNS(SVG, shape.element);
    element.setAttribute("class", shape.class);
    for (const [name, value] of shape.attributes) {
      if (ATTRIBUTES.has(name)) element.setAttribute(name, value);
    }
    if (shape.text) element.textContent = shape.text;
    if (shape.peer) element.setAttribute("data-peer", shape.peer);
    else if (shape.about) {
      const title = document.createElementNS(SVG, "title");
      title.textContent = shape.about;
      element.append(title);
    }
    shapes.append(element);
  }
  svg.replaceChildren(shapes);
}

function about(peer) {
  const lines = [peer.name, `${peer.path}, ${rtt(peer.rtt_ms)}`, peer.addresses.join(" ")];
  if (peer.routes.length) lines.push(`to ${peer.routes.join(" ")}`);
  if (peer.endpoint) lines.push(`at ${peer.endpoint}`);
  if (peer.nat) lines.push(`NAT: ${peer.nat}`);
  if (peer.reason) lines.push(peer.reason);
  return lines.join("\n");
}

function point(event) {
  const name = event.target.getAttribute && event.target.getAttribute("data-peer");
  const peer = name && peers.get(name);
  const tip = at("tip");
  tip.hidden = !peer;
  if (!peer) return;
  put(tip, about(peer));
  const { clientX: x, clientY: y } = event;
  tip.style.left = `${Math.max(0, Math.min(x + 14, innerWidth - tip.offsetWidth - 8))}px`;
  tip.style.top = `${Math.max(0, Math.min(y + 14, innerHeight - tip.offsetHeight - 8))}px`;
}

// ---- the list

function newRow(name) {
  const row = make("tr");
  const first = make("td");
  const mark = make("span", "", "dot");
  const button = make("button", name);
  button.type = "button";
  first.append(mark, button);
  const cells = [first, make("td"), make("td", "", "n"), make("td", "", "n"), make("td", "", "n")];
  row.append(...cells);
  row.addEventListener("click", () => open(name));
  return { row, mark, cells };
}

function list() {
  const wanted = at("filter").value.trim().toLowerCase();
  const sort = at("sort").value;
  const has = (peer) => [peer.name, peer.path, peer.kind, ...peer.addresses, ...peer.routes]
    .some((text) => text.toLowerCase().includes(wanted));
  const all = [...peers.values()].filter((peer) => !wanted || has(peer));
  const byName = (a, b) => NAMES.compare(a.name, b.name);
  const orders = {
    name: byName,
    kind: (a, b) => WORST.indexOf(a.kind) - WORST.indexOf(b.kind),
    rtt: (a, b) => (b.rtt_ms ?? -1) - (a.rtt_ms ?? -1),
    rate: (a, b) => b.rate.rx + b.rate.tx - a.rate.rx - a.rate.tx,
  };
  all.sort((a, b) => orders[sort](a, b) || byName(a, b));
  for (const name of rows.keys()) if (!peers.has(name)) rows.delete(name);
  const ordered = all.map((peer) => {
    if (!rows.has(peer.name)) rows.set(peer.name, newRow(peer.name));
    const { row, mark, cells } = rows.get(peer.name);
    const kind = kindClass(peer.kind);
    put(mark, MARKS[kind]);
    mark.className = `dot k-${kind}`;
    put(cells[1], peer.path);
    put(cells[2], rtt(peer.rtt_ms));
    put(cells[3], `${bytes(peer.rate.rx)}/s`);
    put(cells[4], `${bytes(peer.rate.tx)}/s`);
    row.classList.toggle("on", peer.name === shown);
    return row;
  });
  const body = at("peers");
  const same = ordered.length === body.children.length && ordered.every((row, n) => body.children[n] === row);
  if (!same) body.replaceChildren(...ordered);
}

// ---- one peer

function told(steps) {
  return steps.map((step) => {
    const item = make("li");
    item.append(make("time", `${ago(step.ago_s)} ago`), step.text);
    return item;
  });
}

async function open(name) {
  show(name);
  put(at("peer-name"), name);
  let why;
  try {
    why = await ask(`/api/why?peer=${encodeURIComponent(name)}`);
  } catch (error) {
    put(at("peer-cause"), error.message);
    return;
  }
  if (shown !== name) return;
  put(at("peer-cause"), why.cause.text);
  const peer = why.peer;
  const listed = peers.get(name);
  const facts = [
    ["path", listed ? listed.path : peer.path],
    ["endpoint", peer.endpoint ?? "–"],
    ["RTT", rtt(peer.rtt_ms)],
    ["loss", peer.loss_percent === null || peer.loss_percent === undefined ? "–" : `${peer.loss_percent} %`],
    ["addresses", listed ? listed.addresses.join(" ") : "–"],
    ["networks", listed && listed.routes.length ? listed.routes.join(" ") : "–"],
    [`NAT of ${why.node}`, why.own_nat],
    [`NAT of ${name}`, why.peer_nat],
    ["received, sent", `${bytes(peer.rx_bytes)}, ${bytes(peer.tx_bytes)}`],
    ["handshake", peer.handshake_age_s === null ? "–" : `${ago(peer.handshake_age_s)} ago`],
  ];
  at("peer-facts").replaceChildren(...facts.flatMap(([key, value]) => [make("dt", key), make("dd", value)]));
  at("peer-changes").replaceChildren(...told(why.changes));
  at("peer-steps").replaceChildren(...told(why.steps.slice(0, 20)));
  at("peer-candidates").replaceChildren(...peer.candidates.map((candidate) => {
    const row = make("tr");
    for (const text of [candidate.address, candidate.kind, candidate.probes, candidate.answers, rtt(candidate.rtt_ms)]) {
      row.append(make("td", String(text)));
    }
    return row;
  }));
}

// ---- versions

async function versions() {
  put(at("versions-note"), "asking …");
  try {
    const mesh = await ask("/api/versions");
    put(at("versions-note"), `${mesh.node} runs ${mesh.revision}`);
    at("versions").replaceChildren(...mesh.peers.map((peer) => {
      const row = make("tr");
      const standing = typeof peer.standing === "string" ? peer.standing : JSON.stringify(peer.standing);
      for (const text of [peer.name, standing, peer.revision ?? "–", peer.version ?? "–"]) {
        row.append(make("td", text));
      }
      return row;
    }));
  } catch (error) {
    put(at("versions-note"), error.message);
  }
}

// ---- all of it

function banner(text) {
  at("banner").hidden = !text;
  put(at("banner"), text ?? "");
  document.body.classList.toggle("away", Boolean(text));
}

function notices(node) {
  const texts = [...node.warnings];
  if (node.change) {
    const until = ago(node.change.undone_in_s);
    texts.push(node.change.by_person
      ? `revision ${node.change.revision} is undone in ${until} unless somebody runs natpunch confirm`
      : `revision ${node.change.revision} is undone in ${until} without a sign of life from ${node.change.waiting_for.join(", ")}`);
  }
  if (node.held) texts.push(`revision ${node.held.revision} was undone: ${node.held.reason}`);
  if (node.reload_error) texts.push(`the newest mesh file is NOT applied:\n${node.reload_error}`);
  for (const discovery of node.discovery) {
    if (!discovery.ok) texts.push(`discovery ${discovery.name}: ${discovery.note}`);
  }
  const items = at("notices");
  if (JSON.stringify(texts) !== items.dataset.texts) {
    items.dataset.texts = JSON.stringify(texts);
    items.replaceChildren(...texts.map((text) => make("li", text)));
  }
}

function events(all) {
  const newest = all.length ? all[0].number : 0;
  if (newest === lastEvent) return;
  lastEvent = newest;
  at("events").replaceChildren(...all.map((event) => {
    const item = make("li");
    item.append(make("time", clock(event.at_s)), event.peer ? `${event.peer}: ${event.text}` : event.text);
    return item;
  }));
}

async function renew() {
  const now = await ask("/api/now");
  banner(now.away ? `The agent is away since ${clock(now.away.since_s)}, and tunnels stay up without it: ${now.away.reason}` : null);
  events(now.events);
  if (!now.node) return;
  const node = now.node;
  document.title = `${node.mesh} · natpunch`;
  put(at("mesh"), `mesh ${node.mesh}`);
  put(at("summary"), node.summary);
  put(at("node"), `as ${node.node} sees it · ${node.interface} (${node.backend}) · revision ${node.revision} for ${ago(node.runs_for_s)}`);
  notices(node);
  peers.clear();
  for (const peer of now.peers) peers.set(peer.name, peer);
  list();
  if (now.picture !== picture) {
    draw(await ask("/api/picture"));
    picture = now.picture;
  }
}

async function loop() {
  if (!document.hidden) {
    try {
      await renew();
    } catch (error) {
      banner(error.status === 401 ? error.message : error.status ? `The page can't be renewed: ${error.message}`
        : "natpunch web has ended: start it again, and open the URL that it prints");
    }
  }
  setTimeout(loop, INTERVAL);
}

at("picture").addEventListener("mousemove", point);
at("picture").addEventListener("mouseleave", () => { at("tip").hidden = true; });
at("picture").addEventListener("click", (event) => {
  const name = event.target.getAttribute("data-peer");
  if (name && peers.has(name)) open(name);
});
at("filter").addEventListener("input", list);
at("sort").addEventListener("change", list);
at("ask").addEventListener("click", versions);
at("close").addEventListener("click", () => show(null));
loop().then(() => {
  try {
    const name = decodeURIComponent(address().peer ?? "");
    if (peers.has(name)) open(name);
  } catch {
    // Somebody has changed the address by hand.
  }
});
