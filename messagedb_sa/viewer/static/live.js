"use strict";
// Messages as they are written. Whatever is in them is shown as text, never as markup.
{
  const MAX_ROWS = 200;
  const root = document.querySelector("[data-events]");
  const rows = document.getElementById("rows");
  const state = document.getElementById("state");
  const nothing = document.getElementById("nothing");
  const pause = document.getElementById("pause");
  let source = null;
  let next = null;
  let arrived = [];
  let count = 0;

  function cell(row, text, kind) {
    const td = row.insertCell();
    if (kind) td.className = kind;
    td.textContent = text;
    return td;
  }

  function linked(row, text, to, kind, linkKind) {
    const td = cell(row, "", kind);
    const a = document.createElement("a");
    a.href = to;
    a.textContent = text;
    if (linkKind) a.className = linkKind;
    td.append(a);
  }

  function show() {
    for (const message of arrived) {
      const row = rows.insertRow(0);
      cell(row, message[root.dataset.by].toLocaleString(), "number");
      linked(row, message.type || "(no type)", message.message, "type", "main");
      linked(row, message.stream_name, message.stream, "stream");
      const preview = cell(row, "", "preview");
      const code = document.createElement(message.data === null ? "span" : "code");
      code.textContent = message.data === null ? "no data" : message.data;
      preview.append(code);
      const time = document.createElement("time");
      if (message.time) {
        time.dateTime = message.time;
        time.title = message.time;
      }
      cell(row, "", "time").append(time);
      localize(row);
    }
    arrived = [];
    while (rows.rows.length > MAX_ROWS) rows.deleteRow(-1);
    nothing.hidden = rows.rows.length > 0;
    say();
  }

  function say(problem) {
    const number = `${count.toLocaleString()} ${count === 1 ? "message" : "messages"}`;
    const limit = count > MAX_ROWS ? `, the newest ${MAX_ROWS} are shown` : "";
    const word = problem || (!source ? "paused" : source.readyState === EventSource.OPEN ? "live" : "connecting again …");
    state.textContent = count ? `${word}: ${number}${limit}` : word;
    state.dataset.state = word.split(" ")[0];
  }

  function follow() {
    const separator = root.dataset.events.includes("?") ? "&" : "?";
    source = new EventSource(next === null ? root.dataset.events : `${root.dataset.events}${separator}from=${next}`);
    let problem = null;
    source.addEventListener("begin", (event) => {
      next = event.lastEventId;
      problem = null;
      say();
    });
    source.addEventListener("message", (event) => {
      next = event.lastEventId;
      count += 1;
      if (arrived.push(JSON.parse(event.data)) === 1) requestAnimationFrame(show);
      if (arrived.length > MAX_ROWS) arrived.shift();
    });
    source.addEventListener("problem", (event) => {
      problem = JSON.parse(event.data).text;
      say(problem);
    });
    source.addEventListener("error", () => {
      // Closed: the server has refused it. Otherwise the browser connects again.
      if (source && source.readyState === EventSource.CLOSED) {
        problem = "not connected: the server refuses. Too many pages may follow at the same time, or the login has ended";
      }
      say(problem);
    });
    say(problem);
  }

  function toggle() {
    if (source) {
      source.close();
      source = null;
      pause.textContent = "Continue";
      say();
    } else {
      pause.textContent = "Pause";
      follow();
    }
  }

  root.hidden = false;
  document.getElementById("without").hidden = true;
  pause.addEventListener("click", toggle);
  document.addEventListener("keydown", (event) => {
    const inField = /^(INPUT|TEXTAREA|SELECT)$/.test(document.activeElement?.tagName ?? "");
    if (event.key === "p" && !inField && !event.ctrlKey && !event.metaKey && !event.altKey) toggle();
  });
  follow();
}
