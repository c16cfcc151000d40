"use strict";
// The chat page. What a model writes reaches the page through textContent alone; history lives in this browser only.
const $ = (id) => document.getElementById(id);
const SAVED = ["system", "temperature", "top_p", "max_tokens", "seed", "length", "draft", "tint", "language", "theme"];
let messages = [];
let branches = [messages]; // every edit and every new reply begins one; what was there before stays
let running = null; // the AbortController of the reply under way
const KEPT = 30; // versions of the conversation that are remembered
const TAGS = new Set(("p em strong s code pre ul ol li blockquote table thead tbody tr th td hr br " +
  "h1 h2 h3 h4 h5 h6 a span").split(" "));

function words() { return WORDS[$("language").value] || WORDS.en; }

function show() {
  const language = words();
  document.documentElement.lang = $("language").value;
  for (const node of document.querySelectorAll("[data-word]")) node.textContent = language[node.dataset.word];
  for (const node of document.querySelectorAll("[data-label]")) {
    node.title = language[node.dataset.label];
    node.setAttribute("aria-label", node.title);
  }
  $("input").placeholder = language.placeholder;
  $("log").setAttribute("aria-label", language.conversation);
  for (const turn of document.querySelectorAll(".turn")) nameTurn(turn);
  for (const edit of document.querySelectorAll(".edit")) edit.textContent = language.edit;
  document.documentElement.dataset.theme = $("theme").value;
  document.body.classList.toggle("tinted", $("tint").checked);
}

function save() {
  const values = {};
  for (const id of SAVED) values[id] = $(id).type === "checkbox" ? $(id).checked : $(id).value;
  try { localStorage.setItem("draftsmith", JSON.stringify(values)); } catch { /* storage is off: nothing is kept */ }
  show();
}

// The conversation, in all its versions, so that it is there again after a reload. "New chat" forgets it.
function remember() {
  const kept = branches.filter((one) => one.length > 0 && one !== messages).slice(1 - KEPT);
  const value = { messages, others: kept };
  try { localStorage.setItem("draftsmith-chat", JSON.stringify(value)); } catch {
    try { localStorage.setItem("draftsmith-chat", JSON.stringify({ messages, others: [] })); } catch { /* too long, or off */ }
  }
}

function recall() {
  try {
    const value = JSON.parse(localStorage.getItem("draftsmith-chat") || "{}");
    const good = (one) => Array.isArray(one) && one.every((message) => ["user", "assistant"].includes(message.role) &&
      typeof message.content === "string" && (message.role === "user" || Array.isArray(message.pieces)));
    if (!good(value.messages) || !value.others.every(good)) return;
    messages = value.messages;
    branches = [...value.others, messages];
  } catch { /* nothing that can be read */ }
}

function restore() {
  $("language").value = navigator.language.startsWith("es") ? "es" : "en";
  let values = {};
  try { values = JSON.parse(localStorage.getItem("draftsmith") || "{}"); } catch { /* as above */ }
  for (const id of SAVED) {
    if (!(id in values)) continue;
    if ($(id).type === "checkbox") $(id).checked = values[id]; else $(id).value = values[id];
  }
}

// A tree from /render, built element by element; anything that is not on the list is left out.
function build(nodes, parent) {
  for (const node of nodes) {
    if (typeof node === "string") { parent.append(node); continue; }
    if (!TAGS.has(node.tag)) continue;
    const element = document.createElement(node.tag);
    if (node.tag === "a" && /^(https?:\/\/|mailto:)/i.test(node.href)) {
      element.href = node.href;
      element.rel = "noopener noreferrer";
      element.target = "_blank";
    }
    if (/^[ckmsf]$/.test(node.kind || "")) element.className = `code-${node.kind}`;
    build(node.children, element);
    parent.append(element);
  }
}

async function render(turn, text) {
  try {
    const response = await fetch("/render", { method: "POST", headers: headers(), body: JSON.stringify({ text }) });
    if (!response.ok) return;
    const box = document.createElement("div");
    build((await response.json()).nodes, box);
    turn.querySelector(".marked").replaceChildren(...box.childNodes);
    turn.classList.add("rendered");
  } catch { /* the plain text stays */ }
}

