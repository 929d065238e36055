"use strict";
// Before the page is shown, so that it does not flash in the other colours.
{
  let theme = null;
  try { theme = localStorage.getItem("messagedb-theme"); } catch { /* storage may be switched off */ }
  if (theme === "dark" || theme === "light") document.documentElement.dataset.theme = theme;
}
