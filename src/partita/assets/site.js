(() => {
  "use strict";
  const form = document.getElementById("filters");
  const shown = document.getElementById("shown");
  const nothing = document.getElementById("nothing");
  const names = ["text", "family", "slot", "verdict"];
  const rows = [...document.querySelectorAll("#works tbody tr")].map((row) => ({
    row,
    text: row.textContent.toLowerCase(),
    family: row.dataset.family,
    slots: row.dataset.slots.split(" "),
    verdicts: row.dataset.verdicts.split(" "),
  }));
  const total = shown.textContent;

  function matches(r, { text, family, slot, verdict }) {
    return (!family || r.family === family) && (!slot || r.slots.includes(slot))
      && (!verdict || r.verdicts.includes(verdict))
      && text.toLowerCase().split(/\s+/).every((word) => r.text.includes(word));
  }

  function apply() {
    const wanted = Object.fromEntries(names.map((name) => [name, form.elements[name].value.trim()]));
    let count = 0;
    for (const r of rows) {
      r.row.hidden = !matches(r, wanted);
      count += !r.row.hidden;
    }
    const filtered = names.some((name) => wanted[name]);
    shown.textContent = filtered ? `${count} of ${total}` : total;
    nothing.hidden = count > 0;
    return wanted;
  }

  // The filters are in the address, so that a view can be sent to someone.
  function remember(wanted) {
    const set = names.filter((name) => wanted[name]).map((name) => [name, wanted[name]]);
    const hash = new URLSearchParams(set).toString();
    try {
      history.replaceState(null, "", hash ? `#${hash}` : location.pathname + location.search);
    } catch { /* a page that may not change its address still filters */ }
  }

  function recall() {
    const given = new URLSearchParams(location.hash.slice(1));
    for (const name of names) form.elements[name].value = given.get(name) ?? "";
    apply();
  }

  form.addEventListener("input", () => remember(apply()));
  form.addEventListener("reset", () => setTimeout(() => remember(apply())));
  form.addEventListener("submit", (event) => event.preventDefault());
  addEventListener("hashchange", recall);
  form.hidden = false;
  recall();
})();