function addPieces(turn, pieces) {
  for (const piece of pieces) {
    const span = document.createElement("span");
    if (piece.from_draft) span.className = "drafted";
    span.textContent = piece.text;
    turn.querySelector(".plain").append(span);
  }
}

function nameTurn(turn) {
  const kind = ["user", "assistant", "problem"].find((one) => turn.classList.contains(one));
  turn.setAttribute("aria-label", words()[kind]);
}

function addTurn(kind, text, message) {
  const turn = document.createElement("div");
  turn.className = `turn ${kind}`;
  turn.setAttribute("role", kind === "problem" ? "alert" : "article");
  nameTurn(turn);
  if (kind === "assistant") {
    for (const name of ["plain", "marked"]) {
      const box = document.createElement("div");
      box.className = name;
      turn.append(box);
    }
  } else turn.textContent = text;
  $("log").append(turn);
  if (kind === "user") {
    const edit = document.createElement("button");
    edit.type = "button";
    edit.className = "edit";
    edit.textContent = words().edit;
    edit.addEventListener("click", () => editTurn(message));
    $("log").append(edit);
  }
  $("log").scrollTop = $("log").scrollHeight;
  return turn;
}

function editTurn(message) {
  if (running) return;
  const place = messages.indexOf(message);
  if (place < 0) return;
  $("input").value = message.content;
  branch(messages.slice(0, place));
  showMessages();
  remember();
  $("input").focus();
}

function branch(begin) {
  messages = begin;
  branches.push(messages);
}

function showMessages() {
  $("log").replaceChildren();
  for (const message of messages) {
    const turn = addTurn(message.role, message.content, message);
    if (message.role !== "assistant") continue;
    addPieces(turn, message.pieces);
    render(turn, message.content).then(() => { $("log").scrollTop = $("log").scrollHeight; });
  }
  buttons();
}

function turnTo(step) {
  if (running) return;
  const kept = branches.filter((one) => one.length > 0 || one === messages);
  messages = kept[(kept.indexOf(messages) + step + kept.length) % kept.length];
  branches = kept.filter((one) => one.length > 0 || one === messages);
  showMessages();
  remember();
}

// How many draft tokens each of the last rounds accepted, as bars; the numbers are in the status line.
function draw(rounds) {
  const bars = rounds.slice(-40).map((accepted) => {
    const bar = document.createElement("span");
    bar.style.height = `${Math.min(100, 10 + accepted * 22)}%`;
    return bar;
  });
  $("rounds").replaceChildren(...bars);
  $("rounds").hidden = rounds.length === 0;
  $("rounds").setAttribute("aria-label", `${words().rounds}: ${rounds.slice(-40).join(", ")}`);
}

function buttons() {
  $("branches").hidden = branches.filter((one) => one.length > 0).length < 2;
  $("branch").textContent = `${branches.indexOf(messages) + 1}/${branches.length}`;
  for (const id of ["earlier", "later"]) $(id).disabled = running !== null;
  $("send").disabled = running !== null;
  $("stop").disabled = running === null;
  $("again").disabled = running !== null || !messages.some((message) => message.role === "assistant");
}

function body() {
  const system = $("system").value.trim();
  const value = {
    messages: [...(system ? [{ role: "system", content: system }] : []), ...messages.map(({ role, content }) => ({ role, content }))],
    stream: true, return_pieces: true, draft: $("draft").checked,
  };
  for (const [id, field] of [["temperature"], ["top_p"], ["max_tokens"], ["seed"], ["length", "num_draft_tokens"]])
    if ($(id).value !== "") value[field || id] = Number($(id).value);
  return value;
}

function headers() {
  const key = $("key").value.trim();
  return { "Content-Type": "application/json", ...(key ? { Authorization: `Bearer ${key}` } : {}) };
}

