// Starts everything.

// The theme: kept for the next report where the browser allows a file to keep something.
function startTheme() {
  const key = "negalign-ray-theme";
  const apply = (theme) => {
    if (theme === "system") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = theme;
  };
  let kept = null;
  try { kept = localStorage.getItem(key); } catch { /* no storage for files: the switch still works */ }
  for (const input of document.querySelectorAll("[name=theme]")) {
    if (input.value === kept) { input.checked = true; apply(kept); }
    input.addEventListener("change", () => {
      apply(input.value);
      try { localStorage.setItem(key, input.value); } catch { /* as above */ }
    });
  }
}

// The link of the section that is being read.
function startNavigation() {
  const links = [...document.querySelectorAll(".bar nav a")];
  const targets = links.map((link) => document.querySelector(link.getAttribute("href")));
  const update = perFrame(() => {
    const passed = targets.map((target) => target.getBoundingClientRect().top < innerHeight * 0.3);
    const isAtEnd = scrollY > 0 && innerHeight + scrollY >= document.documentElement.scrollHeight - 4;
    const here = isAtEnd ? links.length - 1 : Math.max(0, passed.lastIndexOf(true));
    links.forEach((link, index) => (index === here ? link.setAttribute("aria-current", "true") : link.removeAttribute("aria-current")));
  });
  addEventListener("scroll", update, { passive: true });
  update();
}

// A link to an event opens the list that it stands in.
function startEvents() {
  for (const link of document.querySelectorAll(".lane a")) {
    link.addEventListener("click", () => {
      const row = document.querySelector(link.getAttribute("href"));
      row.closest("details").open = true;
      row.focus();
    });
  }
}

async function startViewer() {
  const packed = document.getElementById("packed");
  if (!packed) return;
  const form = document.getElementById("viewer");
  try {
    new Viewer(form, await unpack(packed));
  } catch (error) {
    form.replaceChildren(make("p", { class: "empty" }, `The samples cannot be shown: ${error.message}. A browser of 2023 or newer can.`));
  }
  document.documentElement.dataset.ready = "";
}

startTheme();
startNavigation();
startEvents();
const drawn = JSON.parse(document.getElementById("charts").textContent);
for (const figure of document.querySelectorAll("[data-chart]")) charts.push(new Chart(figure, drawn[figure.dataset.chart]));
startViewer();
