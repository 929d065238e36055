"use strict";

// Times in the reader's zone. In the title they are in UTC.
const format = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "medium" });
const clock = new Intl.DateTimeFormat(undefined, { timeStyle: "short" });
function localize(root) {
  for (const time of root.querySelectorAll("time[datetime]")) {
    const at = new Date(time.dateTime);
    if (!Number.isNaN(at.getTime())) time.textContent = (time.dataset.show === "clock" ? clock : format).format(at);
  }
}
localize(document);

const button = document.querySelector("button.theme");
if (button) {
  button.hidden = false;
  button.addEventListener("click", () => {
    const root = document.documentElement;
    const isDark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = isDark ? "light" : "dark";
    try { localStorage.setItem("messagedb-theme", root.dataset.theme); } catch { /* it then lasts for this page */ }
  });
}

// A token after # stays in the browser: it is in no request's address, and in no log.
const token = document.getElementById("token");
if (token && location.hash.length > 1) {
  token.value = decodeURIComponent(location.hash.slice(1));
  history.replaceState(null, "", location.pathname + location.search);
  token.form.submit();
}

// Keys: / to search, j and k or the arrows through the rows, Enter follows the link as everywhere.
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const active = document.activeElement;
  if (active && /^(INPUT|TEXTAREA|SELECT)$/.test(active.tagName)) {
    if (event.key === "Escape") active.blur();
    return;
  }
  if (event.key === "/") {
    const field = document.getElementById("find");
    if (!field) return;
    event.preventDefault();
    field.focus();
    field.select();
    return;
  }
  const step = { j: 1, k: -1 }[event.key] ?? (active.closest?.("[data-rows]") ? { ArrowDown: 1, ArrowUp: -1 }[event.key] : undefined);
  if (!step) return;
  const links = [...document.querySelectorAll("[data-rows] a.main")];
  if (!links.length) return;
  const row = active.closest?.("tr");
  const now = links.findIndex((each) => each === active || (row && row.contains(each)));
  const next = now < 0 ? (step > 0 ? 0 : links.length - 1) : Math.min(links.length - 1, Math.max(0, now + step));
  event.preventDefault();
  links[next].focus();
});