function tell(chunk) {
  if (!chunk.timings) return;
  const language = words(), speculation = chunk.metrics.speculative_decoding;
  const parts = [`${chunk.timings.predicted_n} ${language.tokens}`,
    `${chunk.timings.predicted_per_second.toFixed(1)} ${language.speed}`];
  const speedup = chunk.timings.expected_speedup;
  if (speedup) parts.push(`${speedup.toFixed(2)}× ${language.speedup}`);
  if (speculation) parts.push(`${speculation.drafter}: ${speculation.num_accepted_draft_tokens}/${speculation.num_draft_tokens} ` +
    `${language.accepted} (${Math.round(100 * speculation.draft_acceptance_rate)} %)`);
  else parts.push(language.nodraft);
  $("status").textContent = parts.join(" · ");
}

async function* chunks(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const events = (rest + value).split("\n\n");
    rest = events.pop();
    for (const event of events)
      if (event.startsWith("data: ") && event !== "data: [DONE]") yield JSON.parse(event.slice(6));
  }
}

async function reply() {
  running = new AbortController();
  buttons();
  $("status").textContent = "";
  const turn = addTurn("assistant", "");
  const pieces = [], rounds = [];
  let text = "", accepted = 0, rendered = performance.now();
  try {
    const response = await fetch("/v1/chat/completions",
      { method: "POST", headers: headers(), body: JSON.stringify(body()), signal: running.signal });
    if (!response.ok) throw new Error((await response.json()).error.message);
    for await (const chunk of chunks(response)) {
      if (chunk.error) throw new Error(chunk.error.message);
      const atEnd = $("log").scrollHeight - $("log").scrollTop - $("log").clientHeight < 60;
      const news = chunk.choices[0].pieces || [];
      addPieces(turn, news);
      pieces.push(...news);
      text += news.map((piece) => piece.text).join("");
      if (text && performance.now() - rendered > 400) {
        rendered = performance.now();
        render(turn, text);
      }
      const speculation = chunk.metrics && chunk.metrics.speculative_decoding;
      if (speculation) {
        rounds.push(speculation.num_accepted_draft_tokens - accepted);
        accepted = speculation.num_accepted_draft_tokens;
        draw(rounds);
      }
      tell(chunk);
      if (atEnd) $("log").scrollTop = $("log").scrollHeight;
    }
  } catch (error) {
    if (error.name !== "AbortError") addTurn("problem", error instanceof TypeError ? words().failed : error.message);
  }
  if (text) {
    messages.push({ role: "assistant", content: text, pieces });
    const atEnd = $("log").scrollHeight - $("log").scrollTop - $("log").clientHeight < 60;
    await render(turn, text);
    if (atEnd) $("log").scrollTop = $("log").scrollHeight;
  } else turn.remove();
  running = null;
  remember();
  $("said").textContent = text ? `${words().done}: ${text}` : "";
  buttons();
  $("input").focus();
}

function send() {
  const text = $("input").value.trim();
  if (!text || running) return;
  const message = { role: "user", content: text };
  messages.push(message);
  addTurn("user", text, message);
  remember();
  $("said").textContent = "";
  $("input").value = "";
  reply();
}

function again() {
  if (running) return;
  const end = messages.findLastIndex((message) => message.role === "user") + 1;
  branch(messages.slice(0, end));
  showMessages();
  reply();
}

restore();
recall();
show();
showMessages();
draw([]);
for (const id of SAVED) $(id).addEventListener("change", save);
$("form").addEventListener("submit", (event) => { event.preventDefault(); send(); });
$("stop").addEventListener("click", () => running && running.abort());
$("again").addEventListener("click", again);
$("new").addEventListener("click", () => {
  if (running) running.abort();
  messages = [];
  branches = [messages];
  $("log").replaceChildren();
  draw([]);
  $("status").textContent = $("said").textContent = "";
  remember();
  buttons();
  $("input").focus();
});
$("earlier").addEventListener("click", () => turnTo(-1));
$("later").addEventListener("click", () => turnTo(1));
$("dismiss").addEventListener("click", () => { $("notice").hidden = true; $("input").focus(); });
$("input").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); send(); }
});
document.addEventListener("keydown", (event) => { if (event.key === "Escape" && running) running.abort(); });
fetch("/v1/models", { headers: headers() }).then((response) => response.json())
  .then((value) => { if (value.data) $("model").textContent = value.data[0].id; }).catch(() => {});
