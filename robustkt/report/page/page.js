// Draws the figures and switches between light and dark; the colours are variables of the style sheet.
const told = JSON.parse(document.getElementById("data").textContent);
const root = document.documentElement;
const button = document.getElementById("theme");
const dark = window.matchMedia("(prefers-color-scheme: dark)");
const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : dark.matches);
const say = () => {
  button.textContent = isDark() ? "Light" : "Dark";
  button.setAttribute("aria-label", "Switch to " + (isDark() ? "light" : "dark") + " colours");
  button.setAttribute("aria-pressed", String(isDark()));
};
button.addEventListener("click", () => {
  root.dataset.theme = isDark() ? "light" : "dark";
  say();
});
dark.addEventListener("change", say);
say();

async function draw(place) {
  const width = place.clientWidth;
  const config = structuredClone(told.config);
  config.legend.columns = Math.max(1, Math.floor(width / 230));
  config.legend.labelLimit = Math.min(230, width - 60);
  const spec = {
    ...told.figures[place.dataset.figure],
    width,
    autosize: { type: "fit-x", contains: "padding" },
    config,
  };
  const made = await vegaEmbed(place, spec, {
    ast: true, actions: false, renderer: "svg", tooltip: { theme: "custom" },
  });
  place.setAttribute("role", "img");  // one picture with its words, not a tree of marks
  for (const part of [place, ...place.querySelectorAll("[role], [aria-roledescription]")]) {
    if (part !== place) part.removeAttribute("role");
    part.removeAttribute("aria-roledescription");
  }
  place.dataset.width = width;
  return made;
}
function lost(place, error) {  // the others are drawn all the same
  console.error(error);
  place.textContent = "This chart could not be drawn; its numbers are below.";
  place.dataset.width = place.clientWidth;
}
let waiting = Promise.resolve();
function drawAll() {
  waiting = waiting.then(async () => {
    for (const place of document.querySelectorAll(".vega")) {
      if (Number(place.dataset.width) !== place.clientWidth) await draw(place).catch((error) => lost(place, error));
    }
    root.dataset.drawn = String(Math.round(performance.now()));
  });
  return waiting;
}
drawAll();
let timer = 0;
window.addEventListener("resize", () => {
  clearTimeout(timer);
  timer = setTimeout(drawAll, 120);
});
const opened = [];
window.addEventListener("beforeprint", () => {
  for (const details of document.querySelectorAll("details:not([open])")) {
    details.open = true;
    opened.push(details);
  }
});
window.addEventListener("afterprint", () => {
  while (opened.length) opened.pop().open = false;
});
