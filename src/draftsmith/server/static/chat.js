"use strict";
// The chat page. What a model writes reaches the page through textContent alone; history lives in this page only.
const $ = (id) => document.getElementById(id);
const SAVED = ["system", "temperature", "top_p", "max_tokens", "seed", "length", "draft", "tint", "language", "theme"];
let messages = [];
let running = null; // the AbortController of the reply under way

function words() { return WORDS[$("language").value] || WORDS.en; }

function show() {
  const language = words();
  document.documentElement.lang = $("language").value;
  for (const node of document.querySelectorAll("[data-word]")) node.textContent = language[node.dataset.word];
  $("input").placeholder = language.placeholder;
  document.documentElement.dataset.theme = $("theme").value;
  document.body.classList.toggle("tinted", $("tint").checked);
}

function save() {
  const values = {};
  for (const id of SAVED) values[id] = $(id).type === "checkbox" ? $(id).checked : $(id).value;
  try { localStorage.setItem("draftsmith", JSON.stringify(values)); } catch { /* storage is off: nothing is kept */ }
  show();
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

function addTurn(kind, text) {
  const turn = document.createElement("div");
  turn.className = `turn ${kind}`;
  turn.textContent = text;
  $("log").append(turn);
  $("log").scrollTop = $("log").scrollHeight;
  return turn;
}

function buttons() {
  $("send").disabled = running !== null;
  $("stop").disabled = running === null;
  $("again").disabled = running !== null || !messages.some((message) => message.role === "assistant");
}

function body() {
  const system = $("system").value.trim();
  const value = {
    messages: system ? [{ role: "system", content: system }, ...messages] : messages,
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
  let text = "";
  try {
    const response = await fetch("/v1/chat/completions",
      { method: "POST", headers: headers(), body: JSON.stringify(body()), signal: running.signal });
    if (!response.ok) throw new Error((await response.json()).error.message);
    for await (const chunk of chunks(response)) {
      if (chunk.error) throw new Error(chunk.error.message);
      const atEnd = $("log").scrollHeight - $("log").scrollTop - $("log").clientHeight < 60;
      for (const piece of chunk.choices[0].pieces || []) {
        const span = document.createElement("span");
        if (piece.from_draft) span.className = "drafted";
        span.textContent = piece.text;
        turn.append(span);
        text += piece.text;
      }
      tell(chunk);
      if (atEnd) $("log").scrollTop = $("log").scrollHeight;
    }
  } catch (error) {
    if (error.name !== "AbortError") addTurn("problem", error instanceof TypeError ? words().failed : error.message);
  }
  if (text) messages.push({ role: "assistant", content: text }); else turn.remove();
  running = null;
  buttons();
  $("input").focus();
}

function send() {
  const text = $("input").value.trim();
  if (!text || running) return;
  messages.push({ role: "user", content: text });
  addTurn("user", text);
  $("input").value = "";
  reply();
}

function again() {
  if (running) return;
  while (messages.length && messages.at(-1).role === "assistant") messages.pop();
  for (const turn of [...$("log").children].reverse()) {
    if (turn.classList.contains("user")) break;
    turn.remove();
  }
  reply();
}

restore();
show();
buttons();
for (const id of SAVED) $(id).addEventListener("change", save);
$("form").addEventListener("submit", (event) => { event.preventDefault(); send(); });
$("stop").addEventListener("click", () => running && running.abort());
$("again").addEventListener("click", again);
$("new").addEventListener("click", () => {
  if (running) running.abort();
  messages = [];
  $("log").replaceChildren();
  $("status").textContent = "";
  buttons();
});
$("dismiss").addEventListener("click", () => { $("notice").hidden = true; $("input").focus(); });
$("input").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); send(); }
});
document.addEventListener("keydown", (event) => { if (event.key === "Escape" && running) running.abort(); });
fetch("/v1/models", { headers: headers() }).then((response) => response.json())
  .then((value) => { if (value.data) $("model").textContent = value.data[0].id; }).catch(() => {});
